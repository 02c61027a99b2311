defmodule DSPex.PythonBridge.ConnectTest do
  # Bridges that connect to a worker at a Unix socket. BRIDGE_TEST_TRANSPORT=socket runs the tests
  # of other files that way, too.
  use ExUnit.Case, async: true

  import Servers
  import Workers
  alias DSPex.PythonBridge.{Bridge, Error}
  alias DSPex.Tool

  # Until the end of the test at the latest: a bridge does not kill a worker that it has not started.
  defp suspend(worker) do
    on_exit(fn -> System.cmd("kill", ["-CONT", "#{worker}"], stderr_to_stdout: true) end)
    signal(worker, :STOP)
  end

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

  # Serves each connection in turn with the given function, at a new path.
  defp listen(serve) do
    path = path()
    parent = self()
    on_exit(fn -> File.rm(path) end)

    spawn_link(fn ->
      {:ok, listener} =
        :gen_tcp.listen(0, [:binary, active: false, packet: 4, ifaddr: {:local, path}])

      send(parent, {:listening, path})

      for _ <- Stream.cycle([:next]) do
        {:ok, socket} = :gen_tcp.accept(listener)
        serve.(socket)
      end
    end)

    assert_receive {:listening, ^path}
    "unix:#{path}"
  end

  defp receive_request(socket) do
    {:ok, request} = :gen_tcp.recv(socket, 0)
    :erlang.binary_to_term(request)
  end

  defp reply(socket, reply) do
    # The id comes first, as in every message of a worker.
    <<131, ?t, _::32, pairs::binary>> = :erlang.term_to_binary(Map.delete(reply, "id"))
    id = <<?m, 2::32, "id", ?b, reply["id"]::32>>
    :gen_tcp.send(socket, [<<131, ?t, map_size(reply)::32>>, id, pairs])
  end

  defp failed_start(address, options \\ []) do
    Process.flag(:trap_exit, true)
    options = [connect: address, name: nil, start_timeout: 300] ++ options

    assert {:error, {:shutdown, %Error{category: :initialization} = error}} =
             Bridge.start_link(options)

    assert error.code == :worker_crashed
    error.message
  end

  describe "a worker that does not read" do
    test "keeps nobody waiting beyond the deadline, and gets whole frames when it reads again" do
      # The JSON module of the tests is slow.
      bridge = start_bridge(transport: :socket, heartbeat_interval: false, format: :etf)
      worker = worker_pid(bridge)
      suspend(worker)
      blob = :binary.copy("x", 3_000_000)

      callers =
        for n <- 1..20 do
          spawn_monitor(fn -> exit(Bridge.call(bridge, :echo, %{n: n, blob: blob}, 300)) end)
        end

      # A caller that is killed leaves no part of a frame either.
      for {pid, _} <- Enum.take(callers, 5), do: Process.exit(pid, :kill)

      for {pid, monitor} <- Enum.drop(callers, 5) do
        assert_receive {:DOWN, ^monitor, :process, ^pid, {:error, error}}, 5_000
        assert error.code == :deadline_exceeded
      end

      assert %{status: :running} = Bridge.get_status(bridge)
      signal(worker, :CONT)
      assert {:ok, %{"n" => 1}} = Bridge.call(bridge, :echo_decoded, %{n: 1, blob: blob}, [])
      assert worker_pid(bridge) == worker
    end

    test "gets a bounded number of requests, each of them whole" do
      parent = self()

      address =
        listen(fn socket ->
          %{"id" => id} = receive_request(socket)
          reply(socket, %{"id" => id, "success" => true, "result" => %{}})
          receive do: (:read -> send(parent, {:requests, requests(socket)}))
        end)

      options = [connect: address, name: nil, heartbeat_interval: false, format: :etf]
      {:ok, bridge} = Bridge.start_link(options)
      {:links, links} = Process.info(self(), :links)
      [server] = for pid <- links, is_pid(pid), pid != bridge, do: pid
      blob = :binary.copy("x", 1_000_000)
      call = fn -> Bridge.call(bridge, :echo, %{blob: blob}, 300) end
      calls = for _ <- 1..40, do: Task.async(call)

      for result <- Task.await_many(calls, 10_000) do
        assert {:error, %Error{code: :deadline_exceeded}} = result
      end

      send(server, :read)
      assert_receive {:requests, requests}
      blobs = for %{"command" => "echo", "args" => %{blob: blob}} <- requests, do: blob
      assert Enum.uniq(Enum.map(blobs, &(&1 == blob))) == [true]
      # 8 MiB are queued, and what the kernel takes.
      assert length(blobs) in 8..20
    end
  end

  defp requests(socket) do
    case :gen_tcp.recv(socket, 0, 300) do
      {:ok, frame} -> [:erlang.binary_to_term(frame) | requests(socket)]
      {:error, :timeout} -> []
    end
  end

  describe "an address" do
    test "that is none, or at which there is no socket" do
      file = path()
      File.write!(file, "")
      on_exit(fn -> File.rm(file) end)
      {:ok, datagrams} = :gen_udp.open(0, ifaddr: {:local, path()})
      {:ok, {:local, of_datagrams}} = :inet.sockname(datagrams)
      on_exit(fn -> File.rm(of_datagrams) end)

      for {address, line} <- [
            {"/run/bridge.sock", ~s("/run/bridge.sock" is not an address like unix:)},
            {"tcp:localhost:80", "is not an address"},
            {"", "is not an address"},
            {"unix:", "has no path"},
            {"unix:/" <> String.duplicate("x", 107), "at most 107 bytes, not 108: /xxx"},
            {"unix:#{path()}", "there is no socket at"},
            {"unix:#{System.tmp_dir!()}", "is a directory"},
            {"unix:#{file}", "is not a socket"},
            {"unix:#{file}/x", "not a directory"},
            {"unix:#{of_datagrams}", "is not a stream socket"}
          ] do
        assert failed_start(address) =~ "the worker did not start: "
        assert failed_start(address) =~ line
      end
    end

    test "with as many bytes as there may be" do
      start = path()
      path = start <> String.duplicate("x", 107 - byte_size(start))
      %{address: address} = start_server(["--adapter", "echo"], path)
      start_supervised!({Bridge, connect: address, name: Bridge.LongPath})
      assert {:ok, _} = Bridge.call(Bridge.LongPath, :ping, %{}, [])
    end

    test "at which nobody listens any more" do
      {:ok, listener} = :gen_tcp.listen(0, ifaddr: {:local, path()})
      {:ok, {:local, path}} = :inet.sockname(listener)
      :gen_tcp.close(listener)
      on_exit(fn -> File.rm(path) end)
      assert failed_start("unix:#{path}") =~ "no server listens at #{path}"
    end

    test "that this user may not use" do
      {:ok, listener} = :gen_tcp.listen(0, ifaddr: {:local, path()})
      {:ok, {:local, path}} = :inet.sockname(listener)
      on_exit(fn -> File.rm(path) end)
      File.chmod!(path, 0)
      assert start_without_privileges("unix:#{path}") =~ "no permission to connect to #{path}"
    end

    test "whose server accepts no connection" do
      {:ok, listener} = :gen_tcp.listen(0, ifaddr: {:local, path()}, backlog: 1)
      {:ok, {:local, path}} = :inet.sockname(listener)
      on_exit(fn -> File.rm(path) end)
      for _ <- 1..3, do: :gen_tcp.connect({:local, path}, 0, [])
      assert failed_start("unix:#{path}") =~ "does not accept connections"
    end

    test "at which something else than a worker answers" do
      for {answer, line} <- [
            {fn socket -> :gen_tcp.close(socket) end, "has closed the connection"},
            {fn _socket -> :nothing end, "it did not answer within 300 ms (:start_timeout)"},
            {fn socket -> raw(socket, "HTTP/1.1 400 Bad Request\r\n\r\n") end,
             "is not a worker: it sent a frame of more than"},
            {fn socket -> raw(socket, <<0, 0, 0, 9, "no">>) end, "has closed the connection"},
            {fn socket -> :gen_tcp.send(socket, "SSH-2.0-nine") end,
             "is not a worker: SSH-2.0-nine"},
            {fn socket -> :gen_tcp.send(socket, ~s({"id":1,"suc)) end, "cannot be decoded"},
            {fn socket -> :gen_tcp.send(socket, ~s({"id":null,"success":false})) end,
             "it refuses the format"},
            {fn socket -> reply(socket, %{"id" => 1}) end, "cannot be decoded"}
          ] do
        address =
          listen(fn socket ->
            receive_request(socket)
            answer.(socket)
          end)

        assert failed_start(address) =~ line
      end
    end

    test "whose server has too many workers: its error is the reason" do
      %{address: address} = start_server(["--adapter", "echo", "--max-workers", "1"])
      start_supervised!({Bridge, connect: address, name: Bridge.OnlyOne})
      assert failed_start(address) =~ "there are 1 workers already (--max-workers)"
    end
  end

  # Root may use every socket, so another user has to try.
  defp start_without_privileges(address) do
    if System.cmd("id", ["-u"]) == {"0\n", 0} do
      code = path()
      File.cp_r!(Path.join(Mix.Project.app_path(), "ebin"), code)
      on_exit(fn -> File.rm_rf!(code) end)

      start =
        "Process.flag(:trap_exit, true); " <>
          "DSPex.PythonBridge.Bridge.start_link(connect: #{inspect(address)}) |> IO.inspect()"

      user = ["--reuid=65534", "--regid=65534", "--clear-groups"]
      options = [stderr_to_stdout: true, env: [{"HOME", System.tmp_dir!()}]]
      {shown, 0} = System.cmd("setpriv", user ++ ["elixir", "-pa", code, "-e", start], options)
      shown
    else
      failed_start(address)
    end
  end

  defp raw(socket, bytes) do
    :inet.setopts(socket, packet: :raw)
    :gen_tcp.send(socket, bytes)
    :gen_tcp.close(socket)
  end

  test "options of workers that the bridge would start are refused" do
    for option <- [
          python: "python3",
          adapter: "echo",
          args: ["--telemetry"],
          env: %{KEY: "sk-123"},
          env: fn -> %{KEY: "sk-123"} end,
          threads: 4,
          stuck_after: 1_000
        ] do
      error =
        assert_raise ArgumentError, fn ->
          Bridge.start_link([option, {:connect, "unix:/run/bridge.sock"}])
        end

      assert error.message =~ inspect(elem(option, 0))
      assert error.message =~ ":connect"
      refute error.message =~ "sk-123"
    end

    for address <- [:default, 5, "unix:a\0b"] do
      assert_raise ArgumentError, ~r/:connect/, fn -> Bridge.start_link(connect: address) end
    end
  end

  describe "the end of a connection" do
    test "fails every open call at once; the next worker is another connection" do
      bridge = start_bridge(transport: :socket, adapter: "bridge_test_adapter:adapter")
      worker = worker_pid(bridge)
      calls = for _ <- 1..64, do: Task.async(fn -> Bridge.call(bridge, :never, %{}, []) end)
      wait_until(fn -> Bridge.get_status(bridge).open_calls == 64 end)
      signal(worker, :KILL)

      for result <- Task.await_many(calls, 5_000) do
        assert {:error, %Error{code: :worker_crashed, category: :connection} = error} = result
        assert error.message =~ "the worker has ended, or closed its connection (unix:"
      end

      assert {:ok, _} = Bridge.call(bridge, :sent, %{}, [])
      assert %{restarts: 1, errors: %{worker_crashed: 64}} = Bridge.get_status(bridge).stats
      refute worker_pid(bridge) == worker
    end

    test "is followed by attempts to connect, until there is a server again" do
      path = path()
      name = Bridge.Absent
      options = [backoff_min: 10, backoff_max: 50, connect: "unix:#{path}", name: name]
      start_supervised!({Bridge, options})
      assert {:error, %Error{} = error} = Bridge.call(name, :ping, %{}, 50)
      assert error.message =~ "there is no socket at #{path}"

      for _ <- 1..2 do
        call = Task.async(fn -> Bridge.call(name, :ping, %{}, 30_000) end)
        %{os_pid: server} = start_server(["--adapter", "echo"], path)
        assert {:ok, _} = Task.await(call, 30_000)
        worker = worker_pid(name)
        :ok = stop_supervised(path)
        wait_until(fn -> not os_alive?(server) end)
        signal(worker, :KILL)
        wait_until(fn -> Bridge.get_status(name).status == :starting end)
      end
    end

    test "can be explained by who has started the worker, who also kills it" do
      parent = self()
      kill = fn os_pid -> signal(os_pid, :KILL) end

      ended = fn os_pid, error ->
        send(parent, {:ended, os_pid})
        %{error | details: %{"signal" => "SIGKILL"}}
      end

      options = [transport: :socket, heartbeat_interval: 50, kill: kill, ended: ended]
      bridge = start_bridge(options)
      worker = worker_pid(bridge)
      call = Task.async(fn -> Bridge.call(bridge, :sleep, %{seconds: 20}, []) end)
      wait_until(fn -> Bridge.get_status(bridge).open_calls == 1 end)
      suspend(worker)
      assert {:error, %Error{details: %{"signal" => "SIGKILL"}}} = Task.await(call)
      assert_received {:ended, ^worker}
      wait_until(fn -> not os_alive?(worker) end)
    end

    test "is not needed for a request that is too long for the worker" do
      %{address: address} = start_server(["--adapter", "echo", "--max-frame", "50000"])
      {:ok, bridge} = Bridge.start_link(connect: address, name: nil, format: format())
      blob = :binary.copy("x", 50_000)

      assert {:error, %Error{code: :frame_too_large, details: %{"limit" => 50_000}}} =
               Bridge.call(bridge, :echo, %{blob: blob}, [])

      assert {:ok, _} = Bridge.call(bridge, :ping, %{}, [])
    end

    test "follows a frame that is longer than :max_frame" do
      bridge = start_bridge(transport: :socket, max_frame: 100_000)
      stored = %{operation: "set", key: "long", value: :binary.copy("x", 60_000)}
      again = %{stored | key: "longer"}
      for args <- [stored, again], do: Bridge.call!(bridge, :update_session_data, args, [])

      assert {:error, %Error{code: :worker_crashed} = error} =
               Bridge.call(bridge, :get_session_data, %{}, [])

      assert error.message ==
               "the worker sent a frame of more than 100000 bytes (option :max_frame)"

      assert {:ok, _} = Bridge.call(bridge, :ping, %{}, [])
    end

    test "follows missed heartbeats" do
      bridge = start_bridge(transport: :socket, heartbeat_interval: 50)
      worker = worker_pid(bridge)
      suspend(worker)
      wait_until(fn -> Bridge.get_status(bridge).stats.restarts == 1 end)
      assert {:ok, _} = Bridge.call(bridge, :ping, %{}, [])
      # The worker finds its connection closed.
      signal(worker, :CONT)
      wait_until(fn -> not os_alive?(worker) end)
    end
  end
end
