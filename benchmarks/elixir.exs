# Measures calls through the Elixir client, beside a bare port to the same worker and a bare port to the
# C echo, and the number of calls per second that many processes make.
#
#   cd elixir && MIX_ENV=prod BRIDGE_PYTHON=… mix run ../benchmarks/elixir.exs \
#     [--rounds 10] [--count 5000] [--seconds 3] [--json FILE]
#
# Contenders take turns, so that a busy moment of the machine affects all of them. Figures are medians of
# the rounds; a ratio is computed for each round, then its median is shown.

defmodule Benchmark do
  alias DSPex.PythonBridge.{Bridge, Protocol, Python}

  @processes [1, 8, 64]

  def main(arguments) do
    {options, []} =
      OptionParser.parse!(arguments,
        strict: [rounds: :integer, count: :integer, seconds: :integer, json: :string]
      )

    {:ok, python, _} = Python.find()
    {:ok, _} = Bridge.start_link(adapter: "echo", python: python)
    request = Protocol.encode_request(1, :ping, %{}, timeout_ms: 30_000)
    echo = port(compile_echo(), [])
    worker = port(python, ["-P", "-m", "bridge", "worker", "--adapter", "echo"])

    contenders = [
      c_echo: fn -> bare_call(echo, request) end,
      bare_port: fn -> bare_call(worker, request) end,
      bridge: fn -> {:ok, _} = Bridge.call(:ping) end
    ]

    count = options[:count] || 5_000

    rounds =
      for _ <- 1..(options[:rounds] || 10) do
        Map.new(contenders, fn {name, call} -> {name, round(call, count)} end)
      end

    rates = Map.new(@processes, &{&1, rate(&1, options[:seconds] || 3)})
    report(rounds, rates)
    if options[:json], do: File.write!(options[:json], json(rounds, rates))
  end

  defp compile_echo do
    program = Path.join(System.tmp_dir!(), "bridge-echo-#{System.pid()}")
    source = Path.join(__DIR__, "c/echo.c")
    {_, 0} = System.cmd(System.get_env("CC", "cc"), ["-O2", "-o", program, source])
    program
  end

  defp port(executable, arguments) do
    Port.open({:spawn_executable, executable}, [
      :binary,
      :hide,
      {:packet, 4},
      {:busy_limits_port, {4 * 1024 * 1024, 8 * 1024 * 1024}},
      {:args, arguments}
    ])
  end

  defp bare_call(port, request) do
    Port.command(port, request)

    receive do
      {^port, {:data, _reply}} -> :ok
    after
      10_000 -> raise "no reply"
    end
  end

  defp round(call, count) do
    for _ <- 1..(div(count, 5) + 5), do: call.()

    times =
      for _ <- 1..count do
        started = System.monotonic_time(:nanosecond)
        call.()
        System.monotonic_time(:nanosecond) - started
      end

    sorted = times |> Enum.sort() |> List.to_tuple()

    for {name, share} <- [p50_us: 50, p99_us: 99], into: %{} do
      {name, elem(sorted, div(tuple_size(sorted) * share, 100)) / 1000}
    end
  end

  defp rate(processes, seconds) do
    stop = :atomics.new(1, [])
    started = System.monotonic_time(:millisecond)
    tasks = for _ <- 1..processes, do: Task.async(fn -> call_until(stop, 0) end)
    Process.sleep(seconds * 1000)
    :atomics.put(stop, 1, 1)
    calls = tasks |> Task.await_many() |> Enum.sum()
    div(calls * 1000, System.monotonic_time(:millisecond) - started)
  end

  defp call_until(stop, calls) do
    {:ok, _} = Bridge.call(:ping)
    if :atomics.get(stop, 1) == 1, do: calls + 1, else: call_until(stop, calls + 1)
  end

  defp report(rounds, rates) do
    for name <- [:c_echo, :bare_port, :bridge] do
      [p50, p99, share] = [p50(rounds, name), median(rounds, & &1[name].p99_us), share(rounds, name)]
      IO.puts("#{pad(name)}  p50 #{us(p50)}  p99 #{us(p99)}  #{Float.round(share, 2)} × the C echo")
    end

    for processes <- @processes do
      IO.puts("#{String.pad_leading("#{processes}", 9)} processes  #{rates[processes]} calls/s")
    end
  end

  defp p50(rounds, name), do: median(rounds, & &1[name].p50_us)
  defp share(rounds, name), do: median(rounds, &(&1[name].p50_us / &1.c_echo.p50_us))
  defp median(rounds, read), do: rounds |> Enum.map(read) |> Enum.sort() |> Enum.at(div(length(rounds), 2))
  defp us(time), do: String.pad_leading("#{Float.round(time, 1)} µs", 9)
  defp pad(name), do: String.pad_leading(to_string(name), 9)

  defp json(rounds, rates) do
    rows =
      for name <- [:c_echo, :bare_port, :bridge] do
        figures = Enum.map_join(rounds, ", ", &~s({"p50_us": #{&1[name].p50_us}, "p99_us": #{&1[name].p99_us}}))
        ~s("#{name}": [#{figures}])
      end

    rates = Enum.map_join(rates, ", ", fn {processes, rate} -> ~s("#{processes}": #{rate}) end)
    "{#{Enum.join(rows, ", ")}, \"calls_per_second\": {#{rates}}}\n"
  end
end

Benchmark.main(System.argv())
