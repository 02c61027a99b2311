defmodule DSPex.PythonBridge.Pool.Request do
  @moduledoc """
  What a caller asks of a pool, and the search for a worker that gets it. Shared by
  `DSPex.PythonBridge.Pool.Execution` and `DSPex.PythonBridge.Pool.Streams`.
  """

  alias DSPex.PythonBridge.{Connection, Error, OpenCall, Pool}
  alias DSPex.PythonBridge.Pool.{Choice, Server, Sessions}

  @default_name DSPex.PythonBridge.SessionPoolV2
  # Whose caller does not have to know that the state of the session is lost.
  @needs_no_state ~w(create_session cleanup_session)
  # Before the same worker is tried again, ms.
  @pause 2

  # attempts: how often a worker got it. deaths: how many of them have ended since. avoid: owners of
  # workers that have failed.
  @enforce_keys [:pool, :session_id, :command, :args, :envelope, :deadline, :idempotent]
  defstruct @enforce_keys ++ [attempts: 1, deaths: 0, avoid: []]

  @type t :: %__MODULE__{pool: Pool.t(), session_id: String.t() | nil}
  @type options :: timeout() | keyword()

  @doc """
  Returns the request of a call. Raises `ArgumentError` for invalid options and args, and
  `DSPex.PythonBridge.Error` if the pool does not run.
  """
  @spec new(String.t() | nil, atom() | String.t(), map() | keyword(), options()) :: t()
  def new(session_id, command, args, options) do
    {name, idempotent, options} = own(options)
    {timeout, envelope} = OpenCall.envelope(options)
    args = OpenCall.args(args)
    {of_options, envelope} = session_of_envelope(envelope)
    session_id = text(session_id || of_options || session_of(args))

    %__MODULE__{
      pool: Pool.fetch!(name),
      session_id: session_id,
      command: command,
      args: args,
      envelope: if(session_id, do: envelope ++ [{"session_id", session_id}], else: envelope),
      deadline: OpenCall.deadline(timeout),
      idempotent: idempotent
    }
  end

  @doc "Splits the options of a call: the pool's name, whether it may be repeated, all others."
  @spec own(options()) :: {atom(), boolean(), options()}
  def own(timeout) when not is_list(timeout), do: {@default_name, false, timeout}

  def own(options) do
    {name, options} = take(options, :pool_name, @default_name)
    {idempotent, options} = take(options, :idempotent, false)

    is_boolean(idempotent) ||
      raise ArgumentError, "the option :idempotent must be a boolean"

    {name, idempotent, options}
  end

  # As `Keyword.pop_first/3`, which is slower.
  defp take(options, key, default) do
    case :lists.keytake(key, 1, options) do
      {:value, {_, value}, options} -> {value, options}
      false -> {default, options}
    end
  end

  defp session_of_envelope(envelope) do
    case List.keytake(envelope, "session_id", 0) do
      {{_, id}, envelope} -> {id, envelope}
      nil -> {nil, envelope}
    end
  end

  # A worker takes the session from the args, too.
  defp session_of(%{session_id: id}), do: id
  defp session_of(%{"session_id" => id}), do: id
  defp session_of(_args), do: nil

  @doc "Returns a session id as text. Raises `ArgumentError` for anything else."
  @spec text(String.t() | atom()) :: String.t() | nil
  def text(id) when is_binary(id) or id == nil, do: id
  def text(id) when is_atom(id), do: Atom.to_string(id)
  def text(id), do: raise(ArgumentError, "a session id must be a string, not #{inspect(id)}")

  @doc """
  Runs a function with the connection of a worker. If it returns `:closed`, the worker has ended and was
  sent nothing: the function is run again with another one, until the deadline.
  """
  @spec on_worker(t(), (Connection.t(), t() -> result | :closed)) :: result | {:error, Error.t()}
        when result: tuple()
  def on_worker(request, run) do
    case place(request) do
      {:ok, connection} ->
        with :closed <- run.(connection, request), do: elsewhere(request, connection, run)

      {:ok, connection, new?} ->
        in_session(run.(connection, request), connection, new?, request, run)

      :none ->
        with {:ok, request} <- await(request), do: on_worker(request, run)

      {:error, error} ->
        {:error, error}
    end
  end

  @doc "Waits until a worker takes calls, and returns the request with what the pool is then."
  @spec await(t()) :: {:ok, t()} | {:error, Error.t()}
  def await(%{pool: %{name: name}} = request) do
    with {:ok, pool} <- Server.await(Pool.running!(name).server, request.deadline) do
      {:ok, %{request | pool: Pool.get(name) || pool}}
    end
  end

  defp place(%{session_id: nil, avoid: avoid, pool: pool}), do: Choice.choose(pool, avoid)

  defp place(%{session_id: id, pool: pool} = request),
    do: Sessions.place(pool, id, request.deadline)

  defp in_session(:closed, connection, _new?, request, run) do
    # So that the session does not get the same worker again, which may have yet to be noticed.
    if request.pool.isolate, do: Server.replace(request.pool.server, connection.owner, lost())
    elsewhere(request, connection, run)
  end

  defp in_session(result, _connection, new?, request, _run) do
    if new?, do: Sessions.reached(request.pool, request.session_id)
    result
  end

  @doc "Returns the error of a call whose session has lost its state."
  @spec lost() :: Error.t()
  def lost do
    Error.new(:session_lost, "the worker of the session has ended; its state is lost")
  end

  @doc "Returns whether the caller has to know that the state of the session is lost."
  @spec needs_state?(t()) :: boolean()
  def needs_state?(%{command: command}), do: to_string(command) not in @needs_no_state

  defp elsewhere(%{session_id: nil} = request, connection, run) do
    # There is no other one yet.
    if connection.owner in request.avoid, do: Process.sleep(@pause)

    again(%{request | avoid: [connection.owner | request.avoid]}, run)
  end

  defp elsewhere(%{session_id: id} = request, connection, run) do
    case Sessions.bereaved(request.pool, id, connection, request.deadline) do
      :lost ->
        if needs_state?(request), do: {:error, lost()}, else: again(request, run)

      _moved_or_new ->
        again(request, run)
    end
  end

  @doc "Looks for a worker again, unless the deadline has passed."
  @spec again(t(), (Connection.t(), t() -> result | :closed)) :: result | {:error, Error.t()}
        when result: tuple()
  def again(request, run) do
    if Connection.remaining(request.deadline) == 0,
      do: {:error, OpenCall.late("no worker was found in time")},
      else: on_worker(%{request | pool: Pool.fetch!(request.pool.name)}, run)
  end

  @doc "Returns what the pool does with the command, once the first worker has described its commands."
  @spec kind(t()) :: {Pool.kind(), t()} | {:error, Error.t()}
  def kind(%{pool: %{commands: commands}} = request) when commands == %{} do
    with {:ok, request} <- await(request), do: kind(request)
  end

  # The default session belongs to all workers.
  def kind(%{pool: %{default_session: id}, session_id: id} = request) when id != nil do
    kind(%{request | session_id: nil})
  end

  def kind(%{pool: pool, command: command} = request) do
    case Pool.command(pool, command) do
      {:refused, _} ->
        line = "#{command} is for one worker, and those of a pool belong to the pool"
        {:error, Error.new(:not_allowed, line)}

      {kind, true} ->
        {kind, %{request | idempotent: true}}

      {kind, _} ->
        {kind, request}
    end
  end

  @doc "Returns the request with the time that is left in its envelope, for a worker that gets it later."
  @spec shortened(t()) :: t()
  def shortened(%{deadline: :infinity} = request), do: request

  def shortened(request) do
    remaining = {"timeout_ms", Connection.remaining(request.deadline)}
    %{request | envelope: List.keyreplace(request.envelope, "timeout_ms", 0, remaining)}
  end

  @doc "Returns the number of a connection's slot."
  @spec slot(Connection.t()) :: pos_integer()
  def slot(%{name: {_pool, number}}), do: number
end
