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
    PoolErrorHandler,
    RetryBudget,
    Telemetry
  }

  alias DSPex.PythonBridge.Pool.{Journal, Providers, Request, Server, Sessions}
  import Request, only: [on_worker: 2]

  @type result :: {:ok, term()} | {:ok, term(), map()} | {:error, Error.t()}

  @doc "Runs a call in the pool of this node."
  @spec run(Request.t()) :: result()
  def run(request) do
    case Request.kind(request) do
      {kind, %Request{} = request} -> execute(kind, request)
      {:error, error} -> {:error, error}
    end
  rescue
    error in Error -> {:error, error}
  end

  defp execute(:one, request), do: one(request)

  defp execute(:run, request) do
    model = request.args[:model] || request.args["model"]

    Providers.guarded(request.pool, request.session_id, model, fn ->
      result = one(request)
      {result, provider_failed?(result)}
    end)
  end

  defp execute(kind, %{session_id: nil} = request), do: all(kind, request)
  defp execute(:end_all, request), do: all(:end_all, request)
  defp execute(:end_session, request), do: end_session(request)
  defp execute(_change, request), do: request |> one() |> noted(request)

  defp provider_failed?({:error, error}), do: PoolErrorHandler.decide(error).against_breaker
  defp provider_failed?(_result), do: false

  # All workers

  defp all(kind, %{pool: pool} = request) do
    refuse_durable!(request.args)
    envelope = request.envelope

    case Journal.change(pool, kind, request.command, request.args, envelope, request.deadline) do
      :none ->
        with {:ok, request} <- Request.await(request), do: all(kind, request)

      result ->
        if kind == :end_all and elem(result, 0) == :ok, do: Sessions.clear(pool)
        noted(result, request)
    end
  end

  defp refuse_durable!(args) do
    if Map.get(args, :durable) || Map.get(args, "durable") do
      line = "the default session belongs to all workers of a pool, so it cannot be durable"
      raise Error.new(:not_allowed, line)
    end
  end

  defp noted(result, %{command: command} = request) do
    if to_string(command) == "configure_lm" and elem(result, 0) == :ok,
      do: Providers.configured(request.pool, request.session_id, result)

    result
  end

  # One worker

  defp end_session(%{session_id: id, pool: pool} = request) do
    result = one(request)

    with :ok <- elem(result, 0), %Connection{owner: owner} <- Sessions.find(pool, id) do
      Sessions.remove(pool, id, owner)
      if pool.isolate, do: Server.ended(pool.server, id)
    end

    result
  end

  defp one(request) do
    RetryBudget.record_call(request.pool.budget)
    on_worker(request, &attempt/2)
  end

  defp attempt(connection, %{command: command, envelope: envelope} = request) do
    Telemetry.checkout(connection, command, request.session_id)

    result =
      Telemetry.span(:call, connection, command, envelope, fn ->
        Call.attempt(connection, command, request.args, envelope, request.deadline)
      end)

    with {:error, error} <- result, do: failed(error, connection, request)
  end

  defp failed(error, connection, request) do
    report(error, connection, request)
    deaths = if error.code == :worker_crashed, do: request.deaths + 1, else: request.deaths
    request = %{request | deaths: deaths}
    decision = decide(error, request)

    if decision.repeat != nil and may_move?(error, request) and
         RetryBudget.take(request.pool.budget) do
      repeat(decision, error, connection, request)
    else
      {:error, error}
    end
  end

  defp decide(error, request) do
    PoolErrorHandler.decide(error,
      attempts: request.attempts,
      idempotent: request.idempotent,
      # A worker that says so has not begun with the call.
      started: error.code != :session_lost,
      deaths: request.deaths,
      # A worker that has ended is followed by another one.
      others: error.code == :worker_crashed or tuple_size(request.pool.slots) > 1,
      remaining: Connection.remaining(request.deadline)
    )
  end

  # The state of a session is in one worker: another one does not help against an overload.
  defp may_move?(%{code: :overloaded}, %{session_id: id}), do: id == nil
  defp may_move?(_error, _request), do: true

  defp repeat(decision, error, connection, request) do
    Telemetry.pool(:retry, %{attempt: request.attempts, delay: decision.delay}, %{
      pool: request.pool.name,
      slot: Request.slot(connection),
      command: request.command,
      code: error.code
    })

    Process.sleep(decision.delay)
    avoid = if decision.repeat == :another_slot, do: [connection.owner | request.avoid], else: []
    request = Request.shortened(%{request | attempts: request.attempts + 1, avoid: avoid})
    Request.again(request, &attempt/2)
  end

  # A call without any reply, not even that its deadline has passed: the worker does not answer.
  defp report(%{code: :deadline_exceeded, wire_code: nil} = error, connection, request) do
    Server.fault(request.pool.server, connection.owner, error)
  end

  defp report(_error, _connection, _request), do: :ok
end
