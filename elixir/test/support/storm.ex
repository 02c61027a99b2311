defmodule Storm do
  @moduledoc """
  Kills a worker of a pool every 100 ms under 64 callers, and the template every five seconds.

      MIX_ENV=test mix run -e 'Storm.main(60)'

  prints the counts: calls, those that got the answer of another call, errors, messages that are left
  in callers, processes that are left at the end.
  """

  alias DSPex.PythonBridge.SessionPoolV2

  @callers 64
  @pause 100
  @pool Storm.Pool

  def main(seconds) do
    Logger.configure(level: :none)
    counts = run(seconds)
    IO.inspect(counts)

    if counts.wrong + counts.stray + counts.left > 0 or counts.errors > counts.calls / 100,
      do: exit({:shutdown, 1})
  end

  @doc "Returns the counts of a storm."
  def run(seconds, options \\ []) do
    {:ok, _} = SessionPoolV2.start_link(Workers.options([name: @pool, workers: 4] ++ options))
    ends = now() + seconds * 1_000

    callers =
      for _ <- 1..@callers,
          do:
            Task.async(fn ->
              calls(ends, %{calls: 0, wrong: 0, errors: 0, stray: 0, slowest_ms: 0, codes: %{}})
            end)

    {killed, pids} = kill(ends, 0, MapSet.new())
    counts = Task.await_many(callers, 60_000) |> Enum.reduce(&merged/2)
    template = template()
    SessionPoolV2.stop(@pool)
    Process.sleep(1_000)
    left = Enum.count(MapSet.put(pids, template), &Workers.os_alive?/1)
    Map.merge(counts, %{killed: killed, left: left})
  end

  defp merged(one, other) do
    Map.merge(one, other, fn
      :slowest_ms, a, b -> max(a, b)
      :codes, a, b -> Map.merge(a, b, fn _, m, n -> m + n end)
      _, a, b -> a + b
    end)
  end

  defp calls(ends, counts) do
    number = :rand.uniform(1_000_000_000)
    started = now()

    result =
      SessionPoolV2.execute_anonymous(:echo_decoded, %{n: number},
        pool_name: @pool,
        timeout: 10_000
      )

    counts = Map.update!(counts, :slowest_ms, &max(&1, now() - started))
    counts = counts |> add(:calls, 1) |> add(outcome(result, number), 1) |> note(result)
    if now() < ends, do: calls(ends, counts), else: add(counts, :stray, unread())
  end

  defp outcome({:ok, %{"n" => number}}, number), do: :ok
  defp outcome({:ok, _}, _number), do: :wrong
  defp outcome({:error, _}, _number), do: :errors

  defp note(counts, {:error, error}), do: %{counts | codes: add(counts.codes, error.code, 1)}
  defp note(counts, _result), do: counts

  defp add(counts, key, count), do: Map.update(counts, key, count, &(&1 + count))

  defp unread, do: Process.info(self(), :message_queue_len) |> elem(1)

  defp kill(ends, count, pids) do
    workers = for %{worker_pid: pid} when is_integer(pid) <- slots(), do: pid
    victim = if rem(count, 50) == 49, do: template(), else: workers != [] && Enum.random(workers)
    if victim, do: :os.cmd(~c"kill -9 #{victim} 2>/dev/null")
    Process.sleep(@pause)
    pids = MapSet.union(pids, MapSet.new(workers))
    if now() < ends, do: kill(ends, count + 1, pids), else: {count + 1, pids}
  end

  defp slots, do: Map.get(SessionPoolV2.get_pool_status(@pool), :slots, [])

  defp template do
    case :sys.get_state(Module.concat(@pool, "Template")).current do
      %{os_pid: pid} -> pid
      nil -> nil
    end
  end

  defp now, do: System.monotonic_time(:millisecond)
end
