defmodule DSPex.Cluster.StatesTest do
  # What becomes of state that is only in workers, when nodes join, are lost and come back: sessions without
  # a store, and what is set up without a session.
  use ExUnit.Case, async: false

  alias DSPex.PythonBridge.Cluster.{Ring, View}
  alias DSPex.PythonBridge.{Error, SessionPoolV2}

  @moduletag timeout: 120_000
  @pool Clusters.Plain

  setup do
    cluster = Clusters.whole()
    on_exit(fn -> for node <- Clusters.whole().nodes, do: stop(node) end)
    Enum.to_list(cluster)
  end

  defp start(nodes, options \\ []) do
    own = [adapter: "ledger:adapter", name: @pool, workers: 1, cluster: true]
    options = own |> Keyword.merge(options) |> Workers.options()
    for node <- nodes, do: Clusters.start_pool(node, options)
  end

  defp stop(node), do: BeamNodes.call(node, SessionPoolV2, :stop, [@pool])

  defp wait_for(nodes), do: Clusters.wait_for(nodes, @pool)
  defp status(node), do: BeamNodes.call(node, SessionPoolV2, :get_pool_status, [@pool])

  defp call(node, session, command, args \\ %{}, options \\ []) do
    Clusters.call(node, session, command, args, [pool_name: @pool] ++ options)
  end

  defp append(node, session), do: call(node, session, :append, %{entry: inspect(make_ref())})
  defp sessions(count), do: for(n <- 1..count, do: "plain #{n}")

  defp home(node, session) do
    {:ok, info} = info(node, session)
    info["node"]
  end

  defp info(node, session) do
    BeamNodes.call(node, SessionPoolV2, :get_session_info, [session, [pool_name: @pool]])
  end

  test "sessions without a store stay where they are when a node joins", context do
    [a, b, c] = context.nodes
    start([a, b])
    wait_for([a, b])
    for session <- sessions(20), do: assert({:ok, %{"place" => 0}} = append(a, session))
    homes = Map.new(sessions(20), &{&1, home(b, &1)})
    start([c])
    wait_for(context.nodes)

    for session <- sessions(20), {node, place} <- [{c, 1}, {a, 2}, {b, 3}] do
      assert {:ok, %{"place" => ^place}} = append(node, session)
      assert home(node, session) == homes[session]
    end

    # New ones are also on the node that has joined.
    for session <- sessions(60), do: {:ok, _} = append(b, session)
    assert Enum.any?(sessions(60), &(home(b, &1) == c.node))
  end

  # Starts the pools, and sessions by calls of the first node. Returns those that are on the second one.
  defp sessions_on_second([a, b, _] = nodes) do
    start(nodes)
    wait_for(nodes)
    for session <- sessions(20), do: {:ok, _} = append(a, session)
    there = Enum.filter(sessions(20), &(home(a, &1) == b.node))
    assert there != []
    there
  end

  test "a session that is lost with its node is reported once", context do
    [a, b, c] = context.nodes
    lost = sessions_on_second(context.nodes)
    BeamNodes.signal(b, :KILL)
    wait_for([a, c])

    for session <- sessions(20) do
      if session in lost do
        assert {:error, %Error{code: :session_lost}} = append(a, session)
        assert {:ok, %{"place" => 0}} = append(a, session)
        # The other node has not called it before.
        assert {:ok, %{"place" => 1}} = append(c, session)
      else
        assert {:ok, %{"place" => 1}} = append(a, session)
      end
    end
  end

  test "a session that has ended is not missed when its node is lost", context do
    [a, b, c] = context.nodes
    lost = sessions_on_second(context.nodes)
    # Somebody asks for one that there has never been.
    never = Enum.map(lost, &("never " <> &1))
    for session <- never, do: assert({:error, _} = info(a, session))

    for session <- lost do
      options = [pool_name: @pool]
      assert BeamNodes.call(a, SessionPoolV2, :end_session, [session, options]) == :ok
    end

    BeamNodes.signal(b, :KILL)
    wait_for([a, c])
    for session <- lost ++ never, do: assert({:ok, %{"place" => 0}} = append(a, session))
  end

  test "a session stays where it is while its node does not answer", context do
    [a, b, c] = context.nodes
    # A node that hangs is left out only after six seconds.
    start([a, b], cluster: [heartbeat: 2_000])
    wait_for([a, b])
    for session <- sessions(60), do: {:ok, _} = append(a, session)
    on_b = Enum.filter(sessions(60), &(home(a, &1) == b.node))
    start([c], cluster: [heartbeat: 2_000])
    wait_for(context.nodes)
    ring = context.nodes |> Enum.map(& &1.node) |> Ring.new()
    session = Enum.find(on_b, &(Ring.owner(ring, &1) == c.node))
    BeamNodes.signal(b, :STOP)
    caller = Task.async(fn -> append(c, session) end)
    assert Task.yield(caller, 2_000) == nil
    BeamNodes.signal(b, :CONT)
    assert {:ok, %{"place" => 1}} = Task.await(caller, 30_000)
  end

  test "a pool starts although the member of another node does not answer", context do
    [a, b, c] = context.nodes
    start([a, b])
    wait_for([a, b])
    member = Module.concat(@pool, "Cluster.Member")
    BeamNodes.call(b, :sys, :suspend, [member])
    start([c])
    assert {:ok, _} = append(c, "started")
    BeamNodes.call(b, :sys, :resume, [member])
    wait_for([a, b, c])
  end

  test "a pool that is being stopped still finds the sessions of other nodes", context do
    [a, b, _] = context.nodes
    start([a, b])
    wait_for([a, b])
    for session <- sessions(20), do: {:ok, _} = append(b, session)
    {there, here} = Enum.split_with(sessions(20), &(home(b, &1) == a.node))
    # It answers this call before it ends.
    BeamNodes.call(a, OnNode, :spawn_call, [hd(here), :wait, @pool])
    Workers.wait_until(fn -> status(b).open_calls == 1 end)
    stopping = Task.async(fn -> stop(b) end)
    Workers.wait_until(fn -> Clusters.live(a, @pool) == [a.node] end)

    for session <- there do
      case append(b, session) do
        {:ok, %{"place" => place}} -> assert place == 1
        # It has ended meanwhile.
        {:error, error} -> assert error.code != :session_lost
      end
    end

    Task.await(stopping, 30_000)
  end

  test "of a session on both sides of a division the one that was used last stays", context do
    [a, b, c] = context.nodes
    start(context.nodes)
    wait_for(context.nodes)
    for session <- sessions(20), do: {:ok, _} = append(a, session)
    alone = Enum.filter(sessions(20), &(home(a, &1) == c.node))
    assert alone != []
    Links.cut(context.links, ["c"], ["a", "b"])
    wait_for([a, b])
    wait_for([c])
    for session <- alone, do: {:error, %Error{code: :session_lost}} = append(a, session)
    for session <- alone, place <- [0, 1], do: {:ok, %{"place" => ^place}} = append(a, session)
    Clusters.whole()
    wait_for(context.nodes)

    for session <- alone do
      assert {:ok, %{"place" => 2}} = append(a, session)
      assert {:ok, %{"place" => 3}} = append(b, session)
      assert {:ok, %{"place" => 4}} = append(c, session)
    end
  end

  test "of what both sides have set up without a session, that with more changes stays",
       context do
    [a, b, c] = context.nodes
    start(context.nodes)
    wait_for(context.nodes)

    set = fn node, key ->
      {:ok, _} = call(node, nil, :update_session_data, %{key: key, value: 1})
    end

    set.(b, "before")
    Links.cut(context.links, ["c"], ["a", "b"])
    wait_for([a, b])
    wait_for([c])
    set.(c, "alone")
    for key <- ["one", "two"], do: set.(a, key)
    Clusters.whole()
    wait_for(context.nodes)
    expected = %{"before" => 1, "one" => 1, "two" => 1}

    for node <- context.nodes do
      Workers.wait_until(
        fn -> match?({:ok, %{"data" => ^expected}}, call(node, nil, :get_session_data)) end,
        20_000
      )
    end

    set.(c, "after")
    expected = Map.put(expected, "after", 1)

    for node <- context.nodes,
        do: assert({:ok, %{"data" => ^expected}} = call(node, nil, :get_session_data))
  end

  test "two nodes that both make changes for all do not wait for each other", context do
    [a, b, _] = context.nodes
    # The members do not look at each other again meanwhile.
    start([a, b], cluster: [heartbeat: 600_000])
    wait_for([a, b])

    for node <- [a, b] do
      view = BeamNodes.call(node, View, :get, [@pool])
      BeamNodes.call(node, View, :put, [@pool, %{view | ring: Ring.new([node.node])}])
    end

    changes = fn node ->
      for n <- 1..200 do
        data = %{key: "#{node.name} #{n}", value: 1}
        {:ok, _} = call(node, nil, :update_session_data, data, timeout: :infinity)
      end
    end

    tasks = for node <- [a, b], do: Task.async(fn -> changes.(node) end)
    Task.await_many(tasks, 30_000)
  end

  test "a node of another version is left out, and only that is logged", context do
    [a, b, _] = context.nodes
    start([a, b])
    member = Module.concat(@pool, "Cluster.Member")

    for version <- [99, nil] do
      message =
        {:dspex_bridge_cluster, version, BeamNodes.call(b, Process, :whereis, [member]),
         :anything}

      BeamNodes.call(a, Process, :send, [member, message, []])
    end

    BeamNodes.call(a, Process, :send, [member, {:dspex_bridge_cluster, 99}, []])
    assert {:ok, _} = call(a, nil, :ping)
    wait_for([a, b])
  end

  test "calls without a session go to another node while this one has no worker, or is full",
       context do
    [a, b, _] = context.nodes
    start([a], args: ["--queue", "1"], threads: 1, queue: 1)
    start([b])
    wait_for([a, b])
    for _ <- 1..2, do: BeamNodes.call(a, OnNode, :spawn_call, [nil, :wait, @pool])
    Workers.wait_until(fn -> status(a).open_calls == 2 end)
    for _ <- 1..5, do: assert({:ok, _} = call(a, nil, :echo))
    assert status(a).open_calls == 2
  end

  test "status, health and statistics are those of all nodes", context do
    start(context.nodes)
    wait_for(context.nodes)
    names = context.nodes |> Enum.map(& &1.node) |> Enum.sort()
    [a | _] = context.nodes
    for session <- sessions(10), do: {:ok, _} = append(a, session)
    on = fn function, arguments -> BeamNodes.call(a, SessionPoolV2, function, arguments) end

    assert {:ok, %{status: :healthy, nodes: nodes}} = on.(:health_check, [@pool])
    assert nodes |> Map.keys() |> Enum.sort() == names
    assert {:ok, stats} = on.(:get_stats, [@pool])
    assert stats["sessions_count"] >= 10
    assert stats["commands"]["append"]["calls"] == 10
    assert stats["workers"] |> Enum.map(& &1["node"]) |> Enum.sort() == names

    Workers.wait_until(fn ->
      told = Map.values(status(a).cluster)
      Enum.all?(told, &(&1.state == :live)) and Enum.sum(Enum.map(told, & &1.sessions)) == 10
    end)

    BeamNodes.signal(List.last(context.nodes), :STOP)

    Workers.wait_until(
      fn -> :hung in Enum.map(Map.values(status(a).cluster), & &1.state) end,
      20_000
    )

    assert {:ok, %{status: :degraded, nodes: %{:"c@127.0.0.1" => {:error, _}}}} =
             on.(:health_check, [@pool])
  end
end
