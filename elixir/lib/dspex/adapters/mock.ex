defmodule DSPex.Adapters.Mock do
  @moduledoc """
  An adapter without a worker, for tests. It generates answers from the types in the signature and
  the inputs; equal inputs give equal answers.

  The mock starts at the first call, or under a supervisor. `inject_error/2` makes a command fail,
  `set_response/2` sets the value of an output field, and `reset/0` deletes programs and settings.

  There is one such mock, which needs neither a language model nor tools, and does not
  check inputs. Tests that
  run at the same time, and those of applications that call `DSPex.PythonBridge.Bridge` or a pool, use
  `DSPex.PythonBridge.Mock`, which refuses whatever a worker refuses.
  """

  @behaviour DSPex.Adapters.Adapter

  use Agent
  use DSPex.Adapters.Commands, programs: false

  alias DSPex.PythonBridge.Error
  alias DSPex.PythonBridge.Mock.{Commands, Frames, Rows, Runs, Schemas, Script, State}

  @doc false
  @spec start_link(keyword()) :: Agent.on_start()
  def start_link(_options \\ []), do: Agent.start_link(&new/0, name: __MODULE__)

  defp new do
    {:ok, script} = Script.start_link([])
    %{script: script, worker: worker(), created: 0, executed: 0}
  end

  defp worker, do: %State{models: %{"" => %{name: "mock", full: "mock"}}}

  @doc "Deletes all programs, errors and responses."
  @spec reset() :: :ok
  def reset do
    update(fn state ->
      Script.clear(state.script)
      {:ok, %{state | worker: worker(), created: 0, executed: 0}}
    end)
  end

  @doc """
  Makes a command, such as `:execute_program`, fail until `reset/0` or until the error is `nil`.
  """
  @spec inject_error(atom(), Error.t() | nil) :: :ok
  def inject_error(command, error) do
    Script.set_error(script(), Atom.to_string(command), error, :infinity)
  end

  @doc "Sets the value of an output field in all further results."
  @spec set_response(atom() | String.t(), term()) :: :ok
  def set_response(field, value) do
    Script.set_outputs(script(), nil, to_string(field), [value])
  end

  @impl true
  def create_program(config) do
    args = config |> Map.new() |> Frames.plain()

    update("create_program", fn state ->
      args = Map.put_new(args, "id", "mock_program_#{state.created + 1}")
      state = with_tools(state, args)

      with {:ok, %{"program_id" => id, "status" => status}, state} <-
             answer(state, "create_program", args) do
        created = if status == "exists", do: 0, else: 1
        {{:ok, id}, %{state | created: state.created + created}}
      end
    end)
  end

  @impl true
  def execute_program(program_id, inputs, options \\ %{}) do
    inputs = Frames.plain(Map.new(inputs))
    options = options |> Map.new() |> Frames.plain() |> Map.take(["temperature", "max_tokens"])
    args = %{"program_id" => program_id, "inputs" => inputs, "options" => options}

    prepared =
      update("execute_program", fn state ->
        with {:run, run, worker} <- Commands.answer("execute_program", args, nil, state.worker) do
          worker = State.count_run(worker, run.call, run.program)
          {{:run, run, state.script}, %{state | worker: worker, executed: state.executed + 1}}
        else
          {:error, error, worker} -> {{:error, error}, %{state | worker: worker}}
        end
      end)

    # Not in the agent: a response may be a function of the test's.
    with {:run, run, script} <- prepared do
      result = Runs.answered!(run, "execute_program", script, Runs.no_host())
      {:ok, Map.delete(result, "execution_time")}
    end
  rescue
    error in Error -> {:error, error}
  end

  @doc """
  Answers a command, such as `:evaluate`; see `DSPex.Adapters.Commands`. Metrics of the host are not called.
  """
  @spec call(atom(), map(), term()) :: {:ok, term()} | {:error, Error.t()}
  def call(command, args, _options) do
    command = Atom.to_string(command)
    args = args |> Map.new() |> Frames.plain()

    answered =
      update(command, fn state ->
        case Commands.answer(command, args, nil, state.worker) do
          {:run, run, worker} -> {{:run, run, state.script}, %{state | worker: worker}}
          {kind, result, worker} -> {{kind, result}, %{state | worker: worker}}
        end
      end)

    with {:run, run, script} <- answered do
      {result, change} = Rows.run!(run, command, script, Runs.no_host())
      update(&{{:ok, result}, %{&1 | worker: change.(&1.worker)}})
    end
  rescue
    error in Error -> {:error, error}
  end

  @impl true
  def list_programs do
    update("list_programs", fn state ->
      {:ok, %{"programs" => programs}, state} = answer(state, "list_programs", %{})
      {{:ok, programs |> Enum.map(& &1["program_id"]) |> Enum.sort()}, state}
    end)
  end

  @impl true
  def delete_program(program_id) do
    update("delete_program", fn state ->
      with {:ok, _, state} <- answer(state, "delete_program", %{"program_id" => program_id}),
           do: {:ok, state}
    end)
  end

  @impl true
  def get_program_info(program_id) do
    update("get_program_info", fn state ->
      with {:ok, info, state} <- answer(state, "get_program_info", %{"program_id" => program_id}),
           do: {{:ok, info}, state}
    end)
  end

  @impl true
  def health_check, do: update("health_check", &{:ok, &1})

  @impl true
  def get_stats do
    update("get_stats", fn state ->
      stats = %{
        "adapter" => "mock",
        "programs_count" =>
          state.worker.sessions
          |> Map.get("default", %{programs: []})
          |> Map.get(:programs)
          |> length(),
        "programs_created" => state.created,
        "executions" => state.executed
      }

      {{:ok, stats}, state}
    end)
  end

  @impl true
  def supports_test_layer?(layer), do: layer == :layer_1

  @impl true
  def get_test_capabilities do
    %{
      python_execution: false,
      real_ml_models: false,
      protocol_validation: false,
      deterministic_outputs: true,
      error_injection: true,
      performance: :fastest
    }
  end

  # Programs of type react need tools, and nothing registers any here.
  defp with_tools(state, %{"program_type" => "react"} = args) do
    tools = for name <- args["tools"] || ["any"], do: {name, Schemas.any(name)}
    worker = State.open!(state.worker, "default")
    %{state | worker: State.update(worker, %{session_id: nil}, &%{&1 | tools: tools})}
  end

  defp with_tools(state, _args), do: state

  # Returns `{:ok, result, state}` or `{{:error, error}, state}`.
  defp answer(state, command, args) do
    case Commands.answer(command, args, nil, state.worker) do
      {:ok, result, worker} -> {:ok, result, %{state | worker: worker}}
      {:error, error, worker} -> {{:error, error}, %{state | worker: worker}}
    end
  end

  defp script, do: update(&{&1.script, &1})

  defp update(command, change) do
    Script.raise_error!(script(), command)
    update(change)
  rescue
    error in Error -> {:error, error}
  end

  defp update(change) do
    with {:error, {:already_started, _}} <- Agent.start(&new/0, name: __MODULE__), do: :ok
    Agent.get_and_update(__MODULE__, change)
  end
end
