# What a call to the pool of another node costs, on loopback.
#
#     cd elixir && MIX_ENV=prod BRIDGE_PYTHON=../.venv/bin/python mix run ../benchmarks/cluster.exs
#
# --rounds, --count (calls of a round), --only cost,size,large; --json FILE for the figures of all rounds.
Code.require_file("figures.exs", __DIR__)

[{BeamNodes, _}, {FileEpmd, file_epmd}] =
  for file <- ~w(beam_nodes file_epmd), module <- Code.require_file("../elixir/test/support/#{file}.ex", __DIR__), do: module

# What runs on the nodes.
{:module, _, on_nodes, _} =
  defmodule ClusterBenchmark.OnNodes do
    alias DSPex.PythonBridge.Cluster.Ring
    alias DSPex.PythonBridge.SessionPoolV2

    @pool ClusterBenchmark.Pool

    def start_pool do
      starter = self()

      spawn(fn ->
        {:ok, _} = SessionPoolV2.start_link(name: @pool, adapter: "echo", workers: 2, cluster: true)
        send(starter, :started)
        Process.sleep(:infinity)
      end)

      receive(do: (:started -> :ok))
    end

    def nodes, do: SessionPoolV2.get_pool_status(@pool).nodes |> length()

    # p50 and p99 of so many calls, µs.
    def round(contender, count) do
      call = call(contender)
      figures(for _ <- 1..count, do: timed(call))
    end

    # The same while another process makes large calls, one after the other; and how long these take.
    def beside(contender, large, count) do
      stop = :atomics.new(1, [])
      call = call(large)
      task = Task.async(fn -> times_until(call, stop, []) end)
      Process.sleep(100)
      call = call(contender)
      times = for _ <- 1..count, do: paused(call)
      :atomics.put(stop, 1, 1)
      times |> figures() |> Map.put(:large, task |> Task.await(:infinity) |> figures())
    end

    defp paused(call) do
      Process.sleep(1)
      timed(call)
    end

    defp times_until(call, stop, times) do
      times = [timed(call) | times]
      if :atomics.get(stop, 1) == 1, do: times, else: times_until(call, stop, times)
    end

    defp timed(call) do
      started = System.monotonic_time(:nanosecond)
      call.()
      (System.monotonic_time(:nanosecond) - started) / 1000
    end

    defp figures(times) do
      sorted = Enum.sort(times)
      at = fn part -> Enum.at(sorted, min(trunc(length(sorted) * part), length(sorted) - 1)) end
      %{p50: at.(0.5), p99: at.(0.99), max: List.last(sorted)}
    end

    defp call({:erpc, bytes}) do
      [other] = Node.list()
      binary = :binary.copy(<<0>>, bytes)
      fn -> ^binary = :erpc.call(other, :erlang, :hd, [[binary]]) end
    end

    defp call({place, bytes}) when place in [:local, :remote] do
      session = session(place)
      if bytes == 0, do: pool_call(session, :ping, %{}), else: pool_call(session, :echo, %{"blob" => :binary.copy(<<0>>, bytes)})
    end

    # A local call, made there.
    defp call({:composed, 0}) do
      [other] = Node.list()
      arguments = [session(:remote), :ping, %{}, [pool_name: @pool]]
      fn -> {:ok, _} = :erpc.call(other, SessionPoolV2, :execute_in_session, arguments) end
    end

    defp pool_call(session, command, args) do
      fn -> {:ok, _} = SessionPoolV2.execute_in_session(session, command, args, pool_name: @pool, timeout: 120_000) end
    end

    # A session that belongs to this node, or to the other one.
    defp session(place) do
      ring = Ring.new([node() | Node.list()])
      here? = place == :local
      Enum.find(Stream.map(1..1000, &"session #{&1}"), &((Ring.owner(ring, &1) == node()) == here?))
    end

      end

