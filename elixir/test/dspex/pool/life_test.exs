defmodule DSPex.Pool.LifeTest do
  # How a pool grows, shrinks, recycles and ejects workers; workers of single sessions.
  use ExUnit.Case, async: true

  import ExUnit.CaptureLog, only: [capture_log: 1]
  import Pools
  import Workers
  alias DSPex.PythonBridge.{Error, SessionPoolV2}
  alias DSPex.PythonBridge.Pool.{Journal, Slot}

  @moduletag timeout: 120_000

  defp anonymous(pool, command, args \\ %{}, options \\ []) do
    SessionPoolV2.execute_anonymous(command, args, [pool_name: pool] ++ options)
  end

  defp in_session(pool, id, command, args \\ %{}, options \\ []) do
    SessionPoolV2.execute_in_session(id, command, args, [pool_name: pool] ++ options)
  end

  defp background(pool, count, seconds) do
    for _ <- 1..count, do: Task.async(fn -> anonymous(pool, :sleep, %{seconds: seconds}) end)
  end

  test "grows while calls would wait, and shrinks when idle" do
    pool = start_pool(workers: 1..3, threads: 1, idle_timeout: 3_000, sweep_interval: 500)
    wait_for_workers(pool, 1)
    calls = background(pool, 6, 4)
    wait_until(fn -> length(pids(pool)) > 1 and anonymous(pool, :ping) end, 20_000)
    for result <- Task.await_many(calls, 60_000), do: assert({:ok, _} = result)
    wait_for_workers(pool, 1)
  end

  test "a pool whose workers are full refuses calls and says when to try again" do
    pool = start_pool(workers: 1, threads: 1, queue: 2)
    calls = background(pool, 3, 2)
    wait_until(fn -> SessionPoolV2.get_pool_status(pool).open_calls == 3 end)

    assert {:error, %Error{code: :overloaded, details: %{"retry_after" => _}}} =
             anonymous(pool, :sleep)

    for result <- Task.await_many(calls, 30_000), do: assert({:ok, _} = result)
  end

  test "a worker is replaced after so many requests, its successor first" do
    pool = start_pool(workers: 1, max_requests: 50)
    [worker] = pids(pool)
    {:ok, _} = in_session(pool, "ann", :update_session_data, %{key: "a", value: 1})
    for _ <- 1..60, do: {:ok, _} = anonymous(pool, :ping)
    wait_until(fn -> match?([other] when other != worker, pids(pool)) end, 20_000)
    # Its sessions stay until they have ended.
    assert {:ok, %{"data" => %{"a" => 1}}} = in_session(pool, "ann", :get_session_data)
    assert os_alive?(worker)
    :ok = SessionPoolV2.end_session("ann", pool_name: pool)
    wait_until(fn -> not os_alive?(worker) end, 10_000)
    assert {:ok, _} = anonymous(pool, :ping)
  end

  test "a worker with too much memory is replaced" do
    pool = start_pool(workers: 1, max_rss: 1)
    [worker] = pids(pool)
    wait_until(fn -> pids(pool) not in [[], [worker]] end, 20_000)
  end

  test "a worker that does not answer is ejected, and comes back" do
    pool = start_pool(workers: 2, heartbeat_interval: false)
    wait_for_workers(pool, 2)
    [stopped | _] = pids(pool)
    signal(stopped, :STOP)

    state = fn ->
      Enum.find(SessionPoolV2.get_pool_status(pool).slots, &(&1.worker_pid == stopped)).state
    end

    wait_until(
      fn ->
        for task <-
              for(_ <- 1..10, do: Task.async(fn -> anonymous(pool, :ping, %{}, timeout: 50) end)),
            do: Task.await(task)

        state.() == :ejected
      end,
      20_000
    )

    for _ <- 1..20, do: assert({:ok, _} = anonymous(pool, :ping))
    signal(stopped, :CONT)
    wait_until(fn -> state.() == :ready end, 20_000)
  end

  test "each session has a worker of its own, which ends with it" do
    pool = start_pool(workers: 1, isolate: :session, session_idle: 2_000)
    {:ok, _} = anonymous(pool, :update_session_data, %{key: "all", value: 1})
    {:ok, _} = in_session(pool, "ann", :update_session_data, %{key: "a", value: 1})
    {:ok, _} = in_session(pool, "bob", :update_session_data, %{key: "a", value: 2})
    [ann, bob] = for id <- ["ann", "bob"], do: pid_of(pool, id)
    assert length(Enum.uniq([ann, bob | pids(pool)])) == 3
    assert {:ok, %{"data" => %{"a" => 1}}} = in_session(pool, "ann", :get_session_data)

    :ok = SessionPoolV2.end_session("bob", pool_name: pool)
    wait_until(fn -> not os_alive?(bob) end, 10_000)

    signal(ann, :KILL)
    wait_until(fn -> not Process.alive?(worker_of(pool, "ann").owner) end)
    assert {:error, %Error{code: :session_lost}} = in_session(pool, "ann", :get_session_data)
    assert {:ok, %{"data" => data}} = in_session(pool, "ann", :get_session_data)
    assert data == %{}

    again = pid_of(pool, "ann")
    wait_until(fn -> not os_alive?(again) end, 20_000)
    assert %{sessions: 0} = SessionPoolV2.get_pool_status(pool)
  end

  test "many first calls of one session start one worker" do
    pool = start_pool(workers: 1, isolate: :session, max_sessions: 1)

    calls =
      for n <- 1..20, do: Task.async(fn -> in_session(pool, "ann", :echo_decoded, %{n: n}) end)

    for {result, n} <- Enum.with_index(Task.await_many(calls), 1),
        do: assert({:ok, %{"n" => ^n}} = result)

    assert {:error, %Error{code: :overloaded}} = in_session(pool, "bob", :ping)
  end

  test "sessions that a worker has dropped leave the table of the pool" do
    args = ["--max-sessions", "100", "--session-ttl", "2"]
    pool = start_pool(workers: 2, args: args, sweep_interval: 200)

    1..2_000
    |> Task.async_stream(fn n -> {:ok, _} = in_session(pool, "s#{n}", :sleep) end,
      max_concurrency: 16
    )
    |> Stream.run()

    # The rows of sessions that were used in the last ten seconds stay.
    wait_until(fn -> SessionPoolV2.get_pool_status(pool).sessions == 0 end, 60_000)
  end

  test "a slot moves only along the table of transitions" do
    slot = %Slot{pool: :none, number: 1, owner: self(), started: 0}
    assert %{state: :ready} = ready = Slot.move(slot, :ready, :started)
    assert_raise ArgumentError, fn -> Slot.move(slot, :draining, :no) end
    assert %{state: :gone} = gone = Slot.move(ready, :gone, :no)

    for state <- Map.keys(Slot.transitions()),
        do: assert_raise(ArgumentError, fn -> Slot.move(gone, state, :no) end)
  end

  test "a pool of a template that runs already" do
    socket = Servers.start_server(["--adapter", "echo"]).address
    pool = Module.concat(SessionPoolV2, "Connected")
    start_supervised!({SessionPoolV2, name: pool, workers: 2, connect: socket})
    wait_for_workers(pool, 2)
    for n <- 1..20, do: assert({:ok, %{"n" => ^n}} = anonymous(pool, :echo_decoded, %{n: n}))
    [first | _] = pids(pool)
    signal(first, :KILL)
    wait_until(fn -> first not in pids(pool) and length(pids(pool)) == 2 end, 10_000)

    assert_raise ArgumentError, fn ->
      SessionPoolV2.start_link(name: Refused, connect: socket, adapter: "echo")
    end
  end

  test "a worker that starts while another node's state takes the place of the pool's has only that" do
    pool = start_pool(workers: 1, cluster: true)
    adopt = fn count, keys -> Journal.adopt(pool, :"other@127.0.0.1", {{count, 1}, keys, []}) end
    data = fn key -> {1, {:data, key}, :all, "update_session_data", %{key: key, value: 1}} end
    {:ok, _} = anonymous(pool, :update_session_data, %{key: "own", value: 1})
    # It takes a while until a worker has all of these.
    adopt.(10, for(n <- 1..3_000, do: data.("first #{n}")))
    wait_until(fn -> length(SessionPoolV2.get_pool_status(pool).slots) == 2 end)
    Process.sleep(100)
    log = capture_log(fn -> adopt.(20, [data.("second")]) end)
    assert log =~ "dropped: 3000 × update_session_data\n"
    only = fn {:ok, %{"data" => data}} -> data == %{"second" => 1} end
    wait_until(fn -> only.(anonymous(pool, :get_session_data)) end, 20_000)
  end
end
