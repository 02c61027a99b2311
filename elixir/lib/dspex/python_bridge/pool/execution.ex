defmodule DSPex.PythonBridge.Pool.Execution do
  @moduledoc """
  Runs a call of a pool in the process that makes it: chooses a worker, sends the request, and decides
  after a failure whether to send it to another one (`DSPex.PythonBridge.PoolErrorHandler`).

  A call has one deadline, which includes every wait and every repetition, and one reply.
  """

  alias DSPex.PythonBridge.{
    Call,
    Connection,
    Error,
    EventStream,
    OpenCall,
    Pool,
    PoolErrorHandler,
    RetryBudget,
    Telemetry,
    Tools
  }

  alias DSPex.Tool

  alias DSPex.PythonBridge.Pool.{Choice, Journal, Server, Sessions}

  @default_name DSPex.PythonBridge.SessionPoolV2
  # Between two attempts to find a worker, ms.
  @pause 1

  # attempts: how often a worker got the call. deaths: how many of them a signal has ended. avoid:
  # owners of workers that have failed.
  @enforce_keys [:pool, :session_id, :command, :args, :envelope, :deadline, :idempotent]
  defstruct @enforce_keys ++ [attempts: 1, deaths: 0, avoid: []]

  @type options :: timeout() | keyword()
  @type result :: {:ok, term()} | {:ok, term(), map()} | {:error, Error.t()}

  @doc "Runs a call; see `DSPex.PythonBridge.SessionPoolV2.execute_in_session/4`."
  @spec run(String.t() | nil, atom() | String.t(), map() | keyword(), options()) :: result()
  def run(session_id, command, args, options) do
    {name, idempotent, options} = own(options)
    {timeout, envelope} = OpenCall.envelope(options)
    args = OpenCall.args(args)
    session_id = session_id || session_of(args)

    call = %__MODULE__{
      pool: pool!(name),
      session_id: session_id,
      command: command,
      args: args,
      envelope:
        if(session_id, do: envelope ++ [{"session_id", text(session_id)}], else: envelope),
      deadline: OpenCall.deadline(timeout),
      idempotent: idempotent
    }

    kind(call)
  rescue
    error in Error -> {:error, error}
  end

  # The options of the pool itself; all others are those of a call.
  defp own(timeout) when not is_list(timeout), do: {@default_name, false, timeout}

  defp own(options) do
    Keyword.keyword?(options) ||
      raise ArgumentError, "options must be a timeout or a keyword list"

    {own, options} = Keyword.split(options, [:pool_name, :idempotent])
    {Keyword.get(own, :pool_name, @default_name), Keyword.get(own, :idempotent, false), options}
  end

  defp session_of(%{session_id: id}), do: id
  defp session_of(%{"session_id" => id}), do: id
  defp session_of(_args), do: nil

  defp text(id) when is_binary(id), do: id
  defp text(id) when is_atom(id), do: Atom.to_string(id)
  defp text(id), do: raise(ArgumentError, "a session id must be a string, not #{inspect(id)}")

  # A pool that has no command yet has no worker yet.
  defp pool!(name) do
    pool = Pool.fetch!(name)
    pool
  end

  defp kind(%{pool: %{commands: commands}} = call) when commands == %{} do
    with {:ok, pool} <- Server.await(call.pool.server, call.deadline),
         do: kind(%{call | pool: pool})
  end

  defp kind(call) do
    {kind, idempotent} = Pool.command(call.pool, call.command)
    call = if idempotent, do: %{call | idempotent: true}, else: call

    case {kind, call.session_id} do
      {:one, nil} ->
        RetryBudget.record_call(call.pool.budget)
        attempt(call)

      {:refused, _} ->
        line = "#{call.command} is for one worker, and those of a pool belong to the pool"
        {:error, Error.new(:not_allowed, line)}

      {:end_all, _} ->
        with_all(call, :end_all)

      {kind, nil} ->
        with_all(call, kind)

      {:end_session, id} ->
        RetryBudget.record_call(call.pool.budget)
        end_session(call, text(id))

      {_one_or_all, id} ->
        RetryBudget.record_call(call.pool.budget)
        attempt(%{call | session_id: text(id)})
    end
  end

  # All workers

  defp with_all(call, kind) do
    refuse_durable_default!(call)

    case Journal.change(call.pool, kind, call.command, call.args, call.envelope, call.deadline) do
      :none ->
        with {:ok, pool} <- wait(call), do: with_all(%{call | pool: pool}, kind)

      result ->
        if kind == :end_all and elem(result, 0) == :ok, do: Sessions.clear(call.pool)
        result
    end
  end

  defp refuse_durable_default!(%{args: args}) do
    if args[:durable] || args["durable"] do
      raise Error.new(
              :not_allowed,
              "the default session belongs to all workers of a pool, so it cannot be durable"
            )
    end
  end

  # One worker

  defp end_session(call, id) do
    found = Sessions.find(call.pool, id)
    result = attempt(%{call | session_id: id})

    with true <- elem(result, 0) == :ok,
         %Connection{owner: owner} <- found || Sessions.find(call.pool, id) do
      Sessions.remove(call.pool, id, owner)
      if call.pool.isolate, do: Server.ended(call.pool.server, id)
    end

    result
  end

  defp attempt(call) do
    case place(call) do
      {:ok, connection} ->
        checked_out(call, connection)

        connection
        |> send_to(call)
        |> outcome(connection, call)

      :none ->
        with {:ok, pool} <- wait(call), do: attempt(%{call | pool: pool})

      {:error, error} ->
        {:error, error}
    end
  end

  defp place(%{session_id: nil, avoid: avoid, pool: pool}), do: Choice.choose(pool, avoid)
  defp place(%{session_id: id, pool: pool} = call), do: Sessions.place(pool, id, call.deadline)

  defp send_to(connection, %{command: command, envelope: envelope} = call) do
    Telemetry.span(:call, connection, command, envelope, fn ->
      Call.attempt(connection, command, call.args, envelope, call.deadline)
    end)
  end

  defp checked_out(call, connection) do
    Telemetry.checkout(connection, call.command, call.session_id)
  end

  defp outcome(:closed, connection, call), do: elsewhere(call, connection)
  defp outcome({:error, error}, connection, call), do: failed(error, connection, call)
  defp outcome(result, _connection, _call), do: result

  # Nothing was sent, because the worker has ended.
  defp elsewhere(%{session_id: nil} = call, connection) do
    again(%{call | avoid: [connection.owner | call.avoid]})
  end

  defp elsewhere(call, connection) do
    case Sessions.bereaved(call.pool, call.session_id, connection, call.deadline) do
      :lost ->
        {:error,
         Error.new(:session_lost, "the worker of the session has ended; its state is lost")}

      _moved_or_new ->
        again(call)
    end
  end

  defp again(call) do
    if Connection.remaining(call.deadline) == 0 do
      {:error, OpenCall.late("no worker was found in time")}
    else
      attempt(%{call | pool: Pool.fetch!(call.pool.name)})
    end
  end

  defp wait(call) do
    # The pool may have got a worker since this process has looked at it.
    with {:ok, pool} <- Server.await(call.pool.server, call.deadline) do
      Process.sleep(@pause)
      {:ok, Pool.get(pool.name) || pool}
    end
  end

  defp failed(error, connection, call) do
    killed? = PoolErrorHandler.killed?(error)
    call = %{call | deaths: call.deaths + if(killed?, do: 1, else: 0)}
    report(error, connection, call)

    decision =
      PoolErrorHandler.decide(error,
        attempts: call.attempts,
        idempotent: call.idempotent,
        # A worker that says so has not begun with the call.
        started: error.code != :session_lost,
        deaths: call.deaths,
        # A worker that has ended is followed by another one.
        others: error.code == :worker_crashed or tuple_size(call.pool.slots) > 1,
        remaining: Connection.remaining(call.deadline)
      )

    if decision.repeat != nil and may_move?(error, call) and RetryBudget.take(call.pool.budget) do
      Telemetry.pool(:retry, %{attempt: call.attempts, delay: decision.delay}, %{
        pool: call.pool.name,
        slot: slot(connection),
        command: call.command,
        code: error.code
      })

      Process.sleep(decision.delay)
      avoid = if decision.repeat == :another_slot, do: [connection.owner | call.avoid], else: []
      again(shortened(%{call | attempts: call.attempts + 1, avoid: avoid}))
    else
      {:error, error}
    end
  end

  # The state of a session is in one worker: another one does not help against an overload.
  defp may_move?(%{code: :overloaded}, %{session_id: id}), do: id == nil
  defp may_move?(_error, _call), do: true

  # A call without any reply, not even that its deadline has passed: the worker does not answer.
  defp report(%{code: :deadline_exceeded, wire_code: nil} = error, connection, call) do
    Server.fault(call.pool.server, connection.owner, error)
  end

  defp report(_error, _connection, _call), do: :ok

  defp shortened(%{deadline: :infinity} = call), do: call

  defp shortened(call) do
    remaining = {"timeout_ms", Connection.remaining(call.deadline)}
    %{call | envelope: List.keyreplace(call.envelope, "timeout_ms", 0, remaining)}
  end

  defp slot(%{name: {_pool, number}}), do: number

  @doc "Registers tools; see `DSPex.PythonBridge.SessionPoolV2.register_tools/2`."
  @spec register_tools([Tool.t()], keyword()) :: result()
  def register_tools(tools, options) do
    declared = Tools.declared!(tools)
    {session_id, rest} = Keyword.pop(options, :session_id)
    result = run(session_id, "register_tools", %{tools: declared}, rest)

    # The worker reports the session: without one it depends on the worker's mode. The workers of a
    # pool share their functions, so they need not be told of these.
    with {:ok, %{"session_id" => session_id}} <- result do
      Tools.put(Pool.fetch!(elem(own(rest), 0)).tools, session_id, tools)
    end

    result
  end

  @doc "Describes a session; see `DSPex.PythonBridge.SessionPoolV2.get_session_info/2`."
  @spec session_info(String.t(), options()) :: {:ok, map()} | {:error, Error.t()}
  def session_info(session_id, options) do
    {name, _, rest} = own(options)
    pool = Pool.fetch!(name)

    case Sessions.find(pool, text(session_id)) || chosen(pool) do
      nil ->
        {:error, Error.new(:overloaded, "no worker takes calls", %{"retry_after" => 0.1})}

      connection ->
        with {:ok, info} <-
               Call.run(connection, "get_session", %{session_id: text(session_id)}, rest) do
          {:ok, Map.put(info, "slot", slot(connection))}
        end
    end
  rescue
    error in Error -> {:error, error}
  end

  # Any worker knows the sessions of the store.
  defp chosen(pool) do
    with {:ok, connection} <- Choice.choose(pool), do: connection, else: (_ -> nil)
  end

  # Streams

  @doc "Returns the stream of a call; see `DSPex.PythonBridge.SessionPoolV2.stream/3`."
  @spec stream(atom() | String.t(), map() | keyword(), options()) :: Enumerable.t()
  def stream(command, args, options) do
    {name, _idempotent, options} = own(options)

    session_id =
      (Keyword.keyword?(options) && options[:session_id]) || session_of(OpenCall.args(args))

    options =
      if session_id && is_list(options),
        do: Keyword.put(options, :session_id, session_id),
        else: options

    EventStream.new(name, command, args, options, fn deadline, open ->
      on_worker(Pool.fetch!(name), session_id && text(session_id), deadline, open, [])
    end)
  end

  defp on_worker(pool, session_id, deadline, open, avoid) do
    call = %{pool: pool, session_id: session_id, deadline: deadline, avoid: avoid}

    case place(call) do
      {:ok, connection} ->
        with :closed <- open.(connection) do
          if session_id && Sessions.bereaved(pool, session_id, connection, deadline) == :lost do
            {:error,
             Error.new(:session_lost, "the worker of the session has ended; its state is lost")}
          else
            on_worker(Pool.fetch!(pool.name), session_id, deadline, open, [
              connection.owner | avoid
            ])
          end
        end

      :none ->
        with {:ok, pool} <- wait(call), do: on_worker(pool, session_id, deadline, open, avoid)

      {:error, error} ->
        {:error, error}
    end
  rescue
    error in Error -> {:error, error}
  end
end
