defmodule DSPex.Cluster.LossesTest do
  # A node of three is killed, hangs, or is cut off, while callers on all of them append to the ledgers of
  # durable sessions.
  use ExUnit.Case, async: false

  import Clusters, only: [call: 3, call: 4, live: 1]
  import Workers, only: [wait_until: 2]

  @moduletag timeout: 120_000
  # What a call may get that was on its way to a node that is lost, or whose session has moved meanwhile.
  @expected [:worker_crashed, :session_lost, :deadline_exceeded, :overloaded]

  setup %{test: test} do
    sessions = for n <- 1..12, do: "#{test} #{n}"
    [sessions: sessions] ++ Enum.to_list(Clusters.whole())
  end

  defp under_load(%{nodes: nodes, sessions: sessions}, harm) do
    for session <- sessions,
        do: {:ok, _} = call(hd(nodes), session, :create_session, %{durable: true})

    options = [pool: Clusters.pool(), sessions: sessions, callers: 6, timeout: 5_000, pause: 1]
    for node <- nodes, do: :ok = BeamNodes.call(node, ClusterLoad, :start, [options])
    more_calls(nodes)
    killed = harm.()
    seen = for node <- nodes -- killed, do: BeamNodes.call(node, ClusterLoad, :stop, [], 120_000)
    {Enum.reduce(seen, &ClusterLoad.merge/2), killed}
  end

  # So many calls of each node's callers later.
  defp more_calls(nodes, count \\ 200) do
    targets = for node <- nodes, do: {node, calls(node) + count}

    wait_until(
      fn -> Enum.all?(targets, fn {node, target} -> calls(node) >= target end) end,
      60_000
    )
  end

  defp calls(node), do: BeamNodes.call(node, ClusterLoad, :calls, [])

  defp check({seen, killed}, nodes) do
    assert %{wrong: 0, stale: 0, stray: 0} = seen
    assert Map.keys(seen.codes) -- @expected == []
    # It returned because of its deadline, however busy the machine.
    assert seen.latest < 5_000
    killed = for node <- killed, do: node.os_pid

    for node <- nodes do
      assert ClusterLoad.check(seen, killed, fn session ->
               {:ok, %{"entries" => entries}} = call(node, session, :entries)
               entries
             end) == []
    end
  end

  test "a node is killed: its durable sessions go on elsewhere", context do
    [a, b, c] = context.nodes

    result =
      under_load(context, fn ->
        BeamNodes.signal(b, :KILL)
        Clusters.wait_for([a, c])
        more_calls([a, c])
        [b]
      end)

    check(result, [a, c])
    check(result, Clusters.whole().nodes)
  end

  test "a node hangs: it gets no calls until it answers again", context do
    [a, b, c] = context.nodes

    result =
      under_load(context, fn ->
        BeamNodes.signal(b, :STOP)
        wait_until(fn -> live(a) == [a.node, c.node] and live(c) == live(a) end, 30_000)
        more_calls([a, c])
        BeamNodes.signal(b, :CONT)
        Clusters.wait_for(context.nodes)
        more_calls(context.nodes)
        []
      end)

    check(result, context.nodes)
  end

  test "a node's connections are cut: both sides go on, and meet again", context do
    [_a, b, _c] = context.nodes
    partition(context, &Links.cut/3, b)
  end

  test "a node's packets are dropped: both sides go on, and meet again", context do
    [_a, _b, c] = context.nodes
    partition(context, &Links.hold/3, c)
  end

  test "a node that was away does not answer from what it remembers", context do
    for session <- context.sessions, away <- context.nodes do
      {:ok, _} = call(away, session, :create_session, %{durable: true})
    end

    for {away, harm} <- Enum.zip(context.nodes, [:freeze, :cut, :hold]) do
      others = context.nodes -- [away]
      entry = %{entry: away.name}
      leave(context, harm, away, others)
      Clusters.wait_for(others)
      for session <- context.sessions, do: {:ok, _} = call(hd(others), session, :append, entry)
      come_back(context, harm, away, others)
      Clusters.wait_for(context.nodes)

      for session <- context.sessions, node <- context.nodes do
        assert {:ok, %{"found" => true}} = call(node, session, :find, entry)
      end
    end
  end

  defp leave(_context, :freeze, away, _others), do: BeamNodes.signal(away, :STOP)

  defp leave(context, separate, away, others) do
    apply(Links, separate, [context.links, [away.name], Enum.map(others, & &1.name)])
  end

  defp come_back(_context, :freeze, away, _others), do: BeamNodes.signal(away, :CONT)
  defp come_back(context, _separate, away, others), do: meet(context, away, others)

  defp meet(context, away, others) do
    Links.restore(context.links, [away.name], Enum.map(others, & &1.name))
    for node <- others, do: BeamNodes.call(away, :net_kernel, :connect_node, [node.node])
  end

  defp partition(context, separate, alone) do
    others = context.nodes -- [alone]
    names = Enum.map(others, & &1.name)

    result =
      under_load(context, fn ->
        separate.(context.links, [alone.name], names)
        Clusters.wait_for([alone])
        Clusters.wait_for(others)
        more_calls(context.nodes)
        meet(context, alone, others)
        Clusters.wait_for(context.nodes)
        more_calls(context.nodes)
        []
      end)

    check(result, context.nodes)
  end
end
