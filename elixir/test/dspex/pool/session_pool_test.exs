defmodule DSPex.Pool.SessionPoolTest do
  use ExUnit.Case, async: true

  import Pools
  import Workers
  alias DSPex.PythonBridge.{Error, SessionPoolV2}
  alias DSPex.Signature

  @moduletag timeout: 120_000
  @louvre %{question: "Where is the Louvre?", passage: "The Louvre is in Paris."}

  defp anonymous(pool, command, args \\ %{}, options \\ []) do
    SessionPoolV2.execute_anonymous(command, args, [pool_name: pool] ++ options)
  end

  defp in_session(pool, id, command, args \\ %{}, options \\ []) do
    SessionPoolV2.execute_in_session(id, command, args, [pool_name: pool] ++ options)
  end

  defp dspy_pool(options \\ []) do
    pool = start_pool([adapter: "dspy"] ++ options)
    {:ok, _} = anonymous(pool, :configure_lm, %{provider: "offline"})
    pool
  end

  test "a call without a session runs in any worker, those of a session in one" do
    pool = start_pool(workers: 3)
    wait_for_workers(pool, 3)
    for n <- 1..50, do: assert({:ok, %{"n" => ^n}} = anonymous(pool, :echo_decoded, %{n: n}))
    %{slots: slots} = SessionPoolV2.get_pool_status(pool)
    before = Map.new(slots, &{&1.slot, &1.requests})
    for slot <- slots, do: assert(slot.requests > 5)

    for _ <- 1..20, do: assert({:ok, _} = in_session(pool, "ann", :echo, %{}))
    %{slots: slots, sessions: 1} = SessionPoolV2.get_pool_status(pool)
    assert [20] = for(%{slot: n, requests: r} <- slots, r != before[n], do: r - before[n])
  end

  test "the answer belongs to the call, with many callers at the same time" do
    pool = start_pool(workers: 2)

    tasks =
      for n <- 1..500 do
        Task.async(fn ->
          session = if rem(n, 2) == 0, do: "s#{rem(n, 20)}"

          {:ok, %{"n" => ^n}} =
            SessionPoolV2.execute_in_session(session, :echo_decoded, %{n: n}, pool_name: pool)
        end)
      end

    Task.await_many(tasks, 30_000)
  end

  test "what is set up without a session exists in all workers, also in later ones" do
    pool = dspy_pool()
    signature = Signature.new("question, passage -> answer")
    {:ok, %{"program_id" => id}} = anonymous(pool, :create_program, %{signature: signature})
    {:ok, _} = anonymous(pool, :create_program, %{id: "gone", signature: signature})
    {:ok, _} = anonymous(pool, :delete_program, %{program_id: "gone"})
    {:ok, _} = anonymous(pool, :update_session_data, %{key: "a", value: 1})
    {:ok, _} = anonymous(pool, :update_session_data, %{key: "a", value: 2})

    assert {:error, %Error{code: :program_exists}} =
             anonymous(pool, :create_program, %{id: id, signature: signature})

    wait_for_workers(pool, 2)
    killed = pids(pool)
    for pid <- killed, do: signal(pid, :KILL)
    wait_until(fn -> length(pids(pool) -- killed) == 2 end, 20_000)

    for n <- 1..8 do
      args = %{program_id: id, inputs: @louvre}

      assert {:ok, %{"outputs" => %{"answer" => "Paris"}}} =
               in_session(pool, "s#{n}", :execute_program, args)

      assert {:ok, %{"data" => %{"a" => 2}}} = anonymous(pool, :get_session_data)
      assert {:ok, %{"programs" => [_]}} = anonymous(pool, :list_programs)
    end
  end

  test "a new worker gets all changes of an adapter's own commands, in order" do
    pool = start_pool(adapter: "bridge_test_adapter:adapter", workers: 1)
    for n <- [1, 2, 1], do: {:ok, _} = anonymous(pool, :collect, %{id: "same", item: n})
    [pid] = pids(pool)
    System.cmd("kill", ["-9", "#{pid}"])
    wait_until(fn -> pids(pool) not in [[], [pid]] end, 20_000)
    assert anonymous(pool, :collected) == {:ok, %{"items" => [1, 2, 1]}}
  end

  test "the changes that a new worker needs are limited" do
    pool = start_pool(adapter: "bridge_test_adapter:adapter", workers: 1)

    1..10_001
    |> Task.async_stream(fn n -> anonymous(pool, :collect, %{item: n}) end, max_concurrency: 50)
    |> Enum.split_with(&match?({:ok, {:ok, _}}, &1))
    |> then(fn {done, [{:ok, {:error, error}}]} ->
      assert length(done) == 10_000
      assert %Error{code: :quota_exceeded, details: %{"limit" => 10_000}} = error
    end)

    {:ok, _} = anonymous(pool, :reset_state)
    assert {:ok, %{"count" => 10_001}} = anonymous(pool, :collect, %{item: 0})
  end

  test "a new worker gets the program that was kept, and tools that were registered again" do
    pool = dspy_pool(workers: 1)
    tool = DSPex.Tool.new("find", "finds", %{text: :string}, fn _ -> "" end)
    signature = Signature.new("question -> answer")
    other = Signature.new("question -> other")
    {:ok, _} = SessionPoolV2.register_tools([tool], pool_name: pool)

    react = %{id: "react", program_type: "react", tools: ["find"], signature: signature}
    {:ok, _} = anonymous(pool, :create_program, react)
    {:ok, _} = SessionPoolV2.register_tools([tool], pool_name: pool)
    kept = %{id: "kept", if_exists: "keep"}
    {:ok, _} = anonymous(pool, :create_program, Map.put(kept, :signature, signature))

    {:ok, %{"status" => "exists"}} =
      anonymous(pool, :create_program, Map.put(kept, :signature, other))

    [pid] = pids(pool)
    System.cmd("kill", ["-9", "#{pid}"])
    wait_until(fn -> pids(pool) not in [[], [pid]] end, 20_000)
    assert {:ok, _} = anonymous(pool, :get_program_info, %{program_id: "react"})
    {:ok, %{"signature" => found}} = anonymous(pool, :get_program_info, %{program_id: "kept"})
    assert inspect(found) =~ "answer"
    refute inspect(found) =~ "other"
  end

  test "the default session is that of all workers, also by its name" do
    pool = dspy_pool()
    program = %{id: "p", signature: Signature.new("question -> answer")}
    {:ok, _} = in_session(pool, "default", :create_program, program)
    assert %{sessions: 0} = SessionPoolV2.get_pool_status(pool)
    for n <- 1..6, do: {:ok, _} = in_session(pool, "s#{n}", :get_program_info, %{program_id: "p"})
  end

  test "the session may stand among the options" do
    pool = start_pool()
    {:ok, _} = anonymous(pool, :echo, %{}, session_id: "ann")
    assert %{sessions: 1} = SessionPoolV2.get_pool_status(pool)
  end

  test "a session whose worker has ended can be ended and created without being told" do
    pool = start_pool(workers: 1)

    for call <- [
          fn -> SessionPoolV2.end_session("ann", pool_name: pool) end,
          fn -> elem(in_session(pool, "ann", :create_session), 0) end
        ] do
      {:ok, _} = in_session(pool, "ann", :echo)
      pid = pid_of(pool, "ann")
      System.cmd("kill", ["-9", "#{pid}"])
      wait_until(fn -> pids(pool) not in [[], [pid]] end, 20_000)
      assert call.() == :ok
    end
  end

  test "a change that a worker refuses has not happened in any" do
    pool = dspy_pool()
    assert {:error, %Error{code: :invalid_args}} = anonymous(pool, :create_program, %{id: "x"})
    assert {:ok, %{"programs" => []}} = anonymous(pool, :list_programs)
  end

  test "tools of the pool and of a session" do
    pool = dspy_pool()

    tool = fn answer ->
      DSPex.Tool.new(:temperature, "The temperature in a city.", [city: :string], fn _ ->
        answer
      end)
    end

    {:ok, _} = SessionPoolV2.register_tools([tool.("21 degrees")], pool_name: pool)

    {:ok, _} =
      SessionPoolV2.register_tools([tool.("3 degrees")], pool_name: pool, session_id: "ann")

    create = %{
      id: "weather",
      program_type: "react",
      signature: Signature.new("question -> answer")
    }

    {:ok, _} = anonymous(pool, :create_program, create)
    {:ok, _} = in_session(pool, "ann", :create_program, create)
    run = %{program_id: "weather", inputs: %{question: "What is the temperature in Graz?"}}

    for _ <- 1..4 do
      assert {:ok, %{"outputs" => %{"answer" => "21 degrees"}}} =
               anonymous(pool, :execute_program, run)
    end

    assert {:ok, %{"outputs" => %{"answer" => "3 degrees"}}} =
             in_session(pool, "ann", :execute_program, run)

    events = SessionPoolV2.stream(:execute_program, run, pool_name: pool, session_id: "ann")
    assert {:result, %{"outputs" => %{"answer" => "3 degrees"}}} = Enum.at(events, -1)
  end

  test "a session whose worker has ended is lost once, and then a new one" do
    pool = start_pool()
    {:ok, _} = in_session(pool, "ann", :update_session_data, %{key: "a", value: 1})
    signal(pid_of(pool, "ann"), :KILL)
    wait_until(fn -> worker_of(pool, "ann") |> dead?() end)

    results =
      for _ <- 1..5 do
        Task.async(fn -> in_session(pool, "ann", :get_session_data) end)
      end
      |> Task.await_many()

    assert [{:error, %Error{code: :session_lost}}] =
             for({:error, _} = error <- results, do: error)

    assert {:ok, %{"data" => data}} = in_session(pool, "ann", :get_session_data)
    assert data == %{}
  end

  test "a session that begins while a worker ends is not lost" do
    pool = start_pool()
    stop = :atomics.new(1, [])

    caller =
      Task.async(fn ->
        for n <- 1..100_000, :atomics.get(stop, 1) == 0 do
          in_session(pool, "s#{n}", :echo_decoded, %{n: n})
        end
      end)

    for _ <- 1..10 do
      # The last one may be in the status still.
      for pid <- pool |> pids() |> Enum.filter(&os_alive?/1) |> Enum.take(1),
          do: signal(pid, :KILL)

      Process.sleep(100)
    end

    :atomics.put(stop, 1, 1)

    assert for({:error, error} <- Task.await(caller, 20_000), do: error.code) -- [:worker_crashed] ==
             []
  end

  test "a hint does not lose a session" do
    pool = start_pool(affinity: :hint)
    {:ok, _} = in_session(pool, "ann", :update_session_data, %{key: "a", value: 1})
    signal(pid_of(pool, "ann"), :KILL)
    wait_until(fn -> worker_of(pool, "ann") |> dead?() end)
    assert {:ok, _} = in_session(pool, "ann", :get_session_data)
  end

  defp dead?(connection), do: not Process.alive?(connection.owner)

  test "ended sessions leave nothing in the pool" do
    pool = start_pool()

    for n <- 1..1000,
        do: {:ok, _} = in_session(pool, "s#{n}", :update_session_data, %{key: "n", value: n})

    assert %{sessions: 1000} = SessionPoolV2.get_pool_status(pool)

    assert {:ok, %{"session_id" => "s1", "slot" => _}} =
             SessionPoolV2.get_session_info("s1", pool_name: pool)

    for n <- 1..500, do: :ok = SessionPoolV2.end_session("s#{n}", pool_name: pool)
    assert %{sessions: 500} = SessionPoolV2.get_pool_status(pool)

    assert {:error, %Error{code: :session_not_found}} =
             SessionPoolV2.get_session_info("s1", pool_name: pool)

    {:ok, _} = anonymous(pool, :cleanup)
    assert %{sessions: 0} = SessionPoolV2.get_pool_status(pool)
    assert :ok = SessionPoolV2.end_session("never", pool_name: pool)
  end

  test "statistics of all workers together" do
    pool = start_pool()
    wait_for_workers(pool, 2)
    for _ <- 1..200, do: anonymous(pool, :echo)
    assert {:ok, stats} = SessionPoolV2.get_stats(pool)
    assert %{"calls" => 200, "errors" => 0, "latency_us" => latency} = stats["commands"]["echo"]
    assert latency["p50"] <= latency["p99"] and latency["p99"] <= latency["max"]
    assert [%{"process" => %{"rss" => _}}, _] = stats["workers"]
    assert {:ok, %{status: :healthy, healthy: [_, _]}} = SessionPoolV2.health_check(pool)
  end

  test "commands that belong to a connection are refused" do
    pool = start_pool()

    for command <- [:shutdown, :hello, "cancel"] do
      assert {:error, %Error{code: :not_allowed}} = anonymous(pool, command, %{id: 1})
    end
  end

  test "a pool that does not run" do
    assert {:error, %Error{code: :worker_crashed, message: message}} = anonymous(NoPool, :ping)
    assert message =~ "no pool is running as NoPool"
    assert SessionPoolV2.get_pool_status(NoPool) == %{status: :not_running}
    assert {:error, %Error{}} = SessionPoolV2.get_stats(NoPool)
    assert :ok = SessionPoolV2.stop(NoPool)
  end

  test "invalid options" do
    for options <- [
          [workers: 0],
          [workers: 3..1],
          [affinity: :none],
          [isolate: true],
          [cluster: nil],
          [cluster: :yes],
          [cluster: [heartbeat: 0]],
          [cluster: [heartbeat: 0.5]],
          [cluster: [heartbeat: 1_000_000_000_000]],
          [cluster: [heartbeats: 500]],
          [nonsense: 1],
          [name: nil]
        ] do
      assert_raise ArgumentError, fn -> SessionPoolV2.start_link(options) end
    end

    for options <- [4, "workers", [:workers]] do
      assert_raise ArgumentError, fn -> SessionPoolV2.child_spec(options) end
    end

    assert_raise ArgumentError, fn ->
      SessionPoolV2.execute_anonymous(:ping, %{}, idempotent: 1)
    end
  end
end
