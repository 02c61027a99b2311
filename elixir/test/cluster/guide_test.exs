defmodule DSPex.Cluster.GuideTest do
  # Runs the examples of the chapter about clusters on two nodes.
  use ExUnit.Case, async: true

  @moduletag timeout: 120_000

  test "the first minute of a cluster" do
    guide = File.read!(Path.expand("../../guides/cluster.md", __DIR__))

    [pool, connect, setup, ask, again | _] =
      Regex.scan(~r/^```elixir\n(.*?)^```/ms, guide, capture: :all_but_first) |> List.flatten()

    folder = BeamNodes.folder()
    on_exit(fn -> File.rm_rf!(folder) end)
    pool = String.replace(pool, "/tmp/weather.db", Path.join(folder, "weather.db"))
    [a, b] = nodes = for name <- ~w(a b), do: BeamNodes.start_link(folder, name)
    on_exit(fn -> for node <- nodes, do: BeamNodes.signal(node, :KILL) end)
    for node <- nodes, do: BeamNodes.call(node, OnNode, :start_shell, [])
    for node <- nodes, do: run(node, pool)
    run(b, connect)
    Workers.wait_until(fn -> length(run(b, "SessionPoolV2.get_pool_status().nodes")) == 2 end)
    run(a, setup)
    assert run(b, ask) in [[:ok, :ok, :ok, :ok]]
    BeamNodes.signal(a, :KILL)
    run(b, again)
  end

  defp run(node, code) do
    code = "alias DSPex.PythonBridge.SessionPoolV2\n" <> code
    assert {:ok, value} = BeamNodes.call(node, OnNode, :type, [code], 60_000)
    value
  end
end
