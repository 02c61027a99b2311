# Measures round trips over a BEAM port, made by the port's owner.
#
#   elixir port.exs ROUNDS COUNT CONTENDER...
#
# A contender is one argument of several lines: name, request (Base64), executable, its arguments.
# Prints {"name": [{"p50_us": …, "p90_us": …, "p99_us": …}, an object for each round], …}.

defmodule Bench do
  @timeout 10_000
  # Bytes queued for the worker; the default of 8 KiB suspends a process that sends more.
  @busy_limits {4 * 1024 * 1024, 8 * 1024 * 1024}

  def parse(argument) do
    [name, request, executable | arguments] = String.split(argument, "\n")
    %{name: name, request: Base.decode64!(request), executable: executable, arguments: arguments}
  end

  def round(contender, count) do
    port =
      Port.open({:spawn_executable, contender.executable}, [
        :binary,
        :hide,
        {:packet, 4},
        {:busy_limits_port, @busy_limits},
        {:args, contender.arguments}
      ])

    for _ <- 1..(div(count, 5) + 5), do: call(port, contender.request)
    times = for _ <- 1..count, do: call(port, contender.request)
    Port.close(port)
    times |> Enum.sort() |> List.to_tuple() |> figures()
  end

  defp call(port, request) do
    started = System.monotonic_time(:nanosecond)
    Port.command(port, request)

    receive do
      {^port, {:data, reply}} ->
        took = System.monotonic_time(:nanosecond) - started
        # The C echo returns the request as its reply.
        [_] = :binary.matches(reply, ["\"success\":true", "\"success\": true", "\"command\":"])
        took
    after
      @timeout -> raise "no reply"
    end
  end

  defp figures(sorted) do
    for {name, share} <- [p50_us: 50, p90_us: 90, p99_us: 99], into: %{} do
      {name, elem(sorted, div(tuple_size(sorted) * share, 100)) / 1000}
    end
  end

  def json(figures) do
    "{" <> Enum.map_join(figures, ", ", fn {name, value} -> ~s("#{name}": #{value}) end) <> "}"
  end
end

[rounds, count | arguments] = System.argv()
contenders = Enum.map(arguments, &Bench.parse/1)

samples =
  for _ <- 1..String.to_integer(rounds), contender <- contenders do
    {contender.name, Bench.round(contender, String.to_integer(count))}
  end

rows =
  for %{name: name} <- contenders do
    ~s("#{name}": [) <> Enum.map_join(for({^name, f} <- samples, do: f), ", ", &Bench.json/1) <> "]"
  end

IO.puts("{" <> Enum.join(rows, ", ") <> "}")
