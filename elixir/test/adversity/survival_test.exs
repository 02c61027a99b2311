defmodule DSPex.SurvivalTest do
  # A worker that ends or does not start affects only its bridge. Not async: one test
  # reads the whole log.
  use ExUnit.Case, async: false

  import ExUnit.CaptureLog
  import Workers
  alias DSPex.PythonBridge.{Bridge, Error}

  @quick [backoff_min: 1, backoff_max: 20]

  defp supervised(options) do
    name = Module.concat(Bridge, "Survival#{System.unique_integer([:positive])}")
    children = [{Bridge, options([name: name] ++ Keyword.merge(@quick, options))}]

    {:ok, supervisor} =
      start_supervised(%{
        id: name,
        start: {Supervisor, :start_link, [children, [strategy: :one_for_one]]},
        type: :supervisor,
        restart: :temporary
      })

    {name, supervisor}
  end

  test "ten workers killed under a supervisor with its default limits" do
    {bridge, supervisor} = supervised([])
    process = Process.whereis(bridge)

    for number <- 1..10 do
      signal(worker_pid(bridge), :KILL)
      # By name and by pid.
      server = if rem(number, 2) == 0, do: bridge, else: process
      wait_until(fn -> Bridge.get_status(bridge).stats.restarts == number end)
      assert Bridge.call(server, :echo_decoded, %{n: number}, []) == {:ok, %{"n" => number}}
    end

    assert Process.whereis(bridge) == process
    assert Process.alive?(supervisor)
  end

  test "calls, casts and streams wait for the next worker, and open calls get one error" do
    {bridge, _} =
      supervised(adapter: "bridge_test_adapter:adapter", backoff_min: 300, backoff_max: 300)

    signal(worker_pid(bridge), :KILL)
    wait_until(fn -> Bridge.get_status(bridge).stats.restarts == 1 end)
    worker = worker_pid(bridge)
    parent = self()

    for _ <- 1..20 do
      spawn_link(fn ->
        result = Bridge.call(bridge, :never, %{}, [])
        send(parent, {:answer, result})
        receive do: (message -> send(parent, {:second, message}))
      end)
    end

    wait_until(fn -> Bridge.get_status(bridge).open_calls == 20 end)
    signal(worker, :KILL)
    for _ <- 1..20, do: assert_receive({:answer, {:error, %Error{code: :worker_crashed}}}, 5_000)
    wait_until(fn -> Bridge.get_status(bridge).status == :starting end)
    call = Task.async(fn -> Bridge.call(bridge, :sent, %{}, []) end)
    stream = Task.async(fn -> Enum.to_list(Bridge.stream(bridge, :events, %{count: 1}, [])) end)
    assert Bridge.cast(bridge, :sent, %{}) == :ok
    assert {:ok, %{"sent" => _}} = Task.await(call)
    assert [{:chunk, _}, {:result, _}] = Task.await(stream)
    refute_received {:second, _}
  end

  test "if no worker starts, a call gets the last failure within its timeout" do
    python = breakable_python()
    {bridge, supervisor} = supervised(python: python)
    break(python, "no space left")
    signal(worker_pid(bridge), :KILL)
    wait_until(fn -> last_message(bridge) =~ "no space left" end)

    for server <- [bridge, Process.whereis(bridge)] do
      assert {:error, %Error{code: :worker_crashed} = error} = Bridge.call(server, :ping, %{}, 50)
      assert error.message =~ "no space left"
      assert error.details == %{"exit_status" => 3, "stderr" => "no space left"}
    end

    assert_raise Error, ~r/no space left/, fn ->
      Enum.to_list(Bridge.stream(bridge, :ping, %{}, 50))
    end

    call = Task.async(fn -> Bridge.call(bridge, :ping, %{}, []) end)
    mend(python)
    assert {:ok, _} = Task.await(call, 30_000)
    assert %{status: :running, last_error: nil} = Bridge.get_status(bridge)
    assert Process.alive?(supervisor)
  end

  test "a worker that does not start is logged once for each attempt, and the application runs" do
    :telemetry.listen()

    for {options, line} <- [
          {[args: ["--no-such-flag"]], "unrecognized arguments: --no-such-flag"},
          {[python: "/no/such/python"], "no Python at /no/such/python"},
          {[setup: fn _ -> raise "not today\nat all" end], "its setup failed: not today"}
        ] do
      log =
        capture_log(fn ->
          {bridge, supervisor} = supervised(options)

          for failures <- 1..3 do
            assert_receive {[:dspex_bridge, :worker, :start_failed], %{failures: ^failures},
                            %{bridge: ^bridge}}
          end

          assert Process.alive?(supervisor)

          assert {:error, %Error{code: :worker_crashed} = error} =
                   Bridge.call(bridge, :ping, %{}, 1_000)

          assert error.message =~ line
          stop_supervised!(bridge)
        end)

      assert length(String.split(log, "the worker did not start: ")) - 1 >= 3
      for attempt <- String.split(log, "[error]") |> tl(), do: assert(attempt =~ line)
    end
  end

  test "the start of a later worker fails if its setup raises or hangs" do
    agent = start_supervised!({Agent, fn -> :fine end})

    setup = fn bridge ->
      Bridge.call!(bridge, :echo, %{}, [])

      case Agent.get(agent, & &1) do
        :fine -> :ok
        :raise -> raise "the setup is tired"
        :hang -> Process.sleep(:infinity)
      end
    end

    {bridge, _} = supervised(setup: setup, setup_timeout: 500, start_timeout: 2_500)

    for {what, line} <- [raise: "the setup is tired", hang: "setup_timeout"] do
      Agent.update(agent, fn _ -> what end)
      signal(worker_pid(bridge), :KILL)
      wait_until(fn -> last_message(bridge) =~ line end, 20_000)
      Agent.update(agent, fn _ -> :fine end)
      assert {:ok, _} = Bridge.call(bridge, :ping, %{}, [])
    end
  end

  test "a setup may call its bridge by name, and its errors do not show maps" do
    config = %{api_key: "sk-in-a-map"}
    name = :"survival_#{System.unique_integer([:positive])}"
    setup = fn _ -> {:ok, _} = Bridge.call(name, :ping, %{}, []) end
    start_supervised!({Bridge, options(name: name, setup: setup)})
    assert {:ok, _} = Bridge.call(name, :ping, %{}, [])

    setup = fn _ -> Map.fetch!(config, :model) end
    Process.flag(:trap_exit, true)
    assert {:error, {:shutdown, error}} = Bridge.start_link(options(name: nil, setup: setup))
    assert error.message =~ "its setup failed: key :model not found"
    refute inspect(error) =~ "sk-in-a-map"
  end

  test "an error that a setup returns is logged, and the worker runs" do
    log =
      capture_log(fn ->
        {bridge, _} = supervised(setup: &Bridge.call(&1, :no_such_command, %{}, 5_000))
        assert {:ok, _} = Bridge.call(bridge, :ping, %{}, [])
      end)

    assert log =~ "the setup returned an error"
    assert log =~ "Unknown command: no_such_command"
  end

  defp last_message(bridge) do
    case Bridge.get_status(bridge) do
      %{last_error: %{message: message}} -> message
      _ -> ""
    end
  end

  test "the delay grows to its limit, and is reset by a healthy worker" do
    :telemetry.listen()
    {bridge, _} = supervised(args: ["--no-such-flag"], backoff_min: 8, backoff_max: 32)

    for {failures, longest} <- [{1, 8}, {2, 16}, {3, 32}, {4, 32}] do
      assert_receive {[:dspex_bridge, :worker, :start_failed], measured, metadata}, 10_000
      assert %{failures: ^failures, delay: delay} = measured
      assert delay in div(longest, 2)..longest
      assert %{bridge: ^bridge, error: %Error{details: %{"exit_status" => 2}}} = metadata
    end

    stop_supervised!(bridge)

    log =
      capture_log(fn ->
        {bridge, _} = supervised(healthy_after: 0)

        for _ <- 1..3 do
          worker = worker_pid(bridge)
          signal(worker, :KILL)
          wait_until(fn -> Bridge.get_status(bridge).worker_pid not in [nil, worker] end)
          worker_pid(bridge)
        end
      end)

    # No delay after any of them.
    assert length(String.split(log, "starting another\n")) - 1 == 3
  end

  test "a bridge that is stopped while its worker starts leaves no process" do
    {bridge, _} = supervised(python: "/no/such/python", backoff_min: 10_000, backoff_max: 10_000)
    assert %{status: :starting, worker_pid: nil} = Bridge.get_status(bridge)
    stop_supervised!(bridge)

    parent = self()
    setup = fn _ -> send(parent, :setup) && Process.sleep(:infinity) end
    starting = spawn(fn -> supervised_by(self(), setup) end)
    assert_receive :setup, 10_000
    worker = wait_until(fn -> Bridge.get_status(:stopped_while_starting).worker_pid end)
    Process.exit(starting, :shutdown)
    wait_until(fn -> not os_alive?(worker) end)
    wait_until(fn -> Process.whereis(:stopped_while_starting) == nil end)
  end

  defp supervised_by(_parent, setup) do
    Bridge.start_link(options(name: :stopped_while_starting, setup: setup))
  end

  test "a worker whose threads are all stuck is replaced" do
    options = [adapter: "bridge_test_adapter:adapter", threads: 1, stuck_after: 200]
    {bridge, _} = supervised(options)
    assert {:error, %Error{code: :worker_crashed} = error} = Bridge.call(bridge, :hang, %{}, [])
    assert %{"exit_status" => 75} = error.details
    assert {:ok, _} = Bridge.call(bridge, :sent, %{}, [])

    # With many calls waiting for the only thread, each gets one answer.
    calls = for _ <- 1..10, do: Task.async(fn -> Bridge.call(bridge, :hang, %{}, []) end)

    for result <- Task.await_many(calls, 30_000) do
      assert {:error, %Error{code: :worker_crashed}} = result
    end

    {bridge, _} = supervised(Keyword.put(options, :stuck_after, false))
    assert {:error, %Error{code: :deadline_exceeded}} = Bridge.call(bridge, :hang, %{}, 500)
    assert {:ok, _} = Bridge.call(bridge, :ping, %{}, [])
    assert Bridge.get_status(bridge).stats.restarts == 0
  end

  test "invalid options raise before anything starts" do
    for {options, line} <- [
          {[backoff_min: "1"], ":backoff_min"},
          {[healthy_after: -1], ":healthy_after"},
          {[start_timeout: nil], ":start_timeout"},
          {[env: %{KEY: {:secret, "sk-123"}}], "KEY"},
          {[args: ["--threads", 4]], ":args"},
          {[heartbeat: 1], ":heartbeat"},
          {[format: :msgpack], ":format"},
          {[setup: fn -> :ok end], ":setup"},
          {[tools: [:temperature]], ":tools"},
          {[heartbeat_interval: 0], ":heartbeat_interval"},
          {[heartbeat_interval: -5], ":heartbeat_interval"},
          {[python: 5], ":python"},
          {[python: "a\0b"], ":python"},
          {[adapter: nil], ":adapter"},
          {[threads: 0], ":threads"},
          {[max_frame: "1"], ":max_frame"},
          {[logs: :yes], ":logs"},
          {[retry_start: nil], ":retry_start"},
          {[args: ["--worker-id", "a\0b"]], ":args"},
          {[env: %{"A=B" => "sk-123"}], ":env"},
          {[env: %{KEY: "sk-123\0"}], "KEY"},
          {[env: "KEY=sk-123"], ":env"},
          {[env: ["KEY=sk-123"]], ":env"},
          {[unknown: 1, env: %{KEY: "sk-123"}], "unknown option :unknown"}
        ] do
      error = assert_raise ArgumentError, fn -> Bridge.start_link(options) end
      assert error.message =~ line
      refute error.message =~ "sk-123"
    end
  end

  test "states, reports and specifications do not show the worker's environment" do
    secret = "sk-secret-#{System.unique_integer([:positive])}"

    options = [
      env: %{OPENAI_API_KEY: secret},
      setup: fn bridge -> Bridge.call!(bridge, :ping, %{}, []) end
    ]

    log =
      capture_log(fn ->
        {bridge, supervisor} = supervised(options)
        process = Process.whereis(bridge)
        {:links, links} = Process.info(process, :links)
        owner = Enum.find(links, &(&1 != supervisor))

        for shown <- [
              :sys.get_state(process),
              :sys.get_status(process),
              :sys.get_status(owner),
              :supervisor.get_childspec(supervisor, bridge)
            ] do
          refute inspect(shown, limit: :infinity) =~ secret
          refute to_string(:io_lib.format(~c"~p", [shown])) =~ secret
        end

        # An unexpected end, first of the owner and then of the bridge.
        GenServer.stop(owner, :boom)
        assert {:ok, _} = Bridge.call(bridge, :ping, %{}, [])
        monitor = Process.monitor(process)
        Process.exit(process, :kill)
        assert_receive {:DOWN, ^monitor, _, _, _}
        assert {:ok, _} = Bridge.call(bridge, :ping, %{}, [])
      end)

    assert log =~ "boom"
    refute log =~ secret
  end
end
