defmodule DSPex.Cluster.GuideTest do
  # Runs the examples of the chapter about clusters on two nodes.
  use ExUnit.Case, async: false

  @moduletag timeout: 120_000

  test "the first minute of a cluster" do
    guide = File.read!(Path.expand("../../guides/cluster.md", __DIR__))

    [pool, connect, setup, ask, again | _] =
      Regex.scan(~r/^```elixir\n(.*?)^```/ms, guide, capture: :all_but_first) |> List.flatten()

    [a, b, _] = Clusters.whole().nodes
    nodes = [a, b]
    pool = String.replace(pool, "/tmp/weather.db", Path.join(a.folder, "weather.db"))
    for node <- nodes, do: BeamNodes.call(node, OnNode, :start_shell, [])
    for node <- nodes, do: run(node, pool)
    run(b, connect)
    Workers.wait_until(fn -> length(run(b, "SessionPoolV2.get_pool_status().nodes")) == 2 end)
    run(a, setup)
    assert run(b, ask) in [[:ok, :ok, :ok, :ok]]
    BeamNodes.signal(a, :KILL)
    run(b, again)
    run(b, "SessionPoolV2.stop()")
  end

  defp run(node, code) do
    code = "alias DSPex.PythonBridge.SessionPoolV2\n" <> code
    assert {:ok, value} = BeamNodes.call(node, OnNode, :type, [code], 60_000)
    value
  end
end
