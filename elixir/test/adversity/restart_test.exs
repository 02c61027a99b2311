defmodule DSPex.RestartTest do
  use ExUnit.Case, async: true

  import Workers
  alias DSPex.PythonBridge.{Bridge, Connection, Error}

  @misbehaving [adapter: "bridge_test_adapter:adapter"]

  defp restarted(bridge, worker) do
    wait_until(fn ->
      status = Bridge.get_status(bridge)
      status.status == :running and status.worker_pid != worker
    end)
  end

  # The test adapter has no command `register_tools`, so the function is added to the table
  # directly.
  defp add_tool(bridge, name, function) do
    :ets.insert(Connection.fetch!(bridge).functions, {{"default", :tool, name}, function})
  end

  test "a stream of an ended worker does not affect the calls of the next worker" do
    bridge = start_bridge(@misbehaving)
    worker = worker_pid(bridge)
    parent = self()

    stream =
      Task.async(fn ->
        events = Bridge.stream(bridge, :events, %{count: 1, then: 60}, [])

        slowly = fn event ->
          send(parent, {:got, event})
          receive do: (:go_on -> :ok)
        end

        catch_error(Enum.each(events, slowly)).code
      end)

    assert_receive {:got, {:chunk, _}}, 5_000
    signal(worker, :KILL)
    restarted(bridge, worker)

    others =
      for _ <- 1..3,
          do: Task.async(fn -> Bridge.call(bridge, :events, %{count: 0, then: 0.5}, []) end)

    wait_until(fn -> Bridge.get_status(bridge).open_calls == 3 end)
    send(stream.pid, :go_on)
    assert Task.await(stream) == :worker_crashed
    for result <- Task.await_many(others), do: assert({:ok, %{"sent" => 0}} = result)
  end

  test "a connection of an ended worker fails and has no other effect" do
    parent = self()
    bridge = start_bridge(setup: fn connection -> send(parent, {:connection, connection}) end)
    assert_receive {:connection, old}
    worker = worker_pid(bridge)
    signal(worker, :KILL)
    restarted(bridge, worker)

    others =
      for _ <- 1..3, do: Task.async(fn -> Bridge.call(bridge, :sleep, %{seconds: 0.3}, []) end)

    wait_until(fn -> Bridge.get_status(bridge).open_calls == 3 end)
    assert {:error, %Error{code: :worker_crashed}} = Bridge.call(old, :ping, %{}, [])
    for result <- Task.await_many(others), do: assert({:ok, _} = result)
  end

  test "a call by name during a slow stop waits for the next worker" do
    bridge = start_bridge(@misbehaving)
    worker = worker_pid(bridge)
    spawn(fn -> Bridge.call(bridge, :hold, %{}, []) end)
    wait_until(fn -> Bridge.get_status(bridge).open_calls == 1 end)
    spawn(fn -> Bridge.stop(bridge) end)
    wait_until(fn -> Bridge.get_status(bridge).status == :stopping end)
    assert {:ok, _} = Bridge.call(bridge, :sent, %{}, [])
    assert worker_pid(bridge) != worker
  end

  @tag :port
  test "a worker whose port is closed is killed and replaced" do
    {:ok, bridge} = Bridge.start_link(options(name: nil))
    worker = worker_pid(bridge)
    port = Connection.fetch!(bridge).port
    signal(worker, :STOP)
    Process.exit(port, :kill)
    wait_until(fn -> not os_alive?(worker) end)
    assert {:ok, _} = Bridge.call(bridge, :ping, %{}, [])
    assert worker_pid(bridge) != worker
  end

  @tag :port
  test "a start whose setup fails leaves no process" do
    Process.flag(:trap_exit, true)
    parent = self()

    setup = fn connection ->
      send(parent, {:setup, self(), connection})
      Process.sleep(:infinity)
    end

    start =
      Task.async(fn ->
        Process.flag(:trap_exit, true)
        Bridge.start_link(options(name: nil, setup: setup, heartbeat_interval: 50))
      end)

    assert_receive {:setup, pid, connection}, 10_000
    assert %{status: :starting, worker_pid: worker} = Bridge.get_status(connection)
    signal(worker, :STOP)
    assert {:error, {:shutdown, %Error{message: message}}} = Task.await(start)
    assert message =~ "heartbeats"
    refute Process.alive?(pid)
    wait_until(fn -> not os_alive?(worker) end)
  end

  @tag :port
  test "reports a program that is not Python" do
    Process.flag(:trap_exit, true)

    assert {:error, {:shutdown, error}} =
             Bridge.start_link(options(name: nil, python: "/bin/true"))

    assert error.message =~ "is not a Python interpreter"
  end

  test "heartbeats survive large requests in both directions" do
    # For longer than four heartbeat intervals, with the port full most of the time.
    interval = 700
    bridge = start_bridge(heartbeat_interval: interval)
    worker = worker_pid(bridge)
    blob = :binary.copy("x", 12_000_000)

    enough = System.monotonic_time(:millisecond) + 5 * interval
    callers = for _ <- 1..8, do: Task.async(fn -> echo_until(enough, bridge, blob) end)

    Task.await_many(callers, 60_000)
    assert worker_pid(bridge) == worker
  end

  defp echo_until(time, bridge, blob) do
    {:ok, _} = Bridge.call(bridge, :echo, %{"blob" => blob}, [])
    if System.monotonic_time(:millisecond) < time, do: echo_until(time, bridge, blob)
  end

  test "a timeout longer than the maximum of `receive`" do
    bridge = start_bridge()
    assert {:ok, _} = Bridge.call(bridge, :ping, %{}, 5_000_000_000)
    refute_received _
  end

  test "a tool that is killed, and a request for an unknown tool, are answered" do
    bridge = start_bridge(@misbehaving)

    linked = fn _ ->
      spawn_link(fn -> exit(:boom) end)
      Process.sleep(:infinity)
    end

    add_tool(bridge, "linked", linked)

    assert {:error, %Error{code: :handler_error, message: message}} =
             Bridge.call(bridge, :ask, %{name: "linked"}, [])

    assert message =~ "boom"
    assert {:error, %Error{code: :invalid_args}} = Bridge.call(bridge, :ask, %{}, [])
  end

  test "a tool that does not return ends with its bridge" do
    {:ok, bridge} = Bridge.start_link(options(@misbehaving ++ [name: nil]))
    parent = self()

    endless = fn _ ->
      send(parent, {:tool, self()})
      Process.sleep(:infinity)
    end

    add_tool(bridge, "endless", endless)

    assert {:error, %Error{code: :deadline_exceeded}} =
             Bridge.call(bridge, :ask, %{name: "endless"}, 100)

    assert_receive {:tool, tool}
    Bridge.stop(bridge)
    wait_until(fn -> not Process.alive?(tool) end)
  end
end
