defmodule DSPex.PythonBridge.ObservingTest do
  use ExUnit.Case, async: false

  import ExUnit.CaptureLog
  import Workers
  alias DSPex.PythonBridge.{Bridge, CircuitBreaker, Connection, Statistics}

  test "calls and workers emit telemetry events" do
    :telemetry.listen()
    bridge = start_bridge()

    assert_received {[:dspex_bridge, :worker, :started], %{duration: duration},
                     %{bridge: ^bridge, os_pid: os_pid}}

    assert duration > 0
    assert os_pid == worker_pid(bridge)
    assert_received {[:dspex_bridge, :call, :start], _, %{command: "hello", bridge: ^bridge}}
    assert_received {[:dspex_bridge, :call, :stop], _, %{command: "hello", bridge: ^bridge}}

    # However a caller names the bridge.
    for server <- [bridge, Process.whereis(bridge), {bridge, node()}, Connection.fetch!(bridge)] do
      Bridge.call(server, :ping, %{}, session_id: "s")
      metadata = %{bridge: bridge, command: :ping, session_id: "s"}
      assert_received {[:dspex_bridge, :call, :start], _, ^metadata}
      metadata = Map.put(metadata, :code, :ok)
      assert_received {[:dspex_bridge, :call, :stop], %{duration: _}, ^metadata}
    end

    Bridge.call(bridge, :pong, %{}, [])
    assert_received {[:dspex_bridge, :call, :stop], _, %{command: :pong, code: :unknown_command}}

    Bridge.call(bridge, :ping, %{blob: :binary.copy("x", 65 * 1024 * 1024)}, [])
    assert_received {[:dspex_bridge, :call, :stop], _, %{code: :frame_too_large}}

    Bridge.call(:no_such_bridge, :ping, %{}, 1)

    assert_received {[:dspex_bridge, :call, :stop], _,
                     %{code: :worker_crashed, bridge: :no_such_bridge}}

    Bridge.stop(bridge)

    assert_receive {[:dspex_bridge, :worker, :stopped], %{uptime: _},
                    %{reason: :normal, bridge: ^bridge}}
  end

  test "a circuit breaker emits an event when it changes" do
    :telemetry.listen()
    time = :counters.new(1, [])
    breaker = CircuitBreaker.new(name: MyPool, clock: fn -> :counters.get(time, 1) end)
    for _ <- 1..5, do: CircuitBreaker.settle(breaker, "openai", nil, false)
    metadata = %{pool: MyPool, key: "openai", from: :closed}
    assert_received {[:dspex_bridge, :breaker, :open], %{}, ^metadata}
    :counters.put(time, 1, 60_000)

    for _ <- 1..3 do
      {:ok, permit} = CircuitBreaker.admit(breaker, "openai")
      CircuitBreaker.settle(breaker, "openai", permit, true)
    end

    assert_received {[:dspex_bridge, :breaker, :half_open], %{}, %{from: :open}}
    assert_received {[:dspex_bridge, :breaker, :closed], %{}, %{from: :half_open}}
    refute_received {[:dspex_bridge, :breaker, _], _, _}
  end

  test "casts and streams emit telemetry events" do
    :telemetry.listen()
    bridge = start_bridge(adapter: "bridge_test_adapter:adapter")

    Bridge.cast(bridge, :sent, %{})
    assert_received {[:dspex_bridge, :cast, :start], _, %{command: :sent, bridge: ^bridge}}
    assert_received {[:dspex_bridge, :cast, :stop], %{duration: _}, %{code: :ok, bridge: ^bridge}}
    Bridge.cast(bridge, :sent, %{pid: self()})
    assert_received {[:dspex_bridge, :cast, :stop], _, %{code: :not_encodable}}

    for {take, command, args, code, events} <- [
          {:all, :events, %{count: 3}, :ok, 3},
          {1, :events, %{count: 3, then: 60}, :halted, 1},
          {:all, :pong, %{}, :unknown_command, 0},
          {:all, :events, %{pid: self()}, :not_encodable, 0}
        ] do
      stream = Bridge.stream(bridge, command, args, session_id: "s")

      try do
        if take == :all, do: Enum.to_list(stream), else: Enum.take(stream, take)
      rescue
        DSPex.PythonBridge.Error -> :ok
      end

      metadata = %{bridge: bridge, command: command, session_id: "s"}
      assert_received {[:dspex_bridge, :stream, :start], %{monotonic_time: _}, ^metadata}
      metadata = Map.put(metadata, :code, code)

      assert_received {[:dspex_bridge, :stream, :stop], %{duration: _, events: ^events},
                       ^metadata}

      refute_received {[:dspex_bridge, :stream, :stop], _, _}
    end

    assert_raise DSPex.PythonBridge.Error, fn ->
      Enum.to_list(Bridge.stream(:no_such_bridge, :ping, %{}, 1))
    end

    assert_received {[:dspex_bridge, :stream, :stop], _, %{code: :worker_crashed}}
  end

  test "tools emit telemetry events" do
    :telemetry.listen()
    bridge = start_bridge(adapter: "bridge_test_adapter:adapter", tool_timeout: 100)
    functions = Connection.fetch!(bridge).functions

    for {name, run, event, further} <- [
          {"fine", fn _ -> 1 end, :stop, %{code: :ok}},
          {"late", fn _ -> Process.sleep(:infinity) end, :stop, %{code: :deadline_exceeded}},
          {"raises", fn _ -> raise "no" end, :exception, %{kind: :error}},
          {"killed", fn _ -> Process.exit(self(), :kill) end, :exception, %{reason: :killed}}
        ] do
      :ets.insert(functions, {{"s", :tool, name}, run})
      Bridge.call(bridge, :ask, %{name: name}, session_id: "s")
      metadata = %{bridge: bridge, tool: name, session_id: "s"}
      assert_received {[:dspex_bridge, :tool, :start], _, found}
      assert Map.take(found, [:bridge, :tool, :session_id]) == metadata
      assert is_integer(found.call_id)
      assert_receive {[:dspex_bridge, :tool, ^event], %{duration: _}, found}
      assert Map.take(found, Map.keys(further)) == further
      assert Map.take(found, [:bridge, :tool, :session_id]) == metadata
      if event == :exception, do: assert(is_list(found.stacktrace))
    end
  end

  test "other functions emit telemetry events of their own" do
    :telemetry.listen()
    bridge = start_bridge(adapter: "bridge_test_adapter:adapter", rewards: [one: fn _ -> 1 end])
    args = %{command: "call_reward", args: %{name: "one"}}
    assert {:ok, %{"answer" => 1}} = Bridge.call(bridge, :ask_host, args, [])
    metadata = %{bridge: bridge, kind: :reward, name: "one", session_id: "default", code: :ok}
    assert_receive {[:dspex_bridge, :function, :stop], %{duration: _}, found}
    assert Map.take(found, Map.keys(metadata)) == metadata
  end

  test "the worker's logs go to Logger, with their metadata" do
    bridge = start_bridge(adapter: "bridge_test_adapter:adapter")

    log =
      capture_log([metadata: [:bridge, :session_id, :command, :request_id]], fn ->
        Bridge.call(bridge, :log, %{}, session_id: "ann")
      end)

    assert log =~ "careful with that"
    assert log =~ "[warning]" or log =~ "[warn]"
    assert log =~ "bridge=#{inspect(bridge)}"
    assert log =~ "session_id=ann"
    assert log =~ "command=log"
    assert log =~ "request_id="
  end

  test "a Python exception is one line on the console, and its traceback is metadata" do
    bridge = start_bridge(adapter: "bridge_test_adapter:adapter")
    config = %{config: self()}
    :ok = :logger.add_handler(:observing_test, __MODULE__, config)
    on_exit(fn -> :logger.remove_handler(:observing_test) end)

    log =
      capture_log(fn ->
        assert {:error, error} = Bridge.call(bridge, :fail, %{}, [])
        refute error.message =~ "\n"
        assert error.message =~ "not caught"
      end)

    assert log =~ "it went wrong: (ValueError: first line)\n"
    refute log =~ "Traceback"
    refute log =~ "in two lines"

    assert_received {:logged,
                     %{python_error: "Traceback" <> _ = traceback, bridge: ^bridge} = meta}

    assert traceback =~ "ValueError: first line\nsecond line"
    assert meta.python_message =~ "it went wrong:\nin two lines"
  end

  # The callback of an Erlang logger handler.
  @doc false
  def log(%{meta: meta}, %{config: test}), do: send(test, {:logged, meta})

  test "a crash and the error of a cast are logged" do
    bridge = start_bridge()

    log =
      capture_log(fn ->
        Bridge.cast(bridge, :pong, %{})
        Bridge.call(bridge, :ping, %{}, [])
      end)

    assert log =~ "Unknown command: pong"

    log =
      capture_log(fn ->
        signal(worker_pid(bridge), :KILL)
        wait_until(fn -> Bridge.get_status(bridge)[:stats][:restarts] == 1 end)
      end)

    assert log =~ "the worker ended with status 137" or log =~ "the worker's port was closed"
  end

  test "late replies are dropped and counted" do
    bridge = start_bridge()
    caller = spawn(fn -> Bridge.call(bridge, :sleep, %{seconds: 5}, []) end)
    wait_until(fn -> Bridge.get_status(bridge).open_calls == 1 end)
    Process.exit(caller, :kill)
    wait_until(fn -> Bridge.get_status(bridge).stats.late_replies == 1 end)
  end

  test "counters survive a restart under the same name" do
    counters = Statistics.for_name(:counted_name)
    Statistics.count(counters, :starts)
    Statistics.count(Statistics.for_name(:counted_name), :starts)
    assert %{starts: 2, restarts: 1, errors: errors} = Statistics.read(counters)
    assert errors == %{}
  end
end
