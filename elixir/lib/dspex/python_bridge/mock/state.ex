defmodule DSPex.PythonBridge.Mock.State do
  @moduledoc """
  What one worker of a mock remembers: its sessions, and the model of all of them.

  A session has programs and indexes in the order of their creation, tools, models, data, and settings.
  """

  alias DSPex.PythonBridge.Error
  alias DSPex.PythonBridge.Mock.Args

  # Characters.
  @longest_id 512

  # allows_code: whether programs may run code of models. sessions: by
  # id. models: of all sessions, by name ("" for the default one). quota: that of new sessions. registered:
  # programs of the operator, by id.
  defstruct sessions: %{},
            models: %{},
            default: "default",
            embedders: %{},
            allows_code: false,
            quota: %{},
            registered: [],
            requests: 0,
            failures: 0

  @type t :: %__MODULE__{}
  @type call :: %{session_id: String.t() | nil}

  @doc "Returns the state with the session, which is created if it does not exist."
  @spec open!(t(), String.t()) :: t()
  def open!(state, id) do
    length = String.length(id)

    if length not in 1..@longest_id do
      message = "session_id: must have 1 to #{@longest_id} characters, got #{length}"
      raise Args.invalid("session_id", message)
    end

    session = %{
      id: id,
      programs: [],
      indexes: [],
      tools: [],
      models: %{},
      data: %{},
      ttl: 3600.0,
      quota: Map.merge(%{"programs" => nil, "bytes" => nil}, state.quota),
      created_at: now(),
      # Until the first command that creates or changes it has answered.
      new: true
    }

    %{state | sessions: Map.put_new(state.sessions, id, session)}
  end

  @doc "Returns the session of a call, which has been opened."
  @spec session(t(), call()) :: map()
  def session(state, call), do: state.sessions[call.session_id || state.default]

  @doc "Changes the session of a call."
  @spec update(t(), call(), (map() -> map())) :: t()
  def update(state, call, change) do
    id = call.session_id || state.default
    %{state | sessions: Map.update!(state.sessions, id, change)}
  end

  @doc "Returns the default session if the session of the call is another one, `nil` otherwise."
  @spec inherited(t(), call()) :: map() | nil
  def inherited(state, call) do
    if session(state, call).id != state.default,
      do: state.sessions[state.default] || %{programs: [], tools: [], models: %{}}
  end

  @doc "Returns the session's program, or the default session's, or the operator's, or `nil`."
  @spec program(t(), call(), String.t()) :: map() | nil
  def program(state, call, id) do
    own_program(session(state, call), id) || own_program(inherited(state, call), id) ||
      own_program(%{programs: state.registered}, id)
  end

  @doc "Returns a program of one session, or `nil`."
  @spec own_program(map() | nil, String.t()) :: map() | nil
  def own_program(nil, _id), do: nil

  def own_program(session, id) do
    with {_, program} <- List.keyfind(session.programs, id, 0), do: program
  end

  @doc "Raises `:quota_exceeded` if the session may not have another program of that id."
  @spec check_quota!(t(), call(), String.t()) :: :ok
  def check_quota!(state, call, id) do
    %{programs: programs, quota: %{"programs" => limit}} = session(state, call)
    wanted = length(programs) + if(List.keymember?(programs, id, 0), do: 0, else: 1)

    if limit && wanted > max(limit, length(programs)) do
      message = "the session's quota is #{limit} programs; this change would need #{wanted}"
      details = %{"quota" => "programs", "limit" => limit, "wanted" => wanted}
      raise Error.new(:quota_exceeded, message, details)
    end

    :ok
  end

  @doc "Adds a program to the session, or puts it in the place of the one that it replaces."
  @spec put_program(t(), call(), map()) :: t()
  def put_program(state, call, program) do
    update(state, call, fn session ->
      programs = List.keystore(session.programs, program.id, 0, {program.id, program})
      %{session | programs: programs}
    end)
  end

  @doc "Counts a run of a program, which may have been deleted since."
  @spec count_run(t(), call(), map()) :: t()
  def count_run(state, call, program) do
    counted = fn programs ->
      for {id, one} <- programs do
        if one.ref == program.ref,
          do: {id, %{one | runs: one.runs + 1, last_run: now()}},
          else: {id, one}
      end
    end

    sessions =
      for {id, session} <- state.sessions, into: %{} do
        if id in [call.session_id, state.default],
          do: {id, %{session | programs: counted.(session.programs)}},
          else: {id, session}
      end

    %{state | sessions: sessions, registered: counted.(state.registered)}
  end

  @doc "Returns the tools of the session, and those of the default session with other names."
  @spec tools(t(), call()) :: [{String.t(), map()}]
  def tools(state, call) do
    inherited = with %{tools: tools} <- inherited(state, call), do: tools

    Enum.reduce(
      session(state, call).tools,
      inherited || [],
      &List.keystore(&2, elem(&1, 0), 0, &1)
    )
  end

  @doc "Returns the time as the worker writes it."
  @spec now() :: String.t()
  def now, do: DateTime.utc_now() |> DateTime.truncate(:millisecond) |> DateTime.to_iso8601()
end
