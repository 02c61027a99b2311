defmodule DSPex.Cluster.RingTest do
  use ExUnit.Case, async: true

  alias DSPex.PythonBridge.Cluster.Ring
  doctest Ring

  @sessions for n <- 1..3_000, do: "session-#{n}"

  # Clusters of different sizes and names, the same in each run.
  defp clusters do
    :rand.seed(:exsss, {1, 2, 3})

    for size <- [1, 2, 3, 4, 7, 12, 33, 100] do
      domain = :rand.uniform(1_000_000)
      for n <- 1..size, do: :"app#{n}@10.#{domain}.0.#{:rand.uniform(255)}"
    end
  end

  defp owners(nodes) do
    ring = Ring.new(nodes)
    Map.new(@sessions, &{&1, Ring.owner(ring, &1)})
  end

  test "an owner is one of the nodes, whatever their order and repetitions" do
    for nodes <- clusters() do
      expected = owners(nodes)
      assert Enum.all?(Map.values(expected), &(&1 in nodes))
      assert owners(Enum.shuffle(nodes) ++ nodes) == expected
    end
  end

  test "the owners of a known cluster do not change, so nodes of other releases agree" do
    ring = Ring.new([:a@one, :b@two, :c@three])
    sessions = for id <- ~w(ann bob eve joe ツ), do: Ring.owner(ring, id)
    assert sessions == [:a@one, :b@two, :a@one, :b@two, :c@three]
  end

  test "the sessions are spread evenly" do
    for nodes <- clusters() do
      mean = length(@sessions) / length(nodes)
      counts = nodes |> owners() |> Map.values() |> Enum.frequencies()
      # Chi squared of a fair choice: its mean is `degrees`, its variance `2 * degrees`.
      degrees = length(nodes) - 1
      distances = for node <- nodes, do: (Map.get(counts, node, 0) - mean) ** 2 / mean
      assert Enum.sum(distances) <= degrees + 5 * :math.sqrt(2 * degrees)
    end
  end

  test "a node that joins takes its share, and nothing else moves" do
    for nodes <- clusters() do
      before = owners(nodes)
      later = owners([:joins@host | nodes])
      moved = for id <- @sessions, before[id] != later[id], do: later[id]
      assert Enum.all?(moved, &(&1 == :joins@host))
      share = length(@sessions) / (length(nodes) + 1)
      assert_in_delta length(moved), share, 5 * :math.sqrt(share)
    end
  end

  test "of a node that is lost each session goes to the next owner, and nothing else moves" do
    for [lost | others] = nodes when others != [] <- clusters() do
      {before, later} = {owners(nodes), owners(others)}
      ring = Ring.new(nodes)

      for id <- @sessions do
        expected = if before[id] == lost, do: Enum.at(Ring.owners(ring, id), 1), else: before[id]
        assert later[id] == expected
      end
    end
  end

  test "the owners of a session are all nodes, each once" do
    for nodes <- clusters(), ring = Ring.new(nodes), id <- Enum.take(@sessions, 100) do
      assert [owner | _] = owners = Ring.owners(ring, id)
      assert owner == Ring.owner(ring, id)
      assert Enum.sort(owners) == Enum.sort(nodes)
    end
  end

  test "without nodes there is no owner" do
    ring = Ring.new([])
    assert {Ring.owner(ring, "ann"), Ring.owners(ring, "ann"), Ring.nodes(ring)} == {nil, [], []}
  end
end
