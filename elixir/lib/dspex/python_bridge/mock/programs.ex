defmodule DSPex.PythonBridge.Mock.Programs do
  @moduledoc """
  The commands that create, list, describe and delete programs, and that register tools.
  """

  alias DSPex.PythonBridge.Error

  alias DSPex.PythonBridge.Mock.{
    Args,
    Documents,
    Examples,
    Indexes,
    Models,
    Modules,
    Schemas,
    Settings,
    Signatures,
    State
  }

  @default_iterations 20
  @question_answer %{"inputs" => [%{"name" => "question"}], "outputs" => [%{"name" => "answer"}]}

  @doc "Returns how many calls of tools a run of a program may make."
  @spec iterations(map()) :: pos_integer()
  def iterations(program), do: program.max_iters || @default_iterations

  @spec create(map(), State.call(), State.t()) :: {map(), State.t()}
  def create(args, call, state, model \\ nil) do
    id = args["id"] || uuid()
    existing = State.own_program(State.session(state, call), id)
    if_exists = args["if_exists"] || "error"

    if existing && if_exists == "error" do
      message = "Program with ID '#{id}' already exists"
      raise Error.new(:program_exists, message, %{"program_id" => id})
    end

    if existing == nil, do: check_id!(id, state)
    {kind, demos} = {Map.get(args, "program_type", "predict"), args["demos"] || []}
    options = Modules.options(args)
    Settings.check_format!(args["adapter"])
    Modules.check_name!(kind, "args.program_type")
    Modules.check_options!(kind, options)
    tools = chosen_tools!(args, call, state)

    if args["index"], do: Indexes.visible!(args["index"], call, state, "args.index")

    for {index_id, number} <- Enum.with_index(args["indexes"] || []),
        do: Indexes.visible!(index_id, call, state, "args.indexes[#{number}]")

    Modules.check_allowed!(kind, state.allows_code)
    Modules.check_demos!(kind, options, demos)
    unless existing && if_exists == "keep", do: State.check_quota!(state, call, id)
    program = define!(id, args, tools, model)
    demos = Examples.read!(demos, program, "args.demos", complete: true)
    program = %{program | learned: Documents.learned(program, demos)}

    if existing && if_exists == "keep" do
      result = %{
        "program_id" => id,
        "status" => "exists",
        "signature" => existing.signature,
        "program_type" => existing.kind,
        "same_definition" => same?(existing, program)
      }

      {result, state}
    else
      result = %{
        "program_id" => id,
        "status" => if(existing, do: "replaced", else: "created"),
        "signature" => args["signature"],
        "program_type" => program.kind
      }

      {result, State.put_program(state, call, program)}
    end
  end

  @spec create_gemini(map(), State.call(), State.t()) :: {map(), State.t()}
  def create_gemini(args, call, state) do
    signature =
      if args["signature"] in [nil, [], %{}], do: @question_answer, else: args["signature"]

    if args["model"], do: Models.full_name!(args["model"], nil, "gemini")
    {created, state} = create(Map.put(args, "signature", signature), call, state, args["model"])
    model = Models.of_session(state, call)
    name = args["model"] || (model && model.name)
    {Map.merge(created, %{"type" => "gemini", "model_name" => name}), state}
  end

  @doc "Returns a checked program. Raises `:invalid_args`."
  @spec define!(
          String.t(),
          map(),
          [{String.t(), map()}],
          String.t() | nil,
          String.t(),
          String.t()
        ) :: map()
  def define!(id, args, tools, model \\ nil, path \\ "args", name \\ "signature") do
    kind = Map.get(args, "program_type", "predict")

    Modules.check_name!(kind, "#{path}.program_type")

    program = %{
      id: id,
      ref: make_ref(),
      signature: args["signature"],
      checked: Signatures.parse!(args["signature"], "#{path}.#{name}"),
      kind: kind,
      model: model,
      models: if(model, do: [], else: Models.names!(args["model"])),
      tools: tools,
      max_iters: args["max_iters"],
      adapter: args["adapter"],
      options: args |> Modules.options() |> Map.drop(["tools", "max_iters"]),
      learned: %{},
      created_at: State.now(),
      runs: 0,
      last_run: nil
    }

    Modules.check!(program, "args")
    program
  end

  @doc "Raises `:program_exists` if the operator has registered a program of that id."
  @spec check_id!(String.t(), State.t()) :: :ok
  def check_id!(id, state) do
    if List.keymember?(state.registered, id, 0) do
      message =
        "Program with ID '#{id}' already exists: the operator of the worker has registered it (--program)"

      raise Error.new(:program_exists, message, %{"program_id" => id, "registered" => true})
    end

    :ok
  end

  @doc "Returns a program that the operator has registered."
  @spec registered!(String.t(), map()) :: {String.t(), map()}
  def registered!(id, signature) do
    {id, %{define!(id, %{"signature" => signature}, [], nil, "programs", id) | kind: "module"}}
  end

  defp same?(one, other) do
    [one_is, other_is] =
      for program <- [one, other],
          do: Map.take(program, [:kind, :model, :models, :checked, :adapter, :options, :learned])

    one_is == other_is and
      (not Modules.takes_tools?(one) or
         {Map.new(one.tools), iterations(one)} == {Map.new(other.tools), iterations(other)})
  end

  defp chosen_tools!(args, call, state) do
    tools = State.tools(state, call)
    names = args["tools"] || Enum.map(tools, &elem(&1, 0))

    case Enum.reject(names, &List.keymember?(tools, &1, 0)) do
      [] ->
        Enum.map(names, &List.keyfind(tools, &1, 0))

      unknown ->
        names = Enum.join(unknown, ", ")

        message =
          "args.tools: no tool #{names} is registered in this session or the default session"

        raise Args.invalid("args.tools", message)
    end
  end

  @spec list(map(), State.call(), State.t()) :: {map(), State.t()}
  def list(args, call, state) do
    limit = args["limit"] || 1_000_000
    own = State.session(state, call).programs

    listed =
      for {id, program} <- Enum.take(own, limit), do: program |> info() |> Map.put("id", id)

    result = %{"programs" => listed, "total_count" => length(own)}
    registered = for {id, _} <- state.registered, do: id

    result =
      if registered == [],
        do: result,
        else: Map.put(result, "registered", Enum.take(registered, limit))

    case State.inherited(state, call) do
      nil ->
        {result, state}

      default ->
        ids = for {id, _} <- default.programs, not List.keymember?(own, id, 0), do: id
        {Map.put(result, "inherited", Enum.take(ids, limit)), state}
    end
  end

  @spec info(map(), State.call(), State.t()) :: {map(), State.t()}
  def info(args, call, state) do
    program = find!(args["program_id"], call, state)
    info = info(program)
    info = if program.options == %{}, do: info, else: Map.put(info, "options", program.options)

    cond do
      program.kind == "module" -> {Map.put(info, "registered", true), state}
      State.own_program(State.session(state, call), program.id) -> {info, state}
      true -> {Map.put(info, "inherited", true), state}
    end
  end

  defp info(program) do
    %{
      "program_id" => program.id,
      "signature" => program.signature,
      "program_type" => program.kind,
      "created_at" => program.created_at,
      "execution_count" => program.runs,
      "last_executed" => program.last_run
    }
  end

  @spec delete(map(), State.call(), State.t()) :: {map(), State.t()}
  def delete(args, call, state) do
    program = find!(args["program_id"], call, state)
    session = State.session(state, call)

    if program.kind == "module" do
      message =
        "#{program.id} was registered by the operator of the worker (--program) and cannot be deleted"

      details = %{"program_id" => program.id, "registered" => true}
      raise Error.new(:not_allowed, message, details)
    end

    unless State.own_program(session, program.id) do
      where =
        "(in session '#{session.id}'; the default session has one, which is deleted without a session_id)"

      details = %{"program_id" => program.id, "session_id" => session.id, "inherited" => true}
      raise Error.new(:program_not_found, "Program not found: #{program.id} #{where}", details)
    end

    remove = &%{&1 | programs: List.keydelete(&1.programs, program.id, 0)}
    {%{"program_id" => program.id, "status" => "deleted"}, State.update(state, call, remove)}
  end

  @doc "Returns the session's or the default session's program. Raises `:program_not_found`."
  @spec find!(String.t() | nil, State.call(), State.t()) :: map()
  def find!(nil, _call, _state),
    do: raise(Args.invalid("args.program_id", "Program ID is required"))

  def find!(id, call, state) do
    State.program(state, call, id) ||
      raise not_found(id, State.session(state, call).id, State.inherited(state, call))
  end

  defp not_found(id, session_id, inherited) do
    where = if inherited, do: " (in session '#{session_id}' or the default session)", else: ""
    details = %{"program_id" => id, "session_id" => session_id}
    Error.new(:program_not_found, "Program not found: #{id}#{where}", details)
  end

  @spec register_tools(map(), State.call(), State.t()) :: {map(), State.t()}
  def register_tools(args, call, state) do
    session = State.session(state, call)
    given = Schemas.tools!(args["tools"])
    kept = if args["replace"], do: [], else: session.tools
    tools = Enum.reduce(given, kept, &List.keystore(&2, elem(&1, 0), 0, &1))

    {replaced, added} =
      Enum.split_with(given, fn {name, _} -> List.keymember?(session.tools, name, 0) end)

    removed = Enum.reject(session.tools, fn {name, _} -> List.keymember?(tools, name, 0) end)

    result = %{
      "status" => "registered",
      "session_id" => session.id,
      "tools" => names(tools),
      "added" => names(added),
      "replaced" => names(replaced),
      "removed" => names(removed)
    }

    {result, State.update(state, call, &%{&1 | tools: tools})}
  end

  defp names(tools), do: Enum.map(tools, &elem(&1, 0))

  @doc "Returns a new id."
  @spec uuid() :: String.t()
  def uuid do
    <<a::32, b::16, _::4, c::12, _::2, d::14, e::48>> = :rand.bytes(16)
    parts = [{a, 8}, {b, 4}, {0x4000 + c, 4}, {0x8000 + d, 4}, {e, 12}]

    Enum.map_join(parts, "-", fn {number, digits} ->
      number |> Integer.to_string(16) |> String.downcase() |> String.pad_leading(digits, "0")
    end)
  end
end
