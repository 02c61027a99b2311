defmodule DSPex.PythonBridge.Mock.Runs do
  @moduledoc """
  Runs of programs without a model: the checks of a real run, its events and its tools, and made-up
  outputs.

  `prepared!/3` takes from the state of a worker what a run needs; later changes of the session do not
  affect it.
  """

  alias DSPex.PythonBridge.{Error, Text}

  alias DSPex.PythonBridge.Mock.{
    Inputs,
    MadeUp,
    Models,
    Modules,
    Programs,
    Schemas,
    Script,
    Settings,
    State
  }

  # How a run reaches the host: events, and requests that return `{:ok, result}` or `:error`.
  @type host :: %{
          emit: (String.t(), map() -> term()),
          ask: (String.t(), map() -> {:ok, term()} | {:error, String.t()})
        }

  @longest_error 300

  @doc """
  Returns what a run needs, and the state, to which a program of `program_data` is added. Raises
  `DSPex.PythonBridge.Error` for a request that is refused.
  """
  @spec prepared!(map(), State.call(), State.t()) :: {map(), State.t()}
  def prepared!(args, call, state) do
    inputs = if args["inputs"] in [nil, []], do: %{}, else: args["inputs"]
    {program, state} = find_or_add!(args, call, state)
    Settings.check_format!(args["adapter"])
    if options = args["options"], do: check_options!(options)
    names = Models.names!(args["model"])

    run = %{
      program: program,
      inputs: inputs,
      model: Models.chosen!(names, program, state, call),
      tools: if(program.kind == "module", do: State.tools(state, call), else: program.tools),
      session_id: State.session(state, call).id,
      call: call
    }

    {run, state}
  end

  defp check_options!([]), do: :ok

  defp check_options!(options),
    do: Settings.check_generation!(options, "args.options")

  defp find_or_add!(%{"program_id" => id, "program_data" => %{} = data}, call, state)
       when id != nil do
    name = Enum.find(["signature", "signature_def"], &(data[&1] not in [nil, [], %{}]))
    known = State.program(state, call, id)
    if name && (known == nil or known.kind == "module"), do: Programs.check_id!(id, state)

    cond do
      name == nil ->
        {Programs.find!(id, call, state), state}

      known && data["program_type"] in [nil, known.kind] && known.signature == data[name] ->
        {known, state}

      true ->
        args = %{
          "signature" => data[name],
          "program_type" => data["program_type"] || (known && known.kind) || "predict"
        }

        tools = State.tools(state, call)
        State.check_quota!(state, call, id)
        program = Programs.define!(id, args, tools, nil, "args.program_data", name)
        {program, State.put_program(state, call, program)}
    end
  end

  defp find_or_add!(args, call, state),
    do: {Programs.find!(args["program_id"], call, state), state}

  @doc "Returns a host that nothing reaches."
  @spec no_host() :: host()
  def no_host do
    %{
      emit: fn _event, _data -> :ok end,
      ask: fn _command, _args -> {:error, "this mock calls no functions"} end
    }
  end

  @doc "Runs a program. Returns its result, or raises `DSPex.PythonBridge.Error`."
  @spec run!(map(), String.t(), Script.t(), host(), String.t()) :: map()
  def run!(run, command, script, host, path \\ "args.inputs") do
    owner = if run.program.kind == "module", do: run.program.id, else: "the signature"
    Inputs.check!(run.program.checked.inputs, run.inputs, owner, path)
    answered!(run, command, script, host)
  end

  @doc "Runs a program whose inputs are not checked; otherwise like `run!/4`."
  @spec answered!(map(), String.t(), Script.t(), host()) :: map()
  def answered!(%{program: program} = run, command, script, host) do
    started = System.monotonic_time(:microsecond)
    model = Models.configured!(run.model)
    # Those of a module of the operator tell its predictors and their calls apart.
    part = if program.kind == "module", do: %{"predictor" => "self", "call" => 1}, else: %{}
    host.emit.("status", Map.merge(part, %{"status" => "lm_call", "model" => model}))
    Process.sleep(Script.delay(script, command))
    Script.raise_error!(script, command)

    if program.kind == "module" or Modules.takes_tools?(program),
      do: call_tools!(run, script, host)

    outputs = outputs!(run, script)

    for {field, value} <- outputs,
        text <- pieces(value),
        do: host.emit.("chunk", Map.merge(part, %{"field" => field, "text" => text}))

    %{
      "program_id" => program.id,
      "outputs" => Map.new(outputs),
      "execution_time" => (System.monotonic_time(:microsecond) - started) / 1_000_000,
      "model" => model
    }
  end

  # As a test has set; if it has not, a program of type react calls each of its tools once.
  defp call_tools!(%{program: program, tools: tools} = run, script, host) do
    calls =
      Script.tool_calls(script, program.id) ||
        for {name, tool} <- tools,
            program.kind != "module",
            do: {name, arguments(tool, run.inputs)}

    for {name, arguments} <- Enum.take(calls, Programs.iterations(program)) do
      case List.keyfind(tools, name, 0) do
        {_, tool} ->
          call_tool(tool, arguments, run.session_id, host)

        nil ->
          known = Enum.map_join(tools, ", ", &elem(&1, 0))
          line = "the test has set a call of the tool '#{name}'; known: #{known}"
          raise Error.new(:lm_error, line)
      end
    end
  end

  # The required arguments: inputs of the same names if they fit, made-up values otherwise.
  defp arguments(%{members: {properties, required, _}} = tool, inputs) do
    made_up = Map.new(required, &{&1, MadeUp.argument(properties[&1] || %{}, &1)})
    given = Map.merge(made_up, Map.take(inputs, required))
    if Schemas.problem(tool, given), do: made_up, else: given
  end

  # Arguments that do not fit are not sent to the host.
  defp call_tool(tool, arguments, session_id, host) do
    unless Schemas.problem(tool, arguments) do
      host.emit.("tool_call", %{"name" => tool.name, "args" => arguments})

      result =
        case host.ask.("call_tool", %{
               "name" => tool.name,
               "args" => arguments,
               "session_id" => session_id
             }) do
          {:ok, result} -> result
          {:error, line} -> "error: #{String.slice(Text.line(line), 0, @longest_error)}"
        end

      host.emit.("tool_result", %{"name" => tool.name, "result" => result})
    end
  end

  defp outputs!(%{program: program, inputs: inputs}, script) do
    fields = program.checked.outputs
    outputs = for field <- fields, do: {field.name, output!(field, program.id, inputs, script)}

    added = Modules.type(program.kind, program.options).adds

    if added == nil or List.keymember?(outputs, added, 0) do
      outputs
    else
      field = %{name: added, type: :string, type_name: "string"}
      [{added, output!(field, program.id, inputs, script)} | outputs]
    end
  end

  defp output!(field, program_id, inputs, script) do
    case Script.output(script, program_id, field.name, inputs) do
      {:ok, value} ->
        with {path, reason} <- Inputs.problem(value, field.type, field.name) do
          message =
            "the value that the test has set for '#{path}': expected #{field.type_name}: #{reason}"

          details = %{"lm_code" => "adapter_parse_error", "field" => field.name}
          raise Error.new(:lm_error, message, details)
        end

        if field.type == :string, do: to_string(value), else: value

      :none ->
        MadeUp.value(field.type, field.name, :erlang.phash2({field.name, inputs}, 1000))
    end
  end

  # The text of a value in pieces, as a stream has them.
  defp pieces(text) when is_binary(text),
    do: Regex.scan(~r/\s*\S+|\s+\z/u, text) |> Enum.map(&hd/1)

  defp pieces(value), do: pieces(written(value))

  # As JSON, which needs no library here.
  defp written(nil), do: "null"
  defp written(value) when is_boolean(value) or is_number(value), do: to_string(value)
  defp written(text) when is_binary(text), do: inspect(text)
  defp written(list) when is_list(list), do: "[#{Enum.map_join(list, ", ", &written/1)}]"

  defp written(map) when is_map(map),
    do:
      "{#{Enum.map_join(map, ", ", fn {key, value} -> written(key) <> ": " <> written(value) end)}}"

  defp written(other), do: inspect(other)
end
