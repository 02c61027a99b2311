# Simulates the sessions of a large cluster by the code that chooses the node of a call
# (`Cluster.View`, `Cluster.Ring`): how evenly they are spread, which of them move when nodes join or are
# lost, and how long it takes to find the node of one.
#
#   cd elixir && MIX_ENV=prod mix run --no-start ../benchmarks/routing.exs \
#     [--sessions 1000000] [--nodes 100] [--events 20] [--seed 1] [--json FILE]
#
# Half of the events are joins, half losses of nodes taken at random, one at a time; then ten nodes are lost
# at once, and ten join at once. After each event the node of every session is asked for again.
#
# `least`: the fewest sessions that have to move: those that a lost node had, and the share of a node
# that joins. `astray`: sessions that moved although their node is still there and did not go to a new one.
# `max/mean`: sessions of the fullest node beside the mean. For comparison, sessions that are put on
# random nodes, which nobody could find again.

defmodule RoutingBenchmark do
  alias DSPex.PythonBridge.Cluster.{Ring, View}

  @pool __MODULE__
  @finds 20_000

  def main(arguments) do
    {options, []} =
      OptionParser.parse!(arguments,
        strict: [sessions: :integer, nodes: :integer, events: :integer, seed: :integer, json: :string]
      )

    options = Keyword.merge([sessions: 1_000_000, nodes: 100, events: 20, seed: 1], options)
    :rand.seed(:exsss, options[:seed])
    rows = simulate(options[:sessions], options[:nodes], options[:events])
    finds = for nodes <- [3, 10, options[:nodes], 1_000], do: find(nodes)
    known = known(options[:sessions])
    if options[:json], do: File.write!(options[:json], json(%{events: rows, finds: finds, known: [known]}))
  end

  def simulate(sessions, nodes, events) do
    names = for number <- 1..nodes, do: name(number)
    placed = owners(chunks(sessions), names)

    IO.puts("#{sessions} sessions, #{nodes} nodes\n")
    IO.puts("| | nodes | moved | least | moved / least | astray | max/mean |\n|---|---|---|---|---|---|---|")
    show("at first", nodes, nil, spread(placed, names))
    random = for _ <- 1..sessions, do: Enum.random(names)
    show("on random nodes", nodes, nil, imbalance(Enum.frequencies(random), names))

    kinds = Enum.shuffle(for number <- 1..events, do: if(rem(number, 2) == 0, do: :join, else: :loss))
    {rows, state} = Enum.map_reduce(kinds, {names, placed, nodes}, &event(&1, 1, &2))
    least = rows |> Enum.map(& &1.least) |> Enum.sum()
    moved = rows |> Enum.map(& &1.moved) |> Enum.sum()
    astray = rows |> Enum.map(& &1.astray) |> Enum.sum()
    worst = rows |> Enum.map(& &1.imbalance) |> Enum.max()
    {names, _, _} = state
    show("#{events} joins and losses", length(names), {moved, least, astray}, worst)

    {lost, state} = event(:loss, 10, state)
    show("ten lost at once", lost.nodes, {lost.moved, lost.least, lost.astray}, lost.imbalance)
    {joined, _} = event(:join, 10, state)
    show("ten join at once", joined.nodes, {joined.moved, joined.least, joined.astray}, joined.imbalance)
    rows ++ [lost, joined]
  end

  defp event(kind, count, {names, placed, last}) do
    {new_names, last} =
      case kind do
        :join -> {names ++ for(number <- (last + 1)..(last + count), do: name(number)), last + count}
        :loss -> {names -- Enum.take_random(names, count), last}
      end

    after_it = owners(Enum.map(placed, &elem(&1, 0)), new_names)
    {old, new} = {MapSet.new(names), MapSet.new(new_names)}

    moves =
      for {{_, before}, {_, now}} <- Enum.zip(placed, after_it),
          {from, to} <- Enum.zip(before, now),
          from != to,
          do: {from, to}

    astray = Enum.count(moves, fn {from, to} -> from in new and to in old end)

    row = %{
      kind: kind,
      nodes: length(new_names),
      moved: length(moves),
      least: least(kind, count, placed, new, length(new_names)),
      astray: astray,
      imbalance: spread(after_it, new_names)
    }

    {row, {new_names, after_it, last}}
  end

  defp least(:join, count, placed, _new, nodes), do: round(total(placed) * count / nodes)

  defp least(:loss, _count, placed, new, _nodes) do
    placed |> Enum.map(fn {_, owners} -> Enum.count(owners, &(&1 not in new)) end) |> Enum.sum()
  end

  defp total(placed), do: placed |> Enum.map(fn {_, owners} -> length(owners) end) |> Enum.sum()

  # The numbers of the sessions, in as many parts as there are cores.
  defp chunks(sessions) do
    size = ceil(sessions / System.schedulers_online())
    for first <- 1..sessions//size, do: first..min(first + size - 1, sessions)
  end

  # The nodes of all sessions, as a caller finds them.
  defp owners(chunks, names) do
    View.put(@pool, %View{ring: Ring.new(names)})

    chunks
    |> Task.async_stream(
      fn numbers -> {numbers, for(number <- numbers, do: owner("session-#{number}"))} end,
      timeout: :infinity
    )
    |> Enum.map(fn {:ok, placed} -> placed end)
  end

  defp owner(session_id), do: Ring.owner(View.get(@pool).ring, session_id)

  defp spread(placed, names) do
    placed
    |> Enum.reduce(%{}, fn {_, owners}, counts ->
      Map.merge(counts, Enum.frequencies(owners), fn _, one, other -> one + other end)
    end)
    |> imbalance(names)
  end

  defp imbalance(counts, names) do
    Enum.max(Map.values(counts)) * length(names) / Enum.sum(Map.values(counts))
  end

  defp name(number), do: :"pool@node-#{number}"

  defp show(title, nodes, nil, imbalance),
    do: IO.puts("| #{title} | #{nodes} | | | | | #{decimals(imbalance, 3)} |")

  defp show(title, nodes, {moved, least, astray}, imbalance) do
    ratio = decimals(moved / max(least, 1), 3)
    IO.puts("| #{title} | #{nodes} | #{moved} | #{least} | #{ratio} | #{astray} | #{decimals(imbalance, 3)} |")
  end

  # The time to find the node of one session, from the view that a caller reads.
  def find(nodes) do
    View.put(@pool, %View{ring: Ring.new(for number <- 1..nodes, do: name(number))})
    if nodes == 3, do: IO.puts("\n| to find one | p50 µs | p99 µs | p99.9 µs |\n|---|---|---|---|")
    timed("among #{nodes} nodes", fn number -> owner("session-#{number}") end)
  end

  # A table of all sessions, which this design does not have: what a look-up in it would take, and its memory.
  def known(sessions) do
    table = :ets.new(:known, [read_concurrency: true])
    for number <- 1..sessions, do: :ets.insert(table, {"session-#{number}", name(rem(number, 100))})
    row = timed("in a table of #{sessions} sessions", fn number -> :ets.lookup(table, "session-#{number}") end)
    mib = :ets.info(table, :memory) * :erlang.system_info(:wordsize) / 1_048_576
    IO.puts("\nThe table takes #{decimals(mib, 0)} MiB of memory on each node.")
    Map.put(row, :mib, mib)
  end

  defp timed(title, find) do
    numbers = for _ <- 1..@finds, do: :rand.uniform(1_000_000)
    Enum.each(numbers, find)

    times =
      numbers
      |> Enum.map(fn number ->
        started = System.monotonic_time(:nanosecond)
        find.(number)
        System.monotonic_time(:nanosecond) - started
      end)
      |> Enum.sort()

    [p50, p99, p999] = for share <- [0.5, 0.99, 0.999], do: Enum.at(times, floor(share * @finds)) / 1_000
    IO.puts("| #{title} | #{decimals(p50, 1)} | #{decimals(p99, 1)} | #{decimals(p999, 1)} |")
    %{title: title, p50_us: p50, p99_us: p99, p999_us: p999}
  end

  defp decimals(number, digits), do: :erlang.float_to_binary(number / 1, decimals: digits)

  # Elixir 1.14 has no JSON.
  defp json(map) when is_map(map),
    do: "{" <> Enum.map_join(map, ", ", fn {key, value} -> ~s("#{key}": #{json(value)}) end) <> "}"

  defp json(list) when is_list(list), do: "[" <> Enum.map_join(list, ",\n", &json/1) <> "]"
  defp json(number) when is_number(number), do: to_string(number)
  defp json(text), do: inspect(to_string(text))
end

RoutingBenchmark.main(System.argv())
