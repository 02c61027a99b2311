defmodule DSPex.PoolAdversityTest do
  # Pools whose template or workers are stopped, and whose template is killed, while many callers
  # use them (`Storm` kills workers). The tests take two seconds each; for a minute each, with the
  # counts on the terminal:
  #
  #     POOL_SECONDS=60 mix test test/adversity/pool_test.exs
  use ExUnit.Case, async: false

  import Pools
  import Workers
  alias DSPex.PythonBridge.{Connection, SessionPoolV2}

  @moduletag timeout: 600_000
  @callers 64

  defp seconds, do: "POOL_SECONDS" |> System.get_env("2") |> String.to_integer()

  defp template(pool), do: :sys.get_state(Module.concat(pool, "Template"))

  # The template and the workers that it has forked have the folder of its socket in their command
  # lines.
  defp processes(folder) do
    for entry <- File.ls!("/proc"),
        entry =~ ~r/^\d+$/,
        {:ok, line} = {:ok, command_line(entry)},
        line =~ folder and line =~ "serve",
        os_alive?(entry),
        do: entry
  end

  defp command_line(pid) do
    case File.read("/proc/#{pid}/cmdline") do
      {:ok, line} -> line
      {:error, _} -> ""
    end
  end

  # Calls the pool from many processes while `harm` is called every `interval` ms. Returns how many
  # calls were answered, and the codes of those that failed.
  defp under_load(pool, interval, harm) do
    stop = :atomics.new(1, [])
    callers = for caller <- 1..@callers, do: Task.async(fn -> ask(pool, caller, 0, stop, []) end)
    harmed = harm_until(Connection.now() + seconds() * 1_000, interval, harm, 0)
    :atomics.put(stop, 1, 1)
    results = Task.await_many(callers, 60_000)
    asked = results |> Enum.map(&elem(&1, 0)) |> Enum.sum()
    failed = results |> Enum.flat_map(&elem(&1, 1)) |> Enum.frequencies()
    report(pool, harmed, asked, failed)
    {asked, failed |> Map.values() |> Enum.sum()}
  end

  defp harm_until(deadline, interval, harm, harmed) do
    if Connection.now() >= deadline do
      harmed
    else
      harm.()
      Process.sleep(interval)
      harm_until(deadline, interval, harm, harmed + 1)
    end
  end

  # Every call gets one answer, and it is its own.
  defp ask(pool, caller, number, stop, failed) do
    session = if rem(caller, 4) == 0, do: "session #{caller}"
    args = %{"is" => [caller, number]}

    failed =
      case SessionPoolV2.execute_in_session(session, :echo_decoded, args, pool_name: pool) do
        {:ok, ^args} -> failed
        {:error, error} -> [error.code | failed]
      end

    refute_received _

    if :atomics.get(stop, 1) == 1,
      do: {number + 1, failed},
      else: ask(pool, caller, number + 1, stop, failed)
  end

  defp report(pool, harmed, asked, failed) do
    if System.get_env("POOL_SECONDS") do
      %{slots: slots} = SessionPoolV2.get_pool_status(pool)
      IO.puts("\n#{asked} calls, #{harmed} times harmed, failed: #{inspect(failed)}")
      IO.puts("slots: #{inspect(Enum.map(slots, &{&1.slot, &1.state}))}")
    end
  end

  defp stop_and_look(pool, folder) do
    stop_supervised!(pool)
    wait_until(fn -> processes(folder) == [] end)
    refute File.exists?(folder)
  end

  # It may have ended since.
  defp kill(pid), do: System.cmd("kill", ["-KILL", "#{pid}"], stderr_to_stdout: true)

  test "the template is killed: no call is lost, and there is another one" do
    pool = start_pool(workers: 2)
    wait_for_workers(pool, 2)
    %{folder: folder} = template(pool)

    {_asked, failed} =
      under_load(pool, 1_000, fn ->
        %{current: %{os_pid: killed}} = template(pool)
        kill(killed)

        wait_until(fn -> match?(%{current: %{os_pid: pid}} when pid != killed, template(pool)) end)
      end)

    assert failed == 0
    signal(hd(pids(pool)), :KILL)
    wait_for_workers(pool, 2)
    stop_and_look(pool, folder)
  end

  test "a worker is stopped: others take its calls, and it is replaced" do
    pool = start_pool(workers: 3, heartbeat_interval: 100)
    wait_for_workers(pool, 3)
    folder = template(pool).folder

    {asked, failed} =
      under_load(pool, 1_000, fn ->
        stopped = Enum.random(pids(pool))
        signal(stopped, :STOP)
        wait_until(fn -> stopped not in pids(pool) end, 20_000)
        wait_for_workers(pool, 3)
      end)

    assert failed <= asked / 100
    stop_and_look(pool, folder)
  end

  test "the template is stopped: it is replaced when a worker is needed" do
    pool = start_pool(workers: 2, start_timeout: 1_000)
    wait_for_workers(pool, 2)
    folder = template(pool).folder

    {asked, failed} =
      under_load(pool, 500, fn ->
        signal(template(pool).current.os_pid, :STOP)
        kill(hd(pids(pool)))
        wait_for_workers(pool, 2)
      end)

    assert failed <= asked / 100
    stop_and_look(pool, folder)
  end

  test "kill -9 of the BEAM leaves neither a process nor a file" do
    code = """
    alias DSPex.PythonBridge.{Connection, SessionPoolV2}
    {:ok, _} = SessionPoolV2.start_link(adapter: "bridge_test_adapter:adapter", workers: 4)
    for _ <- 1..4, do: spawn(fn -> SessionPoolV2.execute_anonymous(:never) end)
    SessionPoolV2.execute_in_session("ann", :ping, %{}, [])
    IO.puts("folder #\{:sys.get_state(Module.concat(SessionPoolV2, "Template")).folder}")
    IO.puts("beam #\{System.pid()}")
    Process.sleep(:infinity)
    """

    port =
      Port.open({:spawn_executable, System.find_executable("elixir")}, [
        :binary,
        {:line, 200},
        {:args, ["-pa", Path.join(Mix.Project.app_path(), "ebin"), "-e", code]},
        {:env, [{~c"PYTHONPATH", to_charlist(options(transport: :port)[:env][:PYTHONPATH])}]}
      ])

    assert_receive {^port, {:data, {:eol, "folder " <> folder}}}, 30_000
    assert_receive {^port, {:data, {:eol, "beam " <> beam}}}, 5_000
    wait_until(fn -> length(processes(folder)) >= 5 end, 20_000)
    signal(beam, :KILL)
    wait_until(fn -> processes(folder) == [] end, 1_000)
    wait_until(fn -> not File.exists?(folder) end)
  end
end
