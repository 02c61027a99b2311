defmodule DSPex.PythonBridge.ConnectTest do
  # Bridges that connect to a worker at a Unix socket. BRIDGE_TEST_TRANSPORT=socket runs the tests
  # of other files that way, too.
  use ExUnit.Case, async: true

  import Workers
  alias DSPex.PythonBridge.{Bridge, Error}
  alias DSPex.Tool

  describe "a worker at a socket" do
    test "answers calls, casts and streams, with small and large frames" do
      bridge = start_bridge(transport: :socket)
      assert {:ok, %{"n" => 1}} = Bridge.call(bridge, :echo_decoded, %{n: 1}, [])
      assert Bridge.cast(bridge, :ping, %{}) == :ok

      assert [result: %{"n" => 1}] =
               Enum.to_list(Bridge.stream(bridge, :echo_decoded, %{n: 1}, []))

      assert {:error, %Error{code: :unknown_command}} = Bridge.call(bridge, :pong, %{}, [])
      blob = :binary.copy("0123456789abcdef", 60 * 65_536)
      assert {:ok, %{"blob" => ^blob}} = Bridge.call(bridge, :echo, %{"blob" => blob}, [])

      assert {:error, %Error{code: :frame_too_large}} =
               Bridge.call(bridge, :echo, %{"blob" => blob <> blob}, [])
    end

    test "the setup and the tools of a bridge, again after the end of a worker" do
      weather = Tool.new("weather", "The weather.", [city: :string], fn _ -> "rain" end)
      signature = DSPex.Signature.new("question -> answer")
      program = %{id: "agent", signature: signature, program_type: "react", tools: ["weather"]}

      setup = fn bridge ->
        Bridge.call!(bridge, :configure_lm, %{provider: "offline"}, [])
        Bridge.call!(bridge, :create_program, program, [])
      end

      bridge = start_bridge(transport: :socket, adapter: "dspy", tools: [weather], setup: setup)

      for restarts <- 1..2 do
        signal(worker_pid(bridge), :KILL)
        wait_until(fn -> Bridge.get_status(bridge).stats.restarts == restarts end)
        assert {:ok, _} = Bridge.call(bridge, :get_program_info, %{program_id: "agent"}, [])
      end
    end

    test "the process id is the worker's" do
      bridge = start_bridge(transport: :socket)
      worker = worker_pid(bridge)
      assert {:ok, %{"pid" => ^worker}} = Bridge.call(bridge, :hello, %{}, [])
      assert Bridge.get_status(bridge).worker_pid == worker
      other = start_bridge(transport: :socket)
      assert worker_pid(other) != worker
      Bridge.stop(bridge)
      wait_until(fn -> not os_alive?(worker) end)
      assert {:ok, _} = Bridge.call(other, :ping, %{}, [])
    end
  end
end