defmodule ClusterBenchmark do
  import Figures, only: [keep: 3, median: 2, ratio: 1, show: 3, us: 1]
  alias ClusterBenchmark.OnNodes

  @sections ~w(cost size large)
  @large 64_000_000

  def main(arguments, code) do
    {options, []} =
      OptionParser.parse!(arguments, strict: [rounds: :integer, count: :integer, only: :string, json: :string])

    options = Keyword.merge([rounds: 15, count: 2_000], options)
    nodes = start(code)
    only = String.split(options[:only] || Enum.join(@sections, ","), ",")

    try do
      for section <- only, do: apply(__MODULE__, String.to_existing_atom(section), [nodes, options])
      Figures.write(options[:json])
    after
      for node <- nodes, do: BeamNodes.signal(node, :KILL)
      File.rm_rf!(hd(nodes).folder)
    end
  end

  defp start({on_nodes, file_epmd}) do
    folder = BeamNodes.folder()
    File.write!(Path.join(folder, "Elixir.FileEpmd.beam"), file_epmd)
    nodes = for name <- ~w(a b), do: BeamNodes.start_link(folder, name, ["-pa", folder])
    BeamNodes.connect(nodes)

    for node <- nodes do
      {:module, _} = BeamNodes.call(node, :code, :load_binary, [OnNodes, ~c"cluster.exs", on_nodes])
      :ok = BeamNodes.call(node, OnNodes, :start_pool, [], 60_000)
    end

    for node <- nodes, do: joined(node)
    nodes
  end

  defp joined(node) do
    if BeamNodes.call(node, OnNodes, :nodes, []) < 2, do: Process.sleep(10) && joined(node)
  end

  # `remote` is a call to the pool of the other node, `erpc` a bare call of a trivial function there. `composed` is
  # a bare call of a function there that makes a local call: what both cost on one machine, where the nodes and
  # the worker take the cores from each other.
  def cost(nodes, options) do
    contenders = [local: {:local, 0}, erpc: {:erpc, 0}, composed: {:composed, 0}, remote: {:remote, 0}]
    rounds = rounds(nodes, contenders, options[:rounds], options[:count])
    show("ping", contenders, rounds)
    show_ratio(rounds)
    composed = fn key -> ratio(median(rounds, &(&1.remote[key] / &1.composed[key]))) end
    IO.puts("remote / composed: #{composed.(:p50)}, of the CPU time #{composed.(:cpu)}")
  end

  # There and back.
  def size(nodes, options) do
    for {name, bytes} <- ["64 KiB": 64 * 1024, "1 MiB": 1024 * 1024, "64 MB": @large] do
      contenders = [local: {:local, bytes}, erpc: {:erpc, bytes}, remote: {:remote, bytes}]
      count = if bytes == @large, do: 3, else: div(options[:count], 20)
      rounds = rounds(nodes, contenders, max(div(options[:rounds], 3), 1), count)
      show("#{name}", contenders, rounds)
      show_ratio(rounds)
    end
  end

  # Small calls while calls of 64 MB go to the same node.
  def large([a, _], options) do
    contenders = [erpc: {{:erpc, 0}, {:erpc, @large}}, remote: {{:remote, 0}, {:remote, @large}}, local: {{:local, 0}, {:local, @large}}]

    rounds =
      for _ <- 1..max(div(options[:rounds], 3), 1) do
        Map.new(Enum.shuffle(contenders), fn {name, {small, large}} ->
          {name, BeamNodes.call(a, OnNodes, :beside, [small, large, 200], :infinity)}
        end)
      end

    for {name, _} <- contenders do
      for key <- [:p50, :p99, :max], do: keep("large", "#{name}_#{key}_us", Enum.map(rounds, & &1[name][key]))
      keep("large", "#{name}_large_us", Enum.map(rounds, & &1[name].large.p50))
      of = fn read -> us(median(rounds, &read.(&1[name]))) end
      IO.puts("beside 64 MB  #{String.pad_leading(to_string(name), 8)}  p50 #{of.(& &1.p50)}  p99 #{of.(& &1.p99)}  max #{of.(& &1.max)}  large #{of.(& &1.large.p50)}")
    end
  end

  defp rounds(nodes, contenders, rounds, count) do
    for {_, contender} <- contenders, do: round(nodes, contender, count)

    for _ <- 1..rounds do
      Map.new(Enum.shuffle(contenders), fn {name, contender} -> {name, round(nodes, contender, count)} end)
    end
  end

  # With the CPU time of both nodes for one call, µs; without that of the workers.
  defp round([a, _] = nodes, contender, count) do
    before = cpu(nodes)
    figures = BeamNodes.call(a, OnNodes, :round, [contender, count], :infinity)
    Map.put(figures, :cpu, (cpu(nodes) - before) / 1000 / count)
  end

  # ns
  defp cpu(nodes) do
    for node <- nodes, path <- Path.wildcard("/proc/#{node.os_pid}/task/*/schedstat"), reduce: 0 do
      sum -> sum + (path |> File.read!() |> String.split() |> hd() |> String.to_integer())
    end
  end

  defp show_ratio(rounds) do
    more = fn key -> ratio(median(rounds, &((&1.remote[key] - &1.local[key]) / &1.erpc[key]))) end
    IO.puts("(remote - local) / erpc: #{more.(:p50)}, of the CPU time #{more.(:cpu)}")
  end
end

ClusterBenchmark.main(System.argv(), {on_nodes, file_epmd})
