defmodule DSPex.PythonBridge.Pool.Options do
  @moduledoc """
  The options of a pool (`DSPex.PythonBridge.SessionPoolV2.start_link/1`): defaults and validation.
  """

  alias DSPex.PythonBridge.{Cluster, Options}

  @pool [
    name: DSPex.PythonBridge.SessionPoolV2,
    workers: nil,
    affinity: :strict,
    isolate: nil,
    queue: 4096,
    fork: true,
    idle_timeout: 30_000,
    session_idle: 300_000,
    max_sessions: 1_000,
    max_requests: nil,
    max_age: nil,
    max_rss: nil,
    drain_timeout: 60_000,
    sweep_interval: 30_000,
    retry_start: false,
    cluster: false
  ]

  @doc """
  Returns the pool's own options and those of its workers, each with defaults. Raises
  `ArgumentError` for invalid options.
  """
  @spec checked!(keyword()) :: {pool :: keyword(), worker :: keyword()}
  def checked!(options) do
    unless Keyword.keyword?(options), do: raise(ArgumentError, "options must be a keyword list")
    {pool, worker} = Keyword.split(options, Keyword.keys(@pool))
    pool = Keyword.merge(@pool, pool)
    for {key, value} <- pool, do: check!(key, value)
    worker = Options.checked!(worker)
    pool = Keyword.update!(pool, :workers, &bounds/1)
    {pool, Keyword.update!(worker, :args, &(queue(worker, pool) ++ &1))}
  end

  # Where a worker is connected to, its flags are decided there.
  defp queue(worker, pool) do
    if worker[:connect], do: [], else: ["--queue", to_string(pool[:queue])]
  end

  defp bounds(nil), do: bounds(System.schedulers_online())
  defp bounds(count) when is_integer(count), do: count..count
  defp bounds(range), do: range

  defp check!(key, value) do
    valid?(key, value) || raise ArgumentError, "#{inspect(key)} must be #{expected(key)}"
  end

  defp valid?(:name, value), do: is_atom(value) and value not in [nil, true, false]
  defp valid?(:workers, nil), do: true
  defp valid?(:workers, first..last//1), do: first >= 1 and last >= first
  defp valid?(:workers, value), do: whole?(value)
  defp valid?(:affinity, value), do: value in [:strict, :hint]
  defp valid?(:isolate, value), do: value in [nil, :session]
  defp valid?(key, value) when key in [:fork, :retry_start], do: is_boolean(value)
  defp valid?(:cluster, value), do: Cluster.valid?(value)
  defp valid?(key, nil) when key in [:max_requests, :max_age, :max_rss], do: true
  defp valid?(_key, value), do: whole?(value)

  defp whole?(value), do: is_integer(value) and value >= 1

  defp expected(:name), do: "an atom"
  defp expected(:workers), do: "a positive integer or a range of them"
  defp expected(:affinity), do: ":strict or :hint"
  defp expected(:isolate), do: ":session or nil"
  defp expected(key) when key in [:fork, :retry_start], do: "true or false"
  defp expected(key) when key in [:max_requests, :max_rss], do: "a positive integer, or nil"
  defp expected(:cluster), do: "true, false, or [heartbeat: ms] with 1 to 3600000 ms"
  defp expected(:max_age), do: "a positive integer in ms, or nil"
  defp expected(key) when key in [:queue, :max_sessions], do: "a positive integer"
  defp expected(_time), do: "a positive integer in ms"
end
