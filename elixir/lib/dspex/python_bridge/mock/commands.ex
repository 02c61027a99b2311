defmodule DSPex.PythonBridge.Mock.Commands do
  @moduledoc """
  Carries out the commands of a mock: checks the args, opens the session, and calls the command.

  `answer/4` is a function of a request and the state of a worker. A run of a program is returned as
  what `DSPex.PythonBridge.Mock.Runs` needs.
  """

  alias DSPex.PythonBridge.{Error, Exits}

  alias DSPex.PythonBridge.Mock.{
    Args,
    Control,
    Declarations,
    Documents,
    Indexes,
    Models,
    Programs,
    Rows,
    Runs,
    Sessions,
    State
  }

  @commands Declarations.all()
  @names Enum.sort(Map.keys(@commands))
  # The lanes of commands that open their session, and of those that need the id of one.
  @opening ["session", "thread", "run", "everyone"]

  @doc "Returns whether calls of a command end before the next request is read."
  @spec inline?(String.t()) :: boolean()
  def inline?(command), do: match?(%{^command => {"inline", _, _}}, @commands)

  @doc "Returns whether a worker has a command."
  @spec known?(String.t()) :: boolean()
  def known?(command), do: is_map_key(@commands, command)

  @doc """
  Answers a request: `{:ok, result, state}`, `{:error, error, state}`, or `{:run, run, state}`.
  `session_id` is the one of the envelope.
  """
  @spec answer(String.t(), term(), String.t() | nil, State.t()) ::
          {:ok, term(), State.t()} | {:error, Error.t(), State.t()} | {:run, map(), State.t()}
  def answer(command, args, session_id, state) do
    if known?(command) do
      {call, opened} = opened!(command, args, session_id, state)
      counted = %{state | requests: state.requests + 1}
      carried_out(command, args, call, %{opened | requests: counted.requests}, counted)
    else
      message = "Unknown command: #{String.slice(command, 0, 80)}"
      failed(Error.new(:unknown_command, message, %{"known" => @names}), state)
    end
  rescue
    error in Error -> failed(error, state)
    # A fault of the mock: the test must see it, and the worker stays.
    fault -> failed(Error.new(:internal, Exits.line(:error, fault, __STACKTRACE__)), state)
  end

  @doc "Checks the args of a command alone."
  @spec check(String.t(), term()) :: :ok | {:error, Error.t()}
  def check(command, args) do
    with {_, _, types} when types != :unchecked <- @commands[command], do: checked!(args, types)
    :ok
  rescue
    error in Error -> {:error, error}
  end

  # A session that a refused request has opened stays open.
  defp carried_out(command, args, call, opened, before) do
    {_lane, _, types} = @commands[command]
    args = if types == :unchecked, do: %{}, else: checked!(args, types)

    case run(command, args, call, opened) do
      {:run, run, state} -> {:run, run, settled(state, call)}
      {result, state} -> {:ok, result, settled(state, call)}
    end
  rescue
    error in Error ->
      {lane, _, _} = @commands[command]
      failed(error, if(lane in @opening, do: settled(opened, call), else: before))
  end

  defp failed(error, state), do: {:error, error, %{state | failures: state.failures + 1}}

  defp checked!(args, types),
    do: Args.checked!(args, {:struct, Map.put_new(types, "session_id", {:nullable, :string})})

  # Returns the call, and the state in which its session is open if it has one.
  defp opened!(command, args, session_id, state) do
    {lane, _, types} = @commands[command]
    if lane in ["end_session", "end_all"], do: checked!(args, types)
    given = session_id || if(is_map(args), do: args["session_id"])

    if lane in @opening and not is_binary(given) and given != nil,
      do: checked!(%{"session_id" => given}, %{})

    id = if given == state.default and lane != "end_session", do: nil, else: given

    if lane == "end_session" and id == nil,
      do: raise(Args.invalid("args.session_id", "Session ID is required"))

    call = %{session_id: id}
    if lane in @opening, do: {call, State.open!(state, id || state.default)}, else: {call, state}
  end

  # A session that has been created is not new to the next command.
  defp settled(state, call) do
    id = call.session_id || state.default

    case state.sessions do
      %{^id => %{new: true} = session} ->
        %{state | sessions: %{state.sessions | id => %{session | new: false}}}

      _ ->
        state
    end
  end

  defp run("configure_lm", args, call, state), do: Models.configure(args, call, state)
  defp run("create_program", args, call, state), do: Programs.create(args, call, state)

  defp run("create_gemini_program", args, call, state),
    do: Programs.create_gemini(args, call, state)

  defp run("delete_program", args, call, state), do: Programs.delete(args, call, state)
  defp run("get_program_info", args, call, state), do: Programs.info(args, call, state)
  defp run("list_programs", args, call, state), do: Programs.list(args, call, state)
  defp run("register_tools", args, call, state), do: Programs.register_tools(args, call, state)
  defp run("create_session", args, call, state), do: Sessions.create(args, call, state)
  defp run("get_session", args, call, state), do: Sessions.get(args, call, state)
  defp run("list_sessions", args, call, state), do: Sessions.list(args, call, state)
  defp run("cleanup_session", args, call, state), do: Sessions.cleanup_session(args, call, state)
  defp run("cleanup", args, call, state), do: Sessions.cleanup(args, call, state)
  defp run("reset_state", args, call, state), do: Sessions.reset(args, call, state)
  defp run("get_session_data", args, call, state), do: Sessions.data(args, call, state)
  defp run("update_session_data", args, call, state), do: Sessions.update_data(args, call, state)

  defp run("get_program", args, call, state), do: Documents.get(args, call, state)
  defp run("export_program", args, call, state), do: Documents.export(args, call, state)
  defp run("import_program", args, call, state), do: Documents.import_program(args, call, state)
  defp run("save_program", args, call, state), do: Documents.file(args, call, state)
  defp run("load_program", args, call, state), do: Documents.file(args, call, state)
  defp run("configure_embedder", args, call, state), do: Indexes.configure(args, call, state)
  defp run("create_index", args, call, state), do: Indexes.create(args, call, state)
  defp run("add_to_index", args, call, state), do: Indexes.add(args, call, state)
  defp run("search_index", args, call, state), do: Indexes.search(args, call, state)
  defp run("delete_index", args, call, state), do: Indexes.delete(args, call, state)
  defp run("list_indexes", args, call, state), do: Indexes.list(args, call, state)
  defp run("embed", args, call, state), do: Indexes.embed(args, call, state)
  defp run("get_history", args, call, state), do: Documents.history(args, call, state)
  defp run("inspect_call", args, call, state), do: Documents.inspect_call(args, call, state)

  defp run(command, args, call, state)
       when command in ["execute_batch", "evaluate", "optimize"] do
    {run, state} = Rows.prepared!(command, args, call, state)
    {:run, run, state}
  end

  defp run("execute_" <> _, args, call, state) do
    {run, state} = Runs.prepared!(args, call, state)
    {:run, run, state}
  end

  defp run(command, args, _call, state), do: {Control.run(command, args, state), state}
end
