defmodule DSPex.PythonBridge.Mock.Documents do
  @moduledoc """
  What programs have learned, and their documents, in the form that a worker reads and writes.

  A program's `:learned` has for each predictor `%{instructions: text | nil, demos: [demo]}`; a demo is a
  map of fields. A mock knows the main predictor, and those of documents.
  """

  alias DSPex.PythonBridge.Error
  alias DSPex.PythonBridge.Mock.{Args, Modules, Programs, Schemas, State}

  @version 1
  @doc "Returns the name of the predictor that writes the outputs of a program."
  @spec main(map()) :: String.t()
  def main(program), do: Modules.type(program.kind, program.options).main || "self"

  @doc "Returns what a program learns from examples that have been checked."
  @spec learned(map(), [map()]) :: map()
  def learned(_program, []), do: %{}

  def learned(program, examples) do
    demos =
      for %{"inputs" => inputs, "outputs" => outputs} <- examples, do: Map.merge(inputs, outputs)

    %{main(program) => %{instructions: nil, demos: demos}}
  end

  @spec get(map(), State.call(), State.t()) :: {map(), State.t()}
  def get(args, call, state) do
    {info, state} = Programs.info(args, call, state)
    include = args["include"] || []
    program = Programs.find!(args["program_id"], call, state)

    if include == [] do
      {info, state}
    else
      predictors =
        for {name, learned} <- all_learned(program), into: %{} do
          demos = Enum.map(learned.demos, &sides(&1, program))
          {name, Map.take(%{"demos" => demos, "instructions" => learned.instructions}, include)}
        end

      result = Map.merge(info, predictors[main(program)] || %{})
      {Map.put(result, "predictors", predictors), state}
    end
  end

  defp all_learned(program) do
    own = instructions(program.checked)
    blank = %{main(program) => %{instructions: nil, demos: []}}

    for {name, learned} <- Map.merge(blank, program.learned),
        do: {name, %{learned | instructions: learned.instructions || own}}
  end

  defp instructions(%{description: "", inputs: inputs, outputs: outputs}) do
    [inputs, outputs] =
      for fields <- [inputs, outputs], do: Enum.map_join(fields, ", ", &"`#{&1.name}`")

    "Given the fields #{inputs}, produce the fields #{outputs}."
  end

  defp instructions(%{description: description}), do: description

  defp sides(demo, program) do
    names = Enum.map(program.checked.inputs, & &1.name)
    {inputs, outputs} = Map.split(demo, names)
    %{"inputs" => inputs, "outputs" => outputs}
  end

  @spec export(map(), State.call(), State.t()) :: {map(), State.t()}
  def export(args, call, state) do
    program = Programs.find!(args["program_id"], call, state)
    {%{"program_id" => program.id, "document" => document!(program)}, state}
  end

  @doc "Returns a program as a document. Raises `:not_allowed` for one of the operator."
  @spec document!(map()) :: map()
  def document!(%{kind: "module", id: id}) do
    message =
      "#{id} was registered by the operator of the worker (--program): its code cannot be a document"

    raise Error.new(:not_allowed, message, %{"program_id" => id, "registered" => true})
  end

  def document!(program) do
    predictors =
      for {name, learned} <- all_learned(program),
          into: %{},
          do: {name, state_of(learned, program)}

    state = if Map.keys(predictors) == ["self"], do: predictors["self"], else: predictors

    definition =
      for {key, value} <- [
            {"tools", Enum.map(program.tools, fn {_, tool} -> declared(tool) end)},
            {"max_iters", program.max_iters},
            {"options", program.options}
          ],
          value not in [nil, [], %{}],
          into: %{
            "version" => @version,
            "program_type" => program.kind,
            "signature" => program.signature
          },
          do: {key, value}

    Map.put(state, "metadata", %{"dependency_versions" => %{}, "bridge" => definition})
  end

  defp state_of(learned, program) do
    reasoning = %{name: "reasoning", description: ""}
    adds = Modules.type(program.kind, program.options).adds
    added = if adds == "reasoning", do: [reasoning], else: []

    fields =
      for field <- program.checked.inputs ++ added ++ program.checked.outputs do
        words = field.name |> String.split("_") |> Enum.map_join(" ", &String.capitalize/1)
        description = if field.description == "", do: "${#{field.name}}", else: field.description
        %{"prefix" => words <> ":", "description" => description}
      end

    %{
      "traces" => [],
      "train" => [],
      "demos" => learned.demos,
      "signature" => %{"instructions" => learned.instructions, "fields" => fields},
      "lm" => nil
    }
  end

  defp declared(tool), do: Map.get(tool, :declared, %{"name" => tool.name})

  @spec import_program(map(), State.call(), State.t()) :: {map(), State.t()}
  def import_program(%{"document" => document} = args, call, state) do
    id = args["program_id"]
    existing = id && State.own_program(State.session(state, call), id)
    definition = definition!(document, existing)
    if_exists = if definition, do: args["if_exists"] || "error", else: "replace"

    if existing && if_exists == "error" do
      message = "Program with ID '#{id}' already exists"
      raise Error.new(:program_exists, message, %{"program_id" => id})
    end

    program = imported!(id || Programs.uuid(), document, definition, existing)
    if existing == nil, do: Programs.check_id!(program.id, state)

    status =
      cond do
        existing == nil -> "created"
        if_exists == "keep" -> "exists"
        true -> "replaced"
      end

    result = %{
      "program_id" => program.id,
      "status" => status,
      "program_type" => program.kind,
      "predictors" => Map.keys(program.learned)
    }

    if status == "exists" do
      {result, state}
    else
      State.check_quota!(state, call, program.id)
      {result, State.put_program(state, call, program)}
    end
  end

  defp definition!(%{"metadata" => %{} = metadata}, existing) do
    if metadata["bridge"] == nil and existing == nil do
      message =
        "args.document: a document of DSPy does not define a program: create the program first, in " <>
          "this session, and send its program_id"

      raise Args.invalid("args.program_id", message)
    end

    metadata["bridge"]
  end

  defp definition!(_document, _existing) do
    message =
      "args.document: not a program: expected a map with metadata, as export_program returns or " <>
        "DSPy's save writes"

    raise Args.invalid("args.document", message, %{"expected" => "document"})
  end

  defp imported!(_id, document, nil, existing), do: %{existing | learned: read!(document)}

  defp imported!(id, document, definition, _existing) do
    tools = Schemas.tools!(definition["tools"] || [])

    args = Map.merge(definition["options"] || %{}, Map.delete(definition, "options"))
    program = Programs.define!(id, args, tools, nil, "args.document", "metadata.bridge.signature")

    %{program | learned: read!(document)}
  end

  defp read!(document) do
    parts = Map.delete(document, "metadata")
    parts = if is_map_key(parts, "signature"), do: %{"self" => parts}, else: parts

    for {name, part} <- parts, into: %{} do
      case part do
        %{"signature" => %{"instructions" => text}, "demos" => demos} when is_list(demos) ->
          {name, %{instructions: text, demos: demos}}

        _ ->
          message = "args.document: not a program: a predictor has demos and a signature"
          raise Args.invalid("args.document", message)
      end
    end
  end

  @doc "Refuses files: a mock has no folder for them."
  @spec file(map(), State.call(), State.t()) :: no_return()
  def file(args, call, state) do
    if is_map_key(args, "program_id") and not is_map_key(args, "if_exists"),
      do: Programs.find!(args["program_id"], call, state)

    raise Error.new(
            :not_allowed,
            "this worker has no folder for files of programs; start it with --state-dir"
          )
  end

  @spec history(map(), State.call(), State.t()) :: {map(), State.t()}
  def history(_args, _call, state), do: {%{"history" => []}, state}

  @spec inspect_call(map(), State.call(), State.t()) :: no_return()
  def inspect_call(%{"id" => id}, _call, _state) do
    raise Args.invalid("args.id", "args.id: the session's history has no call #{id}")
  end
end
