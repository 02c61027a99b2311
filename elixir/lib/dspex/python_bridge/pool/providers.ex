defmodule DSPex.PythonBridge.Pool.Providers do
  @moduledoc """
  The circuit breaker of each provider of models: while runs of programs fail because of a provider,
  further ones return `:circuit_open` and do not reach a worker.

  Which provider a run uses is known from the `configure_lm` of its session, or of all sessions, that
  has gone through the pool, and from the `model` of the run. Runs whose provider is not known, and those
  on several models, are not guarded.
  """

  alias DSPex.PythonBridge.{CircuitBreaker, Error, Pool}

  # In the worker's process, or in this BEAM.
  @local ["host", "offline", "scripted"]

  @doc "Returns a new table, of the calling process."
  # Ordered, so that the providers of a session are found without reading all others.
  @spec new_table() :: :ets.table()
  def new_table, do: :ets.new(__MODULE__, [:public, :ordered_set, read_concurrency: true])

  @doc "Notes the provider that a session, or `nil` for all, was configured with."
  @spec configured(Pool.t(), String.t() | nil, tuple()) :: :ok
  def configured(pool, session_id, result) do
    with %{"provider" => provider} = configured when is_binary(provider) <- elem(result, 1) do
      :ets.insert(pool.providers, {{session_id, Map.get(configured, "name", "")}, provider})
    end

    :ok
  rescue
    # The pool has been stopped.
    ArgumentError -> :ok
  end

  @doc "Returns the providers of all sessions, as `share/2` takes them."
  @spec shared(Pool.t()) :: list()
  def shared(pool), do: :ets.match_object(pool.providers, {{nil, :_}, :_})

  @doc "Notes the providers of all sessions on another node."
  @spec share(Pool.t(), list()) :: true
  def share(pool, providers), do: :ets.insert(pool.providers, providers)

  @doc "Forgets a session that has ended."
  @spec forget(Pool.t(), String.t()) :: true
  def forget(pool, session_id), do: :ets.match_delete(pool.providers, {{session_id, :_}, :_})

  @doc """
  Runs a call on a model (its `model` argument), unless the circuit of its provider is open. `run` returns the result and whether the
  provider has failed.
  """
  @spec guarded(Pool.t(), String.t() | nil, term(), (() -> {result, failed? :: boolean()})) ::
          result | {:error, Error.t()}
        when result: tuple()
  def guarded(pool, session_id, model, run) do
    case provider(pool, session_id, model) do
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

  defp provider(pool, session_id, model) when is_atom(model) or is_binary(model) do
    name = to_string(model)

    Enum.find_value([session_id, nil], fn session_id ->
      with [{_, provider}] <- :ets.lookup(pool.providers, {session_id, name}),
           do: provider,
           else: (_ -> nil)
    end)
  rescue
    # The pool has been stopped.
    ArgumentError -> nil
  end

  defp provider(_pool, _session_id, _several), do: nil
end
