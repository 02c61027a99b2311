defmodule DSPex.Pool.FailureTest do
  # Ends of workers, of the template and of the pool.
  use ExUnit.Case, async: true

  import Pools
  import Workers
  alias DSPex.PythonBridge.{Error, SessionPoolV2}

  @moduletag timeout: 120_000

  defp anonymous(pool, command, args \\ %{}, options \\ []) do
    SessionPoolV2.execute_anonymous(command, args, [pool_name: pool] ++ options)
  end

  defp in_session(pool, id, command, args \\ %{}, options \\ []) do
    SessionPoolV2.execute_in_session(id, command, args, [pool_name: pool] ++ options)
  end

  # Kills the worker that runs a call.
  defp kill_busy(pool) do
    pid = wait_until(fn -> busy(pool) end)
    signal(pid, :KILL)
    pid
  end

  defp busy(pool) do
    Enum.find_value(
      SessionPoolV2.get_pool_status(pool).slots,
      &(&1.open_calls > 0 && &1.worker_pid)
    )
  end

  test "an idempotent call is repeated by another worker, once the first has ended" do
    pool = start_pool()
    wait_for_workers(pool, 2)
    call = Task.async(fn -> anonymous(pool, :sleep, %{seconds: 1}) end)
    kill_busy(pool)
    assert {:ok, %{"slept" => _}} = Task.await(call)
    wait_for_workers(pool, 2)
  end

  test "any other call gets the error that says how its worker has ended" do
    pool = start_pool(adapter: "bridge_test_adapter:adapter")
    wait_for_workers(pool, 2)
    call = Task.async(fn -> anonymous(pool, :events, %{count: 0, then: 20}) end)
    kill_busy(pool)
    assert {:error, %Error{code: :worker_crashed} = error} = Task.await(call)
    assert error.details["signal"] == "SIGKILL" or error.details["exit_status"] == 137
    assert {:ok, _} = anonymous(pool, :ping)
  end

  test "a call that two workers had when they were killed is not sent a third time" do
    pool = start_pool(workers: 3)
    wait_for_workers(pool, 3)
    call = Task.async(fn -> anonymous(pool, :sleep, %{seconds: 20}) end)
    first = kill_busy(pool)
    wait_until(fn -> busy(pool) not in [nil, first] end)
    kill_busy(pool)
    assert {:error, %Error{code: :worker_crashed}} = Task.await(call, 15_000)
  end

  test "a call has one deadline, whatever happens to its workers" do
    pool = start_pool()
    wait_for_workers(pool, 2)
    call = Task.async(fn -> anonymous(pool, :sleep, %{seconds: 20}, timeout: 1_000) end)
    kill_busy(pool)
    assert {:error, %Error{code: :deadline_exceeded}} = Task.await(call, 3_000)
  end

  test "a worker that does not make a change for all is replaced" do
    pool = start_pool()
    wait_for_workers(pool, 2)
    workers = pids(pool)
    [stopped, other] = workers
    signal(stopped, :STOP)

    # Whichever worker is asked first: either it does not answer, or the other one does not follow.
    anonymous(pool, :update_session_data, %{key: "a", value: 1}, timeout: 300)
    wait_until(fn -> stopped not in pids(pool) and length(pids(pool)) == 2 end, 20_000)
    signal(stopped, :KILL)
    assert other in pids(pool)
    {:ok, _} = anonymous(pool, :update_session_data, %{key: "b", value: 2})

    datas =
      for _ <- 1..10, {:ok, %{"data" => data}} = anonymous(pool, :get_session_data), do: data

    assert [%{"b" => 2}] = Enum.uniq(datas)
  end

  test "a durable session goes on in another worker" do
    folder = Path.join(System.tmp_dir!(), "bridge-store-#{System.unique_integer([:positive])}")
    File.mkdir_p!(folder)
    on_exit(fn -> File.rm_rf!(folder) end)
    pool = start_pool(args: ["--store", "sqlite:#{folder}/sessions.db"])
    wait_for_workers(pool, 2)
    {:ok, _} = in_session(pool, "ann", :create_session, %{durable: true})
    {:ok, _} = in_session(pool, "ann", :update_session_data, %{key: "a", value: 1})
    {:ok, _} = in_session(pool, "bob", :update_session_data, %{key: "a", value: 1})

    for pid <- Enum.uniq([pid_of(pool, "ann"), pid_of(pool, "bob")]), do: signal(pid, :KILL)
    wait_until(fn -> not alive?(pool, "ann") and not alive?(pool, "bob") end)
    assert {:ok, %{"data" => %{"a" => 1}}} = in_session(pool, "ann", :get_session_data)
    assert {:error, %Error{code: :session_lost}} = in_session(pool, "bob", :get_session_data)
    assert {:ok, %{"data" => %{}}} = in_session(pool, "bob", :get_session_data)
    assert :ok = SessionPoolV2.end_session("ann", pool_name: pool)
    assert {:ok, %{"data" => data}} = in_session(pool, "ann", :get_session_data)
    assert data == %{}
  end

  defp alive?(pool, id), do: Process.alive?(worker_of(pool, id).owner)

  test "the end of the template leaves the workers, and another one takes its place" do
    pool = start_pool()
    wait_for_workers(pool, 2)
    workers = pids(pool)
    template = template_pid(pool)
    call = Task.async(fn -> anonymous(pool, :sleep, %{seconds: 0.5}) end)
    signal(template, :KILL)
    assert {:ok, _} = Task.await(call)
    wait_until(fn -> template_pid(pool) not in [nil, template] end)
    assert Enum.sort(pids(pool)) == Enum.sort(workers)
    for pid <- workers, do: signal(pid, :KILL)
    wait_until(fn -> length(pids(pool) -- workers) == 2 end, 20_000)
    assert {:ok, _} = anonymous(pool, :ping)
  end

  defp template_pid(pool) do
    with %{current: %{os_pid: pid}} <- :sys.get_state(Module.concat(pool, "Template")), do: pid
  end

  test "renew replaces the template and the workers without a failed call" do
    pool = start_pool()
    wait_for_workers(pool, 2)
    {workers, template} = {pids(pool), template_pid(pool)}
    stop = :atomics.new(1, [])

    callers = for _ <- 1..4, do: Task.async(fn -> call_until(stop, pool, 0) end)

    :ok = SessionPoolV2.renew(pool)

    wait_until(
      fn -> template_pid(pool) != template and length(pids(pool) -- workers) == 2 end,
      20_000
    )

    wait_until(fn -> not Enum.any?([template | workers], &os_alive?/1) end, 20_000)
    :atomics.put(stop, 1, 1)
    # None has failed, which would have ended the test.
    Task.await_many(callers)
  end

  defp call_until(stop, pool, count) do
    {:ok, %{"n" => ^count}} = anonymous(pool, :echo_decoded, %{n: count})
    if :atomics.get(stop, 1) == 1, do: count, else: call_until(stop, pool, count + 1)
  end

  test "a pool whose workers cannot start says why, and starts when they can" do
    python = breakable_python()
    break(python, "no such thing")
    pool = start_pool(python: python)
    assert {:error, %Error{message: message}} = anonymous(pool, :ping, %{}, timeout: 300)
    assert message =~ "no such thing"
    assert %{status: :starting, last_error: %Error{}} = SessionPoolV2.get_pool_status(pool)
    mend(python)
    assert {:ok, _} = anonymous(pool, :ping)
  end

  test "without retry_start the start fails with the reason" do
    Process.flag(:trap_exit, true)
    python = breakable_python()
    break(python, "no such thing")

    for fork <- [true, false] do
      assert {:error, {:shutdown, %Error{message: message}}} =
               SessionPoolV2.start_link(options(name: FailingPool, python: python, fork: fork))

      assert message =~ "no such thing"
    end
  end

  test "an address where nothing listens is the reason why a pool does not start" do
    Process.flag(:trap_exit, true)

    for {address, reason} <- [{"unix:/nowhere.sock", "no socket"}, {"tcp:1", "not an address"}] do
      assert {:error, {:shutdown, %Error{category: :initialization, message: message}}} =
               SessionPoolV2.start_link(name: FailingPool, connect: address)

      assert message =~ reason
    end
  end

  test "nothing is left of a pool that was stopped" do
    {:ok, _} = SessionPoolV2.start_link(options(name: StoppedPool, workers: 2))
    wait_for_workers(StoppedPool, 2)
    %{folder: folder, current: %{os_pid: template}} = :sys.get_state(StoppedPool.Template)
    processes = [template | pids(StoppedPool)]
    assert {:ok, %{mode: mode}} = File.stat(folder)
    assert Bitwise.band(mode, 0o777) == 0o700
    :ok = SessionPoolV2.stop(StoppedPool)
    refute File.exists?(folder)
    wait_until(fn -> not Enum.any?(processes, &os_alive?/1) end)
    assert {:error, %Error{code: :worker_crashed}} = anonymous(StoppedPool, :ping)
  end

  test "calls of a pool that is killed, while they run and afterwards" do
    {:ok, supervisor} =
      Supervisor.start_link(
        [{SessionPoolV2, options(name: KilledPool, adapter: "bridge_test_adapter:adapter")}],
        strategy: :one_for_one,
        # The names of the pool's processes are free again after a moment.
        max_restarts: 10_000
      )

    in_session = &SessionPoolV2.execute_in_session(&1, &2, %{}, pool_name: KilledPool)
    {:ok, _} = in_session.("ann", :envelope)
    calls = for n <- 1..20, do: Task.async(fn -> in_session.("s#{n}", :hold) end)
    wait_until(fn -> SessionPoolV2.get_pool_status(KilledPool).open_calls == 20 end)
    Process.exit(Process.whereis(KilledPool), :kill)
    now = in_session.("ann", :envelope)
    # An answer that was on its way, or the error; in no case an exception.
    for result <- [now | Task.await_many(calls, 20_000)],
        do: assert(elem(result, 0) in [:ok, :error])

    wait_until(fn -> match?({:ok, _}, in_session.("ann", :envelope)) end, 20_000)
    Supervisor.stop(supervisor)
  end

  test "a server that fails is restarted, and the pool goes on" do
    pool = start_pool()
    wait_for_workers(pool, 2)
    Process.exit(DSPex.PythonBridge.Pool.get(pool).server, :kill)
    assert {:ok, _} = anonymous(pool, :ping)
    wait_for_workers(pool, 2)
  end

  test "workers on ports, where there is no template" do
    pool = start_pool(fork: false)
    wait_for_workers(pool, 2)
    call = Task.async(fn -> anonymous(pool, :sleep, %{seconds: 0.5}) end)
    kill_busy(pool)
    assert {:ok, _} = Task.await(call)
  end

  test "workers and templates are killed again and again: each call has one answer, its own" do
    counts = Storm.run(3)
    assert counts.calls > 100
    assert %{wrong: 0, stray: 0, left: 0} = counts
    assert counts.errors <= 1 + counts.calls / 100
  end

  test "the end of the BEAM is the end of the template, the workers and the folder" do
    code = """
    {:ok, _} = DSPex.PythonBridge.SessionPoolV2.start_link(adapter: "echo", workers: 2)
    folder = :sys.get_state(DSPex.PythonBridge.SessionPoolV2.Template).folder
    pids = for slot <- DSPex.PythonBridge.SessionPoolV2.get_pool_status().slots, do: slot.worker_pid
    IO.puts("started " <> Enum.join([folder | Enum.filter(pids, & &1)], " "))
    Process.sleep(:infinity)
    """

    paths = Enum.flat_map(:code.get_path(), &["-pa", to_string(&1)])
    elixir = System.find_executable("elixir")

    port =
      Port.open({:spawn_executable, elixir}, [
        :binary,
        :exit_status,
        line: 10_000,
        args: paths ++ ["-e", code]
      ])

    {:os_pid, beam} = Port.info(port, :os_pid)
    assert_receive {^port, {:data, {:eol, "started " <> line}}}, 60_000
    [folder | pids] = String.split(line)
    signal(beam, :KILL)
    wait_until(fn -> not File.exists?(folder) and not Enum.any?(pids, &os_alive?/1) end, 5_000)
  end
end
