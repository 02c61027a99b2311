defmodule ClusterStorm do
  @moduledoc """
  Kills, freezes and cuts off one of three nodes after the other, stops its pool, or kills the processes by
  which that takes part in the cluster, while callers on all nodes append to the ledgers of durable sessions.

      MIX_ENV=test mix run -e 'ClusterStorm.main(120)'

  prints the counts (`ClusterLoad`), how often which harm was done, and what is wrong with the ledgers.
  """

  import Clusters, only: [wait_for: 1]

  @names ~w(a b c)
  @sessions for n <- 1..30, do: "session #{n}"
  @harms [:kill, :freeze, :cut, :hold, :stop, :crash]

  def main(seconds) do
    Logger.configure(level: :none)
    result = run(seconds)
    IO.inspect(Map.drop(result, [:acknowledged, :sent]), limit: :infinity)

    if result.wrong + result.stale + result.stray > 0 or result.faults != [],
      do: exit({:shutdown, 1})
  end

  @doc "Returns the counts of a storm."
  def run(seconds) do
    {:ok, cluster} = Clusters.start_link({@names, []})
    %{nodes: nodes, links: links} = Clusters.whole(cluster)

    for session <- @sessions,
        do: {:ok, _} = Clusters.call(hd(nodes), session, :create_session, %{durable: true})

    for node <- nodes, do: load(node)
    ends = now() + seconds * 1_000

    state = %{
      cluster: cluster,
      links: links,
      nodes: nodes,
      seen: ClusterLoad.nothing(),
      killed: [],
      harms: %{}
    }

    state = storm(state, ends)
    seen = Enum.reduce(state.nodes, state.seen, &ClusterLoad.merge(stopped(&1), &2))

    faults =
      ClusterLoad.check(seen, state.killed, fn session ->
        {:ok, %{"entries" => entries}} =
          Clusters.call(Enum.random(state.nodes), session, :entries)

        entries
      end)

    GenServer.stop(cluster)
    Map.merge(seen, %{harms: state.harms, faults: faults, entries: length(seen.acknowledged)})
  end

  defp storm(state, ends) do
    if now() < ends do
      {victim, harm} = {Enum.random(state.nodes), Enum.random(@harms)}
      state = harm(harm, victim, %{state | harms: Map.update(state.harms, harm, 1, &(&1 + 1))})
      %{nodes: nodes} = Clusters.whole(state.cluster)
      for node <- nodes -- state.nodes, do: load(node)
      Process.sleep(500)
      storm(%{state | nodes: nodes}, ends)
    else
      state
    end
  end

  defp harm(:kill, victim, state) do
    BeamNodes.signal(victim, :KILL)
    wait_for(state.nodes -- [victim])
    Process.sleep(500)
    %{state | killed: [victim.os_pid | state.killed]}
  end

  defp harm(:freeze, victim, state) do
    BeamNodes.signal(victim, :STOP)
    Process.sleep(:rand.uniform(4_000))
    BeamNodes.signal(victim, :CONT)
    state
  end

  defp harm(:stop, victim, state) do
    BeamNodes.call(victim, DSPex.PythonBridge.SessionPoolV2, :stop, [Clusters.pool()])
    Process.sleep(:rand.uniform(1_000))
    state
  end

  # The processes by which a pool takes part in the cluster, not its workers.
  defp harm(:crash, victim, state) do
    receiver = Module.concat(Clusters.pool(), "Cluster.Receiver")

    with pid when is_pid(pid) <- BeamNodes.call(victim, Process, :whereis, [receiver]),
         do: BeamNodes.call(victim, Process, :exit, [pid, :kill])

    state
  end

  defp harm(separate, victim, state) do
    apply(Links, separate, [state.links, [victim.name], @names -- [victim.name]])
    Process.sleep(:rand.uniform(4_000))
    state
  end

  defp load(node) do
    options = [pool: Clusters.pool(), sessions: @sessions, callers: 10, timeout: 5_000, pause: 2]
    :ok = BeamNodes.call(node, ClusterLoad, :start, [options])
  end

  defp stopped(node), do: BeamNodes.call(node, ClusterLoad, :stop, [], 120_000)

  defp now, do: System.monotonic_time(:millisecond)
end
