defmodule DSPex.PythonBridge.BridgeTest do
  use ExUnit.Case, async: true

  import Workers
  alias DSPex.PythonBridge.{Bridge, Error}

  describe "call" do
    setup do: {:ok, bridge: start_bridge()}

    test "ping returns a map with string keys", %{bridge: bridge} do
      assert {:ok, %{"status" => "ok"}} = Bridge.call(bridge, :ping, %{}, [])
    end

    test "args are returned unchanged", %{bridge: bridge} do
      args = %{text: "ü", number: 1.5, list: [1, nil, true], nested: %{"a" => %{}}}

      assert Bridge.call(bridge, "echo_decoded", args, []) ==
               {:ok,
                %{
                  "text" => "ü",
                  "number" => 1.5,
                  "list" => [1, nil, true],
                  "nested" => %{"a" => %{}}
                }}

      assert Bridge.call(bridge, :echo_decoded, [a: 1], []) == {:ok, %{"a" => 1}}
    end

    test "an error has its code, policy and details", %{bridge: bridge} do
      assert {:error,
              %Error{code: :unknown_command, category: :request, recovery: :abandon} = error} =
               Bridge.call(bridge, :pong, %{}, [])

      assert error.message == "Unknown command: pong"
      assert_raise Error, "Unknown command: pong", fn -> Bridge.call!(bridge, :pong, %{}, []) end
    end

    test "the worker ends a late call", %{bridge: bridge} do
      assert {:error, %Error{code: :deadline_exceeded}} =
               Bridge.call(bridge, :sleep, %{seconds: 5}, 50)

      assert {:ok, _} = Bridge.call(bridge, :sleep, %{seconds: 0.01}, :infinity)
    end

    test "timing is returned with the result", %{bridge: bridge} do
      assert {:ok, %{"a" => 1}, %{"run_us" => _}} =
               Bridge.call(bridge, :echo_decoded, %{a: 1}, timing: true)
    end

    test "calls and streams send a traceparent" do
      bridge = start_bridge(adapter: "bridge_test_adapter:adapter")
      parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
      options = [traceparent: parent, session_id: "s"]
      expected = %{"session_id" => "s", "traceparent" => parent}
      assert Bridge.call(bridge, :envelope, %{}, options) == {:ok, expected}
      assert Enum.to_list(Bridge.stream(bridge, :envelope, %{}, options)) == [result: expected]
      assert {:ok, %{"traceparent" => nil}} = Bridge.call(bridge, :envelope, %{}, [])
    end

    test "any kind of name works", %{bridge: bridge} do
      for server <- [bridge, Process.whereis(bridge), {bridge, node()}] do
        assert {:ok, _} = Bridge.call(server, :ping, %{}, [])
        assert {:ok, _} = Bridge.call(server, :ping, %{}, 1_000)
      end
    end

    test "concurrent calls get their own replies", %{bridge: bridge} do
      1..200
      |> Task.async_stream(fn n -> {n, Bridge.call!(bridge, :echo_decoded, %{n: n}, [])["n"]} end,
        max_concurrency: 50
      )
      |> Enum.each(fn {:ok, {asked, answered}} -> assert asked == answered end)
    end

    test "a request that is too large is not sent", %{bridge: bridge} do
      blob = :binary.copy("x", 65 * 1024 * 1024)

      assert {:error, %Error{code: :frame_too_large, details: %{"limit" => 67_108_864}}} =
               Bridge.call(bridge, :echo, %{blob: blob}, [])

      assert Bridge.get_status(bridge).open_calls == 0
    end

    test "an unknown option raises in the caller", %{bridge: bridge} do
      assert_raise ArgumentError, ~r/:timeuot/, fn ->
        Bridge.call(bridge, :ping, %{}, timeuot: 5)
      end

      for session_id <- [self(), 5, %Structs.Plain{password: "pw"}, ~D[2024-01-01]] do
        assert_raise ArgumentError, "the option :session_id must be a string", fn ->
          Bridge.call(bridge, :ping, %{}, session_id: session_id)
        end
      end

      assert {:ok, _} = Bridge.call(bridge, :ping, %{}, session_id: :an_atom)

      for {options, line} <- [
            {-1, ~r/a timeout must be a non-negative integer/},
            {1.5, ~r/a timeout must be/},
            {nil, ~r/a timeout must be/},
            {[timeout: "5"], ~r/a timeout must be/},
            {%{timeout: 5}, ~r/options must be a keyword list/},
            {[:timing], ~r/options must be a keyword list/},
            {[timing: 1], ~r/:timing must be a boolean/},
            {[session_id: true], ~r/:session_id must be a string/}
          ] do
        assert_raise ArgumentError, line, fn -> Bridge.call(bridge, :ping, %{}, options) end
        assert_raise ArgumentError, line, fn -> Bridge.stream(bridge, :ping, %{}, options) end
      end
    end

    test "wrong tools and wrong tool options raise in the caller", %{bridge: bridge} do
      tool = DSPex.Tool.new(:now, "The time.", [], &inspect/1)

      for {tools, options, line} <- [
            {[:now], [], "tools must be a list of DSPex.Tool structs"},
            {%{}, [], "tools must be a list of DSPex.Tool structs"},
            {[tool], [timuot: 5], "unknown option :timuot"}
          ] do
        assert_raise ArgumentError, line, fn -> Bridge.register_tools(bridge, tools, options) end
      end
    end

    test "args that are neither a map nor a keyword list raise in the caller",
         %{bridge: bridge} do
      for args <- [[1, 2], ~c"ping", [{:a, 1} | 2], :ping] do
        message = ~r/args must be a map or a keyword list, not /
        assert_raise ArgumentError, message, fn -> Bridge.call(bridge, :ping, args, 5_000) end
        assert_raise ArgumentError, message, fn -> Bridge.cast(bridge, :ping, args) end
      end
    end
  end

  test "sessions do not share data" do
    bridge = start_bridge()

    for session <- ["a", "b"] do
      args = %{operation: "set", key: "who", value: session}
      assert {:ok, _} = Bridge.call(bridge, :update_session_data, args, session_id: session)
    end

    assert {:ok, %{"data" => %{"who" => "a"}}} =
             Bridge.call(bridge, :get_session_data, %{}, session_id: "a")
  end

  test "cast does not wait for a reply" do
    bridge = start_bridge()
    args = %{operation: "set", key: "k", value: 1, session_id: "s"}
    assert Bridge.cast(bridge, :update_session_data, args) == :ok

    assert {:ok, %{"data" => %{"k" => 1}}} =
             Bridge.call(bridge, :get_session_data, [session_id: "s"], [])

    assert Bridge.get_status(bridge).stats.casts == 1
  end

  test "status and statistics" do
    bridge = start_bridge()
    Bridge.call(bridge, :ping, %{}, [])
    Bridge.call(bridge, :pong, %{}, [])
    status = Bridge.get_status(bridge)
    assert %{status: :running, open_calls: 0, uptime: uptime} = status
    assert uptime >= 0
    assert os_alive?(status.worker_pid)
    assert %{calls: 3, replies: 2, restarts: 0, errors: %{unknown_command: 1}} = status.stats
    assert Bridge.get_status(:"no such bridge") == %{status: :not_running}
  end

  test "a call without a bridge explains how to start one" do
    assert {:error, %Error{code: :worker_crashed, category: :initialization} = error} =
             Bridge.call(:no_such_bridge, :ping, %{}, 50)

    assert error.message =~ "start_link"
  end

  describe "start_link" do
    setup do
      Process.flag(:trap_exit, true)
      :ok
    end

    test "reports that Python is missing" do
      assert {:error, {:shutdown, %Error{category: :initialization} = error}} =
               Bridge.start_link(name: nil, python: "/no/such/python")

      assert error.message =~ "no Python at /no/such/python"
    end

    test "reports that the package is missing" do
      # An interpreter without a search path for packages.
      bare = bare_python()
      assert {:error, {:shutdown, error}} = Bridge.start_link(name: nil, python: bare)
      assert error.message =~ "#{bare} -m pip install dspex-bridge"
    end

    test "reports that the worker did not answer in time" do
      assert {:error, {:shutdown, error}} =
               Bridge.start_link(name: nil, python: script("exec sleep 60"), start_timeout: 100)

      assert error.message =~ "did not start"
    end

    test "setup runs before start_link returns, and start_link fails if the setup does" do
      setup = fn bridge -> Bridge.call!(bridge, :echo, %{}, []) && send_to_test(:ready) end
      Process.register(self(), :setup_test)
      assert {:ok, pid} = Bridge.start_link(options(name: nil, setup: setup))
      assert_received :ready
      assert :ok = Bridge.stop(pid)

      setup = fn bridge -> Bridge.call!(bridge, :pong, %{}, []) end
      assert {:error, {:shutdown, error}} = Bridge.start_link(options(name: nil, setup: setup))
      assert error.message =~ "Unknown command: pong"
    end

    defp send_to_test(message), do: send(:setup_test, message)

    defp script(line) do
      path = Path.join(System.tmp_dir!(), "bridge-python-#{System.unique_integer([:positive])}")
      File.write!(path, "#!/bin/sh\n#{line}\n")
      File.chmod!(path, 0o755)
      on_exit(fn -> File.rm(path) end)
      path
    end

    defp bare_python do
      {:ok, python, _} = DSPex.PythonBridge.Python.find()
      script(~s(exec "#{python}" -S "$@"))
    end
  end

  test "stop ends the worker, and does nothing without a bridge" do
    {:ok, pid} = Bridge.start_link(options(name: nil))
    worker = worker_pid(pid)
    assert Bridge.stop(pid) == :ok
    wait_until(fn -> not os_alive?(worker) end)
    assert Bridge.stop(pid) == :ok
    assert Bridge.stop(:no_such_bridge) == :ok

    {:ok, pid} = Bridge.start_link(options(name: nil))
    stops = for _ <- 1..5, do: Task.async(fn -> Bridge.stop(pid) end)
    assert Enum.uniq(Task.await_many(stops, 10_000)) == [:ok]
  end

  test "an open call gets its reply within the grace period of a stop" do
    {:ok, pid} = Bridge.start_link(options(name: nil))
    call = Task.async(fn -> Bridge.call(pid, :sleep, %{seconds: 0.3}, []) end)
    wait_until(fn -> Bridge.get_status(pid).open_calls == 1 end)
    assert Bridge.stop(pid) == :ok
    assert {:ok, %{"slept" => _}} = Task.await(call)
  end
end
