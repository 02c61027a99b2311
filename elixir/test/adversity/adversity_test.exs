defmodule DSPex.AdversityTest do
  use ExUnit.Case, async: true

  import Workers
  alias DSPex.PythonBridge.{Bridge, Error}

  @misbehaving [adapter: "bridge_test_adapter:adapter"]

  test "kill -9 with 100 open calls: each fails at once, and the next worker takes calls" do
    bridge = start_bridge()
    worker = worker_pid(bridge)

    callers =
      for _ <- 1..100, do: Task.async(fn -> Bridge.call(bridge, :sleep, %{seconds: 20}, []) end)

    wait_until(fn -> Bridge.get_status(bridge).open_calls == 100 end)
    signal(worker, :KILL)

    for result <- Task.await_many(callers, 2_000) do
      assert {:error, %Error{code: :worker_crashed, category: :connection}} = result
    end

    assert {:ok, %{"status" => "ok"}} = Bridge.call(bridge, :ping, %{}, [])
    assert worker_pid(bridge) != worker
    assert %{restarts: 1, errors: %{worker_crashed: 100}} = Bridge.get_status(bridge).stats
  end

  test "workers killed repeatedly: every reply is correct or an error, and no caller ends" do
    bridge = Bridge.Killed
    child = {Bridge, options(name: bridge)}

    start_supervised!(%{
      id: :tree,
      start: {Supervisor, :start_link, [[child], [strategy: :one_for_one, max_restarts: 100]]}
    })

    stop = :atomics.new(1, [])

    callers =
      for caller <- 1..8 do
        Task.async(fn -> ask_until(bridge, caller, 0, stop, []) end)
      end

    for _ <- 1..5 do
      signal(worker_pid(bridge), :KILL)
      wait_until(fn -> match?({:ok, _}, Bridge.call(bridge, :ping, %{}, [])) end)
    end

    :atomics.put(stop, 1, 1)

    for {asked, errors} <- Task.await_many(callers, 20_000) do
      assert asked > length(errors)
      assert Enum.all?(errors, &(&1.code == :worker_crashed))
    end
  end

  defp ask_until(bridge, caller, number, stop, errors) do
    errors =
      case Bridge.call(bridge, :echo, %{"is" => [caller, number]}, []) do
        {:ok, %{"is" => [^caller, ^number]}} -> errors
        {:error, error} -> [error | errors]
      end

    if :atomics.get(stop, 1) == 1,
      do: {number + 1, errors},
      else: ask_until(bridge, caller, number + 1, stop, errors)
  end

  test "a caller that ends: its call is cancelled, and nothing else happens" do
    bridge = start_bridge(@misbehaving)
    worker = worker_pid(bridge)
    other = Task.async(fn -> Bridge.call(bridge, :events, %{count: 0, then: 0.5}, []) end)
    caller = spawn(fn -> Bridge.call(bridge, :never, %{}, []) end)
    wait_until(fn -> Bridge.get_status(bridge).open_calls == 2 end)
    Process.exit(caller, :kill)
    wait_until(fn -> Bridge.call!(bridge, :stopped, %{}, [])["stopped"] end)
    assert %{"sent" => 0} = elem(Task.await(other), 1)
    assert worker_pid(bridge) == worker
    assert %{abandoned: 1} = Bridge.get_status(bridge).stats
  end

  test "a handler that does not return: the deadline ends the call" do
    bridge = start_bridge(@misbehaving)
    assert {:error, %Error{code: :deadline_exceeded}} = Bridge.call(bridge, :never, %{}, 100)
    assert wait_until(fn -> Bridge.call!(bridge, :stopped, %{}, [])["stopped"] end)
    assert {:ok, _} = Bridge.call(bridge, :ping, %{}, [])
  end

  test "a worker that prints to stdout does not break the pipe" do
    bridge = start_bridge(@misbehaving)
    assert Bridge.call(bridge, :print, %{}, []) == {:ok, %{"printed" => true}}
    assert {:ok, _} = Bridge.call(bridge, :ping, %{}, [])
  end

  test "1 000 short-lived callers while a worker starts: each gets its reply" do
    bridge = Bridge.ShortLived
    parent = self()

    for number <- 1..1_000 do
      spawn(fn ->
        # The process is registered before its worker starts.
        wait_until(fn -> Process.whereis(bridge) end, 30_000)
        send(parent, {number, Bridge.call(bridge, :echo, %{"n" => number}, [])})
      end)
    end

    start_supervised!({Bridge, options(name: bridge)})
    for number <- 1..1_000, do: assert_receive({^number, {:ok, %{"n" => ^number}}}, 30_000)
    worker = worker_pid(bridge)

    # Callers that end before their replies do not affect the worker.
    for _ <- 1..1_000 do
      pid = spawn(fn -> Bridge.call(bridge, :sleep, %{seconds: 0.001}, []) end)
      Process.exit(pid, :kill)
    end

    assert {:ok, _} = Bridge.call(bridge, :ping, %{}, [])
    assert worker_pid(bridge) == worker
    wait_until(fn -> Bridge.get_status(bridge).open_calls == 0 end)
  end

  test "60 MiB are sent and returned" do
    bridge = start_bridge()
    blob = :binary.copy("0123456789abcdef", 60 * 65_536)
    assert {:ok, %{"blob" => ^blob}} = Bridge.call(bridge, :echo, %{"blob" => blob}, [])
  end

  test "a stopped worker (SIGSTOP) does not block callers beyond their timeout" do
    bridge = start_bridge(heartbeat_interval: false)
    worker = worker_pid(bridge)
    signal(worker, :STOP)
    blob = :binary.copy("x", 3_000_000)

    callers =
      for _ <- 1..10 do
        Task.async(fn ->
          :timer.tc(fn -> Bridge.call(bridge, :echo, %{"blob" => blob}, 300) end)
        end)
      end

    for {took, result} <- Task.await_many(callers, 5_000) do
      assert {:error, %Error{code: :deadline_exceeded}} = result
      assert took < 3_000_000
    end

    # The bridge itself answers and can be stopped.
    assert %{status: :running} = Bridge.get_status(bridge)
    signal(worker, :CONT)
    assert {:ok, _} = Bridge.call(bridge, :ping, %{}, [])
  end

  @tag :port
  test "a worker that misses heartbeats is replaced" do
    bridge = start_bridge(heartbeat_interval: 50)
    worker = worker_pid(bridge)
    call = Task.async(fn -> Bridge.call(bridge, :sleep, %{seconds: 20}, []) end)
    wait_until(fn -> Bridge.get_status(bridge).open_calls == 1 end)
    signal(worker, :STOP)

    assert {:error, %Error{code: :worker_crashed, details: %{"heartbeats" => 3}}} =
             Task.await(call)

    assert {:ok, _} = Bridge.call(bridge, :ping, %{}, [])
    wait_until(fn -> not os_alive?(worker) end)
  end

  @tag :port
  test "stopping a bridge kills a worker that neither ends nor reads" do
    {:ok, pid} = Bridge.start_link(options(name: nil, heartbeat_interval: false))
    worker = worker_pid(pid)
    signal(worker, :STOP)
    blob = :binary.copy("x", 12_000_000)
    assert {:error, _} = Bridge.call(pid, :echo, %{"blob" => blob}, 50)
    assert Bridge.stop(pid) == :ok
    wait_until(fn -> not os_alive?(worker) end)
  end

  @tag :port
  test "kill -9 of the BEAM leaves no Python process" do
    code = """
    {:ok, _} = DSPex.PythonBridge.Bridge.start_link(adapter: "bridge_test_adapter:adapter")
    spawn(fn -> DSPex.PythonBridge.Bridge.call(:never) end)
    IO.puts("worker #\{DSPex.PythonBridge.Bridge.get_status().worker_pid}")
    IO.puts("beam #\{System.pid()}")
    Process.sleep(:infinity)
    """

    port =
      Port.open({:spawn_executable, System.find_executable("elixir")}, [
        :binary,
        {:line, 200},
        {:args, ["-pa", Path.join(Mix.Project.app_path(), "ebin"), "-e", code]},
        {:env, [{~c"PYTHONPATH", to_charlist(options()[:env][:PYTHONPATH])}]}
      ])

    assert_receive {^port, {:data, {:eol, "worker " <> worker}}}, 15_000
    assert_receive {^port, {:data, {:eol, "beam " <> beam}}}, 5_000
    assert os_alive?(worker)
    signal(beam, :KILL)
    wait_until(fn -> not os_alive?(worker) end, 1_000)
  end
end
