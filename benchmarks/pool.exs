# Measures a pool of workers in Elixir: what a call of a pool costs beside one of a bridge to the same
# template, a socket beside a port, how calls per second grow with the workers, and how soon a worker
# answers that has just been started.
#
#   cd elixir && MIX_ENV=prod BRIDGE_PYTHON=… mix run ../benchmarks/pool.exs \
#     [--rounds 15] [--count 2000] [--seconds 2] [--only cost,size,scale,start] \
#     [--json FILE]
#
# Contenders take turns, in another order in each round, so that a busy moment of the machine affects
# all of them. Each ratio and each difference is computed within a round; the median of the rounds is
# shown. `cpu` is the CPU time of the BEAM alone.

Code.require_file("figures.exs", __DIR__)

defmodule PoolBenchmark do
  import Figures, only: [keep: 3, median: 2, middle: 1, ratio: 1, show: 3, us: 1]
  alias DSPex.PythonBridge.{Bridge, Pool, SessionPoolV2}

  @sections ~w(cost size scale start)

  def main(arguments) do
    {options, []} =
      OptionParser.parse!(arguments,
        strict: [rounds: :integer, count: :integer, seconds: :integer, only: :string, json: :string]
      )

    Logger.configure(level: :none)
    only = String.split(options[:only] || Enum.join(@sections, ","), ",")
    options = Keyword.merge([rounds: 15, count: 2_000, seconds: 2], options)
    for section <- only, do: apply(__MODULE__, String.to_existing_atom(section), [options])
    Figures.write(options[:json])
  end

  # `worker` calls the pool's only worker through its connection, without the pool: the difference is
  # what the pool adds. `bridge` is another worker of the same template, `port` one on a port.
  def cost(options) do
    pool(CostPool, 1, fn ->
      {:ok, _} = Bridge.start_link(name: Direct, connect: address(CostPool))
      {:ok, _} = Bridge.start_link(name: OnPort, adapter: "echo")

      connection = elem(Pool.get(CostPool).slots, 0)

      contenders = [
        worker: fn -> {:ok, _} = Bridge.call(connection, :ping, %{}, 5_000) end,
        bridge: fn -> {:ok, _} = Bridge.call(Direct, :ping, %{}, 5_000) end,
        pool: fn -> {:ok, _} = SessionPoolV2.execute_anonymous(:ping, %{}, pool_name: CostPool) end,
        session: fn -> {:ok, _} = SessionPoolV2.execute_in_session("ann", :ping, %{}, pool_name: CostPool) end,
        port: fn -> {:ok, _} = Bridge.call(OnPort, :ping, %{}, 5_000) end
      ]

      rounds = rounds(contenders, options[:rounds], options[:count])
      show("ping", contenders, rounds)
      more = fn name, key -> median(rounds, &(&1[name][key] - &1.worker[key])) end
      IO.puts("pool - worker: #{us(more.(:pool, :p50))} (cpu #{us(more.(:pool, :cpu))})")
      IO.puts("session - worker: #{us(more.(:session, :p50))} (cpu #{us(more.(:session, :cpu))})")
      IO.puts("socket / port: #{ratio(median(rounds, &(&1.bridge.p50 / &1.port.p50)))}")
      Enum.each([Direct, OnPort], &Bridge.stop/1)
    end)
  end

  # 1 MiB both ways.
  def size(options) do
    pool(SizePool, 1, fn ->
      {:ok, _} = Bridge.start_link(name: OnPort, adapter: "echo")
      args = %{"blob" => :binary.copy(<<0>>, 1024 * 1024)}

      contenders = [
        pool: fn -> {:ok, _} = SessionPoolV2.execute_anonymous(:echo, args, pool_name: SizePool) end,
        port: fn -> {:ok, _} = Bridge.call(OnPort, :echo, args, 5_000) end
      ]

      rounds = rounds(contenders, options[:rounds], max(div(options[:count], 20), 1))
      show("1 MiB", contenders, rounds)
      IO.puts("socket / port: #{ratio(median(rounds, &(&1.pool.p50 / &1.port.p50)))}")
      Bridge.stop(OnPort)
    end)
  end

  # The command `count` of pool_load.py keeps a core of the worker busy for about 4 ms, and costs the BEAM little.
  def scale(options) do
    busy = [adapter: "pool_load:adapter", env: %{"PYTHONPATH" => __DIR__}]

    rates =
      for workers <- [1, 2, 4] do
        pool(ScalePool, workers, busy, fn ->
          call = fn ->
            {:ok, _} = SessionPoolV2.execute_anonymous(:count, %{to: 200_000}, pool_name: ScalePool)
          end

          {workers, rate(call, 16, options[:seconds])}
        end)
      end

    [{1, one} | _] = rates
    for {workers, rate} <- rates, do: keep("scale", "#{workers}_workers_per_s", [rate])
    for {workers, rate} <- rates, do: IO.puts("#{workers} workers: #{rate} calls/s, #{ratio(rate / one)} of one")
  end

  # From the end of a worker to the first answer of the next, and from a first call to a worker of its own.
  def start(options) do
    pool(StartPool, 1, fn ->
      killed =
        for _ <- 1..options[:rounds] do
          [%{worker_pid: pid}] = SessionPoolV2.get_pool_status(StartPool).slots
          started = now()
          System.cmd("kill", ["-9", "#{pid}"])
          {:ok, _} = SessionPoolV2.execute_anonymous(:ping, %{}, pool_name: StartPool)
          now() - started
        end

      keep("start", "killed_us", killed)
      IO.puts("killed worker to the next one's answer: #{us(middle(killed))} (with the time of `kill`)")
    end)

    {:ok, _} = SessionPoolV2.start_link(name: OwnPool, adapter: "echo", workers: 1, isolate: :session)

    own =
      for n <- 1..options[:rounds] do
        started = now()
        {:ok, _} = SessionPoolV2.execute_in_session("s#{n}", :ping, %{}, pool_name: OwnPool)
        now() - started
      end

    keep("start", "own_us", own)
    IO.puts("first call of a session with a worker of its own: #{us(middle(own))}")
    SessionPoolV2.stop(OwnPool)
  end

  defp pool(name, workers, options \\ [adapter: "echo"], run) do
    {:ok, _} = SessionPoolV2.start_link([name: name, workers: workers] ++ options)
    ready(name, workers)
    result = run.()
    SessionPoolV2.stop(name)
    result
  end

  defp ready(name, workers) do
    if Enum.count(SessionPoolV2.get_pool_status(name).slots, &(&1.state == :ready)) < workers do
      Process.sleep(5)
      ready(name, workers)
    end
  end

  defp address(name), do: :sys.get_state(Module.concat(name, "Template")).address

  defp rounds(contenders, rounds, count) do
    for {_, call} <- contenders, _ <- 1..count, do: call.()

    for _ <- 1..rounds do
      Map.new(Enum.shuffle(contenders), fn {name, call} -> {name, round(call, count)} end)
    end
  end

  defp round(call, count) do
    :erlang.statistics(:runtime)

    times =
      for _ <- 1..count do
        started = now()
        call.()
        now() - started
      end

    {_, cpu} = :erlang.statistics(:runtime)
    %{p50: middle(times), cpu: cpu * 1000 / count}
  end

  defp rate(call, processes, seconds) do
    stop = :atomics.new(1, [])
    for _ <- 1..20, do: call.()
    started = now()
    tasks = for _ <- 1..processes, do: Task.async(fn -> call_until(call, stop, 0) end)
    Process.sleep(seconds * 1000)
    :atomics.put(stop, 1, 1)
    calls = tasks |> Task.await_many(60_000) |> Enum.sum()
    round(calls * 1.0e6 / (now() - started))
  end

  defp call_until(call, stop, calls) do
    call.()
    if :atomics.get(stop, 1) == 1, do: calls + 1, else: call_until(call, stop, calls + 1)
  end

  # µs
  defp now, do: System.monotonic_time(:nanosecond) / 1000
end

PoolBenchmark.main(System.argv())
