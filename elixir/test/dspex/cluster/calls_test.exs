defmodule DSPex.Cluster.CallsTest do
  use ExUnit.Case, async: true

  alias DSPex.PythonBridge.Cluster.Ring
  alias DSPex.PythonBridge.SessionPoolV2

  @moduletag timeout: 120_000

  setup_all do
    cluster = Clusters.start(~w(a b))
    {:ok, nodes: Clusters.whole(cluster).nodes}
  end

  # A new session that belongs to one of the nodes.
  defp session_of(node, nodes) do
    ring = Ring.new(for node <- nodes, do: node.node)

    Stream.repeatedly(fn -> "s#{System.unique_integer([:positive])}" end)
    |> Enum.find(&(Ring.owner(ring, &1) == node.node))
  end

  defp sessions(nodes) do
    for node <- nodes do
      BeamNodes.call(node, SessionPoolV2, :get_pool_status, [Clusters.pool()]).sessions
    end
  end

  test "the calls of a session run on its node", %{nodes: [a, b] = nodes} do
    session = session_of(b, nodes)
    [before_a, before_b] = sessions(nodes)

    for node <- [a, b, a, b],
        do: assert({:ok, %{"n" => 1}} = Clusters.call(node, session, :echo, %{"n" => 1}))

    assert sessions(nodes) == [before_a, before_b + 1]
  end

  test "without a session a call runs on the caller's node", %{nodes: [a, _]} do
    assert {:ok, %{"status" => "ok"}} = Clusters.call(a, nil, :ping)
  end
end
