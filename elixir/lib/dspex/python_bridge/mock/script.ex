defmodule DSPex.PythonBridge.Mock.Script do
  @moduledoc """
  What a test wants its mock to answer, and what the mock was asked. An agent, which all workers of a
  mock ask.
  """

  use Agent

  alias DSPex.PythonBridge.Error

  @type t :: pid()
  @type recorded :: %{command: String.t(), args: term(), session_id: String.t() | nil}

  # Commands that a bridge sends by itself.
  @housekeeping ["cancel", "hello", "pause", "resume"]
  @empty %{outputs: %{}, results: %{}, errors: %{}, delays: %{}, tool_calls: %{}, requests: []}

  @doc false
  @spec start_link(term()) :: Agent.on_start()
  def start_link(_), do: Agent.start_link(fn -> @empty end)

  @doc "Forgets everything."
  @spec clear(t()) :: :ok
  def clear(script), do: Agent.update(script, fn _ -> @empty end)

  @doc "Gives the values to the next runs, one to each; the last one to all further runs."
  @spec set_outputs(t(), String.t() | nil, String.t(), [term(), ...]) :: :ok
  def set_outputs(script, program_id, field, [_ | _] = values) do
    Agent.update(script, &put_in(&1.outputs[{program_id, field}], values))
  end

  @doc "Returns the value of an output field, if the test has set one."
  @spec output(t(), String.t(), String.t(), map()) :: {:ok, term()} | :none
  def output(script, program_id, field, inputs) do
    taken =
      Agent.get_and_update(script, fn %{outputs: outputs} = state ->
        key =
          if is_map_key(outputs, {program_id, field}), do: {program_id, field}, else: {nil, field}

        case outputs do
          %{^key => [last]} -> {{:ok, last}, state}
          %{^key => [first | rest]} -> {{:ok, first}, put_in(state.outputs[key], rest)}
          _ -> {:none, state}
        end
      end)

    # Not in the agent: the function is the test's.
    with {:ok, value} when is_function(value, 1) <- taken, do: {:ok, value.(inputs)}
  end

  @doc "Sets the result of a command, or a function of its args."
  @spec set_result(t(), String.t(), term()) :: :ok
  def set_result(script, command, result) do
    Agent.update(script, &put_in(&1.results[command], result))
  end

  @doc "Returns whether the test has set a result for a command."
  @spec result?(t(), String.t()) :: boolean()
  def result?(script, command), do: Agent.get(script, &is_map_key(&1.results, command))

  @doc "Returns the result that the test has set for a command, if any."
  @spec result(t(), String.t(), term()) :: {:ok, term()} | :none
  def result(script, command, args) do
    case Agent.get(script, & &1.results) do
      %{^command => function} when is_function(function, 1) -> {:ok, function.(args)}
      %{^command => result} -> {:ok, result}
      _ -> :none
    end
  end

  @doc "Makes a command fail, so many times or (`:infinity`) until the error is `nil`."
  @spec set_error(t(), String.t(), Error.t() | nil, pos_integer() | :infinity) :: :ok
  def set_error(script, command, error, times) do
    Agent.update(script, fn state ->
      errors =
        if error,
          do: Map.put(state.errors, command, {error, times}),
          else: Map.delete(state.errors, command)

      %{state | errors: errors}
    end)
  end

  @doc "Raises the error that the test has set for a command, if any."
  @spec raise_error!(t(), String.t()) :: :ok
  def raise_error!(script, command) do
    error =
      Agent.get_and_update(script, fn state ->
        case state.errors do
          %{^command => {error, :infinity}} ->
            {error, state}

          %{^command => {error, 1}} ->
            {error, %{state | errors: Map.delete(state.errors, command)}}

          %{^command => {error, times}} ->
            {error, put_in(state.errors[command], {error, times - 1})}

          _ ->
            {nil, state}
        end
      end)

    if error, do: raise(error), else: :ok
  end

  @doc "Makes calls of a command take so many ms."
  @spec set_delay(t(), String.t(), non_neg_integer()) :: :ok
  def set_delay(script, command, ms), do: Agent.update(script, &put_in(&1.delays[command], ms))

  @doc "Returns how many ms a call of a command takes."
  @spec delay(t(), String.t()) :: non_neg_integer()
  def delay(script, command), do: Agent.get(script, &Map.get(&1.delays, command, 0))

  @doc "Sets which tools a run calls, as `{name, arguments}`."
  @spec set_tool_calls(t(), String.t() | nil, [{String.t(), map()}]) :: :ok
  def set_tool_calls(script, program_id, calls) do
    Agent.update(script, &put_in(&1.tool_calls[program_id], calls))
  end

  @doc "Returns the calls of tools that the test has set, or `nil`."
  @spec tool_calls(t(), String.t()) :: [{String.t(), map()}] | nil
  def tool_calls(script, program_id) do
    Agent.get(script, &Map.get(&1.tool_calls, program_id, &1.tool_calls[nil]))
  end

  @doc "Records a request."
  @spec record(t(), recorded()) :: :ok
  def record(script, request),
    do: Agent.update(script, &%{&1 | requests: [request | &1.requests]})

  @doc "Returns the requests of a command, or all that bridges do not send by themselves, oldest first."
  @spec requests(t(), String.t() | nil) :: [recorded()]
  def requests(script, command) do
    wanted? = &if command, do: &1.command == command, else: &1.command not in @housekeeping
    script |> Agent.get(& &1.requests) |> Enum.reverse() |> Enum.filter(wanted?)
  end
end
