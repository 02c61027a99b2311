# What a call to the pool of another node costs, on loopback.
#
#     cd elixir && MIX_ENV=prod BRIDGE_PYTHON=../.venv/bin/python mix run ../benchmarks/cluster.exs
#
# --rounds, --count (calls of a round), --only cost,large,stream; --json FILE for the figures of all rounds.
for file <- ~w(file_epmd beam_nodes), do: Code.require_file("../elixir/test/support/#{file}.ex", __DIR__)

# What runs on the nodes.
{:module, _, on_nodes, _} =
  defmodule ClusterBenchmark.OnNodes do
    alias DSPex.PythonBridge.Cluster.Ring
    alias DSPex.PythonBridge.SessionPoolV2

    @pool ClusterBenchmark.Pool
    @megabyte 1024 * 1024

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

    # p50 and p99 of so many calls, and the CPU time of this node for one, µs.
    def round(contender, count) do
      call = call(contender)
      :erlang.statistics(:runtime)
      times = for _ <- 1..count, do: timed(call)
      {_, cpu} = :erlang.statistics(:runtime)
      times |> figures() |> Map.put(:cpu, cpu * 1000 / count)
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

    # Chunks of a stream, as many as the worker sends.
    defp call({:stream, place}) do
      session = session(place)
      options = [session_id: session, pool_name: @pool]
      fn -> @pool && SessionPoolV2.stream(:count, %{to: 1000}, options) |> Enum.count() end
    end

    defp pool_call(session, command, args) do
      fn -> {:ok, _} = SessionPoolV2.execute_in_session(session, command, args, pool_name: @pool, timeout: 120_000) end
    end

    # A session that belongs to this node, or to the other one.
    defp session(place) do
      ring = Ring.new([node() | Node.list()])
      "session " <> _ = Enum.find(Stream.map(1..1000, &"session #{&1}"), &(Ring.owner(ring, &1) == node() == (place == :local)))
    end

    def megabytes(count), do: count * @megabyte
  end

defmodule ClusterBenchmark do
  alias ClusterBenchmark.OnNodes

  @sections ~w(cost size large)
  @large 64 * 1024 * 1024

  def main(arguments, code) do
    {options, []} =
      OptionParser.parse!(arguments, strict: [rounds: :integer, count: :integer, only: :string, json: :string])

    options = Keyword.merge([rounds: 15, count: 2_000], options)
    [a, _] = nodes = start(code)
    only = String.split(options[:only] || Enum.join(@sections, ","), ",")
    for section <- only, do: apply(__MODULE__, String.to_existing_atom(section), [a, options])
    if options[:json], do: File.write!(options[:json], json())
    for node <- nodes, do: BeamNodes.signal(node, :KILL)
    File.rm_rf!(a.folder)
  end

  defp start(code) do
    folder = BeamNodes.folder()
    {FileEpmd, epmd, _} = {FileEpmd, hd(for({FileEpmd, binary} <- Code.compile_file("../elixir/test/support/file_epmd.ex", __DIR__), do: binary)), nil}
    File.write!(Path.join(folder, "Elixir.FileEpmd.beam"), epmd)
    nodes = for name <- ~w(a b), do: BeamNodes.start_link(folder, name, ["-pa", folder])
    BeamNodes.connect(nodes)

    for node <- nodes do
      {:module, _} = BeamNodes.call(node, :code, :load_binary, [OnNodes, ~c"cluster.exs", code])
      :ok = BeamNodes.call(node, OnNodes, :start_pool, [], 60_000)
    end

    for node <- nodes, do: joined(node)
    nodes
  end

  defp joined(node) do
    if BeamNodes.call(node, OnNodes, :nodes, []) < 2, do: Process.sleep(10) && joined(node)
  end

  # `remote` calls the worker of the other node, `erpc` is a bare call of a trivial function there.
  def cost(a, options) do
    contenders = [local: {:local, 0}, erpc: {:erpc, 0}, remote: {:remote, 0}]
    rounds = rounds(a, contenders, options[:rounds], options[:count])
    show("ping", contenders, rounds)
    more = median(rounds, &((&1.remote.p50 - &1.local.p50) / &1.erpc.p50))
    IO.puts("(remote - local) / erpc: #{ratio(more)}")
  end

  # There and back.
  def size(a, options) do
    for {name, bytes} <- ["64 KiB": 64 * 1024, "1 MiB": 1024 * 1024, "64 MiB": @large] do
      contenders = [local: {:local, bytes}, erpc: {:erpc, bytes}, remote: {:remote, bytes}]
      count = if bytes == @large, do: 3, else: div(options[:count], 20)
      rounds = rounds(a, contenders, max(div(options[:rounds], 3), 1), count)
      show("#{name}", contenders, rounds)
      IO.puts("(remote - local) / erpc: #{ratio(median(rounds, &((&1.remote.p50 - &1.local.p50) / &1.erpc.p50)))}")
    end
  end

  # Small calls while calls of 64 MiB go to the same node.
  def large(a, options) do
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
      IO.puts("beside 64 MiB  #{String.pad_leading(to_string(name), 8)}  p50 #{of.(& &1.p50)}  p99 #{of.(& &1.p99)}  max #{of.(& &1.max)}  large #{of.(& &1.large.p50)}")
    end
  end

  defp rounds(a, contenders, rounds, count) do
    for {_, contender} <- contenders, do: BeamNodes.call(a, OnNodes, :round, [contender, count], :infinity)

    for _ <- 1..rounds do
      Map.new(Enum.shuffle(contenders), fn {name, contender} ->
        {name, BeamNodes.call(a, OnNodes, :round, [contender, count], :infinity)}
      end)
    end
  end

  defp show(what, contenders, rounds) do
    for {name, _} <- contenders do
      for {key, unit} <- [p50: "p50_us", cpu: "cpu_us"],
          do: keep(what, "#{name}_#{unit}", Enum.map(rounds, & &1[name][key]))

      figures = "p50 #{us(median(rounds, & &1[name].p50))}  cpu #{us(median(rounds, & &1[name].cpu))}"
      IO.puts("#{what}  #{String.pad_leading(to_string(name), 8)}  #{figures}")
    end
  end

  # The figures of all rounds, for --json.
  defp keep(section, name, values) do
    Process.put(:figures, [{section, name, values} | Process.get(:figures, [])])
  end

  defp json do
    sections = Process.get(:figures, []) |> Enum.reverse() |> Enum.group_by(&elem(&1, 0))

    object(
      for {section, rows} <- sections do
        {section, object(for {_, name, values} <- rows, do: {name, "[#{Enum.join(values, ", ")}]"})}
      end
    ) <> "\n"
  end

  defp object(pairs), do: "{" <> Enum.map_join(pairs, ", ", fn {key, value} -> ~s("#{key}": #{value}) end) <> "}"

  defp median(rounds, read), do: rounds |> Enum.map(read) |> middle()
  defp middle(values), do: values |> Enum.sort() |> Enum.at(div(length(values), 2))
  defp us(time), do: "#{Float.round(time * 1.0, 2)} µs"
  defp ratio(ratio), do: "#{Float.round(ratio * 1.0, 2)}"
end

ClusterBenchmark.main(System.argv(), on_nodes)
