defmodule DSPex.Cluster.ClusterTest do
  # Pools on three nodes, of which none is lost: who has a session, what all have in common, who joins.
  use ExUnit.Case, async: false

  import Clusters, only: [call: 3, call: 4, call: 5, live: 1]
  alias DSPex.PythonBridge.Cluster.Ring
  alias DSPex.PythonBridge.Pool.Sessions
  alias DSPex.PythonBridge.SessionPoolV2

  @moduletag timeout: 120_000

  setup do
    Enum.to_list(Clusters.whole())
  end

  defp names(test, count \\ 30), do: for(n <- 1..count, do: "#{test} #{n}")
  defp on(node, function, arguments), do: BeamNodes.call(node, SessionPoolV2, function, arguments)

  # The node whose pool has a session, as one node sees it.
  defp place(node, session) do
    {:ok, info} = on(node, :get_session_info, [session, [pool_name: Clusters.pool()]])
    info["node"]
  end

  test "a session has one state, whichever node is asked", %{nodes: nodes} do
    ring = nodes |> Enum.map(& &1.node) |> Ring.new()

    for session <- names("state") do
      for {node, number} <- Enum.with_index(nodes) do
        assert {:ok, %{"place" => ^number}} = call(node, session, :append, %{entry: node.name})
      end

      owner = Ring.owner(ring, session)
      for node <- nodes, do: assert(place(node, session) == owner)
    end
  end

  test "errors are those of a pool on this node", %{nodes: nodes} do
    for session <- [nil | names("errors", 4)], node <- nodes do
      assert {:error, %{code: :unknown_command}} = call(node, session, :nonsense)
      assert {:error, %{code: :invalid_args}} = call(node, session, :append, %{entry: 1})
      assert {:error, %{code: :not_encodable}} = call(node, session, :append, %{entry: self()})
      assert {:error, %{code: :deadline_exceeded}} = call(node, session, :wait, %{}, timeout: 50)
    end
  end

  test "the longest timeouts are those of a pool on this node", %{nodes: nodes} do
    data = %{key: "patient", value: 1}

    for timeout <- [100_000_000_000_000, :infinity], node <- nodes do
      assert {:ok, _} = call(node, nil, :update_session_data, data, timeout: timeout)

      for session <- names("patient", 4),
          do: assert({:ok, _} = call(node, session, :ping, %{}, timeout: timeout))
    end
  end

  test "calls leave nothing behind in their callers", %{nodes: [a | _]} do
    remains = BeamNodes.call(a, OnNode, :remains, [names("remains", 6)])
    # The one link is to who has started the process.
    assert remains == [messages: [], monitors: [], links: 1]
  end

  test "a caller that ends cancels its call on another node", %{nodes: [a | _] = nodes} do
    for session <- names("cancel", 6) do
      caller = BeamNodes.call(a, OnNode, :spawn_call, [session, :wait])
      Workers.wait_until(fn -> open_calls(nodes) == 1 end)
      BeamNodes.call(a, Process, :exit, [caller, :kill])
      Workers.wait_until(fn -> open_calls(nodes) == 0 end)
    end
  end

  defp open_calls(nodes) do
    for(node <- nodes, do: on(node, :get_pool_status, [Clusters.pool()]).open_calls) |> Enum.sum()
  end

  test "what is set up without a session is on all nodes, also on one that joins later",
       context do
    [a, b, c] = context.nodes

    data = fn node ->
      {:ok, %{"data" => data}} = call(node, nil, :get_session_data)
      data
    end

    assert {:ok, _} = call(a, nil, :update_session_data, %{key: "first", value: 1})
    assert {:ok, _} = call(b, nil, :update_session_data, %{key: "second", value: 2})
    for node <- context.nodes, do: assert(%{"first" => 1, "second" => 2} = data.(node))

    BeamNodes.signal(c, :KILL)
    Clusters.wait_for([a, b])
    assert {:ok, _} = call(a, nil, :update_session_data, %{key: "third", value: 3})
    [_, _, c] = Clusters.whole().nodes
    Workers.wait_until(fn -> match?(%{"first" => 1, "second" => 2, "third" => 3}, data.(c)) end)
  end

  test "a tool that one node has registered runs on the node of the session", %{
    nodes: [a | _] = nodes
  } do
    tool = DSPex.Tool.new(:where, "Where the tool runs.", [], &OnNode.where/1)
    assert {:ok, _} = on(a, :register_tools, [[tool], [pool_name: Clusters.pool()]])

    for session <- names("tool", 10), node <- nodes do
      assert {:ok, %{"answer" => answer}} = call(node, session, :ask, %{name: "where"})
      assert answer == to_string(place(node, session))
    end
  end

  test "an anonymous tool of a module that only one node has fails on others with a reason",
       %{nodes: [a | _] = nodes} do
    tool = DSPex.Tool.new(:anonymous, "A tool.", [], BeamNodes.call(a, OnNode, :anonymous, []))
    assert {:ok, _} = on(a, :register_tools, [[tool], [pool_name: Clusters.pool()]])

    for session <- names("anonymous", 10), node <- nodes do
      case call(node, session, :ask, %{name: "anonymous"}) do
        {:ok, %{"answer" => answer}} ->
          assert answer == "here"

        {:error, error} ->
          assert error.message =~ "OnlyHere, which has the anonymous function, is"
      end
    end
  end

  test "a node that joins takes its share, and no other session moves", context do
    [a, b, c] = context.nodes
    sessions = names("join", 60)
    on(c, :stop, [Clusters.pool()])
    Clusters.wait_for([a, b])

    for session <- sessions do
      {:ok, _} = call(a, session, :create_session, %{durable: true})
      {:ok, _} = call(a, session, :append, %{entry: "before"})
    end

    before = Map.new(sessions, &{&1, place(a, &1)})
    assert before |> Map.values() |> Enum.uniq() |> length() == 2
    Clusters.whole()

    for session <- sessions do
      assert {:ok, %{"place" => 1}} = call(b, session, :append, %{entry: "after"})
      assert place(b, session) in [before[session], c.node]
    end

    assert Enum.any?(sessions, &(place(b, &1) == c.node))
  end

  test "a durable session that ends on one node, because it is on another one, stays in the store",
       %{nodes: [a | _] = nodes} do
    for session <- names("copy", 6) do
      {:ok, _} = call(a, session, :create_session, %{durable: true})
      {:ok, _} = call(a, session, :append, %{entry: "before"})

      for node <- nodes,
          do: BeamNodes.call(node, Sessions, :end_copy, [Clusters.pool(), session])

      for node <- nodes,
          do: assert({:ok, %{"found" => true}} = call(node, session, :find, %{entry: "before"}))
    end
  end

  test "a pool that has been stopped answers, and one started again is found", context do
    [a, b, c] = context.nodes
    on(b, :stop, [Clusters.pool()])
    assert {:error, _} = call(b, "stopped", :append, %{entry: "b"})
    Clusters.wait_for([a, c])
    assert {:ok, %{"place" => 0}} = call(a, "stopped", :append, %{entry: "a"})
    for node <- [a, c], do: on(node, :stop, [Clusters.pool()])

    for node <- context.nodes,
        do: assert({:error, _} = call(node, "stopped", :append, %{entry: "none"}))

    Clusters.whole()

    for node <- context.nodes,
        do: assert({:ok, _} = call(node, "started", :append, %{entry: "again"}))

    assert length(live(a)) == 3
  end

  test "a pool of a cluster on a node without distribution is one without others" do
    refute Node.alive?()
    pool = Pools.start_pool(cluster: true)
    assert SessionPoolV2.get_pool_status(pool).nodes == [node()]
    data = %{key: "language", value: "de"}

    assert {:ok, _} =
             SessionPoolV2.execute_in_session("ann", :update_session_data, data, pool_name: pool)

    assert {:ok, %{"node" => node}} = SessionPoolV2.get_session_info("ann", pool_name: pool)
    assert node == node()
  end
end
