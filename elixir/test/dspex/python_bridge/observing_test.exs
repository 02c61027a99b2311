defmodule DSPex.PythonBridge.ObservingTest do
  use ExUnit.Case, async: false

  import ExUnit.CaptureLog
  import Workers
  alias DSPex.PythonBridge.{Bridge, Statistics}

  test "calls and workers emit telemetry events" do
    :telemetry.listen()
    bridge = start_bridge()
    assert_received {[:dspex_bridge, :worker, :started], %{duration: duration}, %{os_pid: os_pid}}
    assert duration > 0
    assert os_pid == worker_pid(bridge)
    assert_received {[:dspex_bridge, :call, :start], _, %{command: "hello"}}
    assert_received {[:dspex_bridge, :call, :stop], _, %{command: "hello"}}

    Bridge.call(bridge, :ping, %{}, session_id: "s")
    assert_received {[:dspex_bridge, :call, :start], _, %{command: :ping, session_id: "s"}}
    assert_received {[:dspex_bridge, :call, :stop], %{duration: _}, %{command: :ping, code: :ok}}

    Bridge.call(bridge, :pong)
    assert_received {[:dspex_bridge, :call, :stop], _, %{command: :pong, code: :unknown_command}}

    Bridge.call(bridge, :ping, %{blob: :binary.copy("x", 65 * 1024 * 1024)})
    assert_received {[:dspex_bridge, :call, :stop], _, %{code: :frame_too_large}}

    Bridge.stop(bridge)
    assert_receive {[:dspex_bridge, :worker, :stopped], %{uptime: _}, %{reason: :normal}}
  end

  test "the worker's logs go to Logger" do
    bridge = start_bridge(adapter: "bridge_test_adapter:adapter")
    log = capture_log(fn -> Bridge.call(bridge, :log) end)
    assert log =~ "careful with that"
    assert log =~ "[warning]" or log =~ "[warn]"
  end

  test "a crash and the error of a cast are logged" do
    bridge = start_bridge()

    log =
      capture_log(fn ->
        Bridge.cast(bridge, :pong)
        Bridge.call(bridge, :ping)
      end)

    assert log =~ "Unknown command: pong"

    log =
      capture_log(fn ->
        signal(worker_pid(bridge), :KILL)
        wait_until(fn -> Bridge.get_status(bridge)[:stats][:restarts] == 1 end)
      end)

    assert log =~ "the worker ended with status 137" or log =~ "the worker is gone"
  end

  test "late replies are dropped and counted" do
    bridge = start_bridge()
    caller = spawn(fn -> Bridge.call(bridge, :sleep, %{seconds: 5}) end)
    wait_until(fn -> Bridge.get_status(bridge).open_calls == 1 end)
    Process.exit(caller, :kill)
    wait_until(fn -> Bridge.get_status(bridge).stats.late_replies == 1 end)
  end

  test "counters belong to a name" do
    counters = Statistics.for_name(:counted_name)
    Statistics.count(counters, :starts)
    Statistics.count(Statistics.for_name(:counted_name), :starts)
    assert %{starts: 2, restarts: 1, errors: errors} = Statistics.read(counters)
    assert errors == %{}
  end
end
