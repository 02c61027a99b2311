defmodule DSPex.PythonBridge.Pool.Providers do
  @moduledoc """
  The circuit breaker of each provider of models: while runs of programs fail because of a provider,
  further ones return `:circuit_open` and do not reach a worker.

  Which provider a run uses is known from the `configure_lm` of its session, or of all sessions, that
  has gone through the pool. Runs whose provider is not known are not guarded.
  """

  alias DSPex.PythonBridge.{CircuitBreaker, Error, Pool}

  # In the worker's process.
  @local ["offline", "scripted"]

  @doc "Returns a new table, of the calling process."
  @spec new_table() :: :ets.table()
  def new_table, do: :ets.new(__MODULE__, [:public, read_concurrency: true])

  @doc "Notes the provider that a session, or `nil` for all, was configured with."
  @spec configured(Pool.t(), String.t() | nil, tuple()) :: :ok
  def configured(pool, session_id, result) do
    with %{"provider" => provider} when is_binary(provider) <- elem(result, 1) do
      :ets.insert(pool.providers, {session_id, provider})
    end

    :ok
  rescue
    # The pool has been stopped.
    ArgumentError -> :ok
  end

  @doc "Forgets a session that has ended."
  @spec forget(Pool.t(), String.t()) :: true
  def forget(pool, session_id), do: :ets.delete(pool.providers, session_id)

  @doc """
  Runs a call, unless the circuit of its provider is open. `run` returns the result and whether the
  provider has failed.
  """
  @spec guarded(Pool.t(), String.t() | nil, (() -> {result, failed? :: boolean()})) ::
          result | {:error, Error.t()}
        when result: tuple()
  def guarded(pool, session_id, run) do
    case provider(pool, session_id) do
      provider when provider in [nil | @local] -> elem(run.(), 0)
      provider -> guarded_by(pool.breaker, provider, run)
    end
  end

  defp guarded_by(breaker, provider, run) do
    with {:ok, permit} <- CircuitBreaker.admit(breaker, provider) do
      try do
        run.()
      catch
        kind, reason ->
          CircuitBreaker.settle(breaker, provider, permit, nil)
          :erlang.raise(kind, reason, __STACKTRACE__)
      else
        {result, failed?} ->
          CircuitBreaker.settle(breaker, provider, permit, succeeded(result, failed?))
          result
      end
    end
  end

  defp succeeded(_result, true), do: false
  defp succeeded({:error, _}, false), do: nil
  defp succeeded(_result, false), do: true

  defp provider(pool, session_id) do
    own = session_id && :ets.lookup(pool.providers, session_id)

    case own || [] do
      [{_, provider}] -> provider
      [] -> all(pool)
    end
  rescue
    # The pool has been stopped.
    ArgumentError -> nil
  end

  defp all(pool) do
    case :ets.lookup(pool.providers, nil) do
      [{_, provider}] -> provider
      [] -> nil
    end
  end
end
