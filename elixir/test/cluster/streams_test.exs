defmodule DSPex.Cluster.StreamsTest do
  # Streams and large calls from one node to another.
  use ExUnit.Case, async: false

  import Clusters, only: [call: 4]
  alias DSPex.PythonBridge.Cluster.Ring
  alias DSPex.PythonBridge.SessionPoolV2

  @moduletag timeout: 120_000
  @large 64_000_000

  # Two sessions that belong to the node b.
  setup %{test: test} do
    %{nodes: [a, b, _c] = nodes, links: links} = Clusters.whole()
    ring = nodes |> Enum.map(& &1.node) |> Ring.new()
    names = Stream.map(Stream.iterate(1, &(&1 + 1)), &"#{test} #{&1}")
    [session, other] = names |> Stream.filter(&(Ring.owner(ring, &1) == b.node)) |> Enum.take(2)
    {:ok, a: a, b: b, links: links, session: session, other: other}
  end

  defp on(node, function, arguments),
    do: BeamNodes.call(node, OnNode, function, arguments, 60_000)

  defp running?(node) do
    BeamNodes.call(node, SessionPoolV2, :get_pool_status, [Clusters.pool()]).open_calls > 0
  end

  # How many events the workers of a node have sent.
  defp events(node) do
    BeamNodes.call(node, SessionPoolV2, :get_pool_status, [Clusters.pool()]).stats.events
  end

  # Reads a stream in a node while the test goes on, once the worker of `b` sends.
  defp reading(%{a: a, b: b, session: session}, count, options) do
    reader = Task.async(fn -> on(a, :numbers, [session, count, options]) end)
    Workers.wait_until(fn -> running?(b) end)
    reader
  end

  test "all events come, in their order", %{a: a, session: session} do
    assert on(a, :numbers, [session, 5_000]) == {Enum.to_list(0..4_999), nil}
  end

  test "a slow consumer gets all of them, and nobody keeps them for it", context do
    %{a: a, b: b, session: session} = context
    # 200 MB, which the worker sends as fast as it may.
    options = [size: 1_000_000, pause: 5]
    reader = reading(context, 200, options)
    for node <- [a, b], do: assert(BeamNodes.call(node, :erlang, :memory, [:total]) < 250_000_000)
    assert Task.await(reader, 60_000) == {Enum.to_list(0..199), nil}
    assert on(a, :numbers, [session, 3]) == {[0, 1, 2], nil}
  end

  test "a consumer that stops, or is killed, ends the work", %{a: a, b: b, session: session} do
    assert on(a, :numbers, [session, 1_000_000, [take: 5]]) == {[0, 1, 2, 3, 4], nil}
    Workers.wait_until(fn -> not running?(b) end)
    reader = on(a, :spawn_reader, [session, 1_000_000, [every: 0.001]])
    Workers.wait_until(fn -> running?(b) end)
    BeamNodes.call(a, Process, :exit, [reader, :kill])
    Workers.wait_until(fn -> not running?(b) end)
  end

  test "a stream has a deadline", %{a: a, b: b, session: session} do
    assert {[0 | _], :deadline_exceeded} =
             on(a, :numbers, [session, 1_000, [every: 0.05, timeout: 500]])

    Workers.wait_until(fn -> not running?(b) end)
  end

  test "a stream whose consumer has given up before it began is not begun", context do
    %{a: a, b: b, session: session} = context
    {:ok, _} = call(a, session, :append, %{entry: "before"})
    before = events(b)
    BeamNodes.signal(b, :STOP)
    assert {[], code} = on(a, :numbers, [session, 1_000, [timeout: 1_000]])
    assert code in [:worker_crashed, :deadline_exceeded]
    Clusters.whole()
    {:ok, _} = call(a, session, :append, %{entry: "after"})
    Process.sleep(100)
    assert events(b) == before
  end

  test "a node that is killed during a stream ends it with an error", context do
    reader = reading(context, 100_000, every: 0.001)
    BeamNodes.signal(context.b, :KILL)
    assert {numbers, :worker_crashed} = Task.await(reader, 60_000)
    assert numbers == Enum.to_list(0..(length(numbers) - 1)//1)
  end

  test "a node that is cut off during a stream ends it with an error, and the work", context do
    reader = reading(context, 100_000, every: 0.001)
    Links.cut(context.links, ["b"], ["a", "c"])
    assert {numbers, :worker_crashed} = Task.await(reader, 60_000)
    assert numbers == Enum.to_list(0..(length(numbers) - 1)//1)
    Workers.wait_until(fn -> not running?(context.b) end)
  end

  test "a node that hangs during a stream ends it with an error", context do
    reader = reading(context, 100_000, every: 0.001)
    BeamNodes.signal(context.b, :STOP)
    assert {numbers, code} = Task.await(reader, 60_000)
    assert code in [:worker_crashed, :deadline_exceeded]
    assert numbers == Enum.to_list(0..(length(numbers) - 1)//1)
  end

  test "64 MB in both directions, while small calls go on", %{
    a: a,
    session: session,
    other: other
  } do
    large = Task.async(fn -> on(a, :large, [session, @large, 2]) end)

    for n <- 0..99 do
      assert {:ok, %{"place" => ^n}} = call(a, other, :append, %{entry: "#{n}"})
    end

    assert Task.await(large, 60_000) == []
  end
end
