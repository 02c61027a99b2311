defmodule ClusterLoad do
  @moduledoc """
  Callers of a pool on this node, which append entries to the ledgers of durable sessions
  (`ledger.py`), look for them, and ask for echoes; and what they saw.

  `check/2` holds what all nodes saw against the ledgers: each acknowledged entry is there, at the place
  that its caller was told, no entry is there twice, and none that nobody sent.
  """

  alias DSPex.PythonBridge.SessionPoolV2

  @doc """
  Starts callers. Options: `:pool`, `:sessions`, `:callers`, `:timeout` (ms, of each call), `:pause` (ms,
  between calls).
  """
  def start(options) do
    starter = self()

    spawn(fn ->
      Process.register(self(), __MODULE__)
      flags = :atomics.new(2, [])
      callers = for _ <- 1..options[:callers], do: Task.async(fn -> calls(options, flags) end)
      send(starter, {__MODULE__, :started})
      serve(flags, callers)
    end)

    receive do: ({__MODULE__, :started} -> :ok)
  end

  defp serve(flags, callers) do
    receive do
      {:calls, asker} ->
        send(asker, {__MODULE__, :atomics.get(flags, 2)})
        serve(flags, callers)

      {:stop, asker} ->
        :atomics.put(flags, 1, 1)
        send(asker, {__MODULE__, Task.await_many(callers, 120_000)})
    end
  end

  @doc "Returns how many calls have ended."
  def calls, do: ask(:calls)

  @doc "Stops the callers when their calls have ended, and returns what they saw."
  def stop, do: :stop |> ask() |> Enum.reduce(nothing(), &merge/2)

  defp ask(question) do
    send(__MODULE__, {question, self()})
    receive do: ({__MODULE__, answer} -> answer)
  end

  @doc "Returns what a load without calls has seen."
  def nothing do
    %{calls: 0, wrong: 0, stale: 0, stray: 0, latest: 0, codes: %{}, acknowledged: [], sent: []}
  end

  @doc """
  Adds what two loads have seen.

  `calls`, and of these `codes` with an error; `wrong`: got the answer of another call; `stale`: an
  acknowledged entry was not found; `stray`: messages left in the callers; `latest`: ms after its deadline.
  """
  def merge(one, other) do
    Map.merge(one, other, fn
      :latest, a, b -> max(a, b)
      :codes, a, b -> Map.merge(a, b, fn _, m, n -> m + n end)
      _, a, b when is_list(a) -> a ++ b
      _, a, b -> a + b
    end)
  end

  @doc """
  Returns what is wrong with the ledgers, read by `read.(session)`, after what loads have seen. Entries of
  callers on killed nodes, by their process ids, may be there although nobody has told of them.
  """
  def check(seen, killed \\ [], read) do
    sent = MapSet.new(seen.sent)

    for {session, acknowledged} <- Enum.group_by(seen.acknowledged, &elem(&1, 0)),
        ledger = read.(session),
        fault <-
          lost(acknowledged, ledger) ++ invented(session, ledger, sent, killed) ++ holes(ledger),
        do: {session, fault}
  end

  defp lost(acknowledged, ledger) do
    for {_, entry, place} <- acknowledged,
        ledger[entry] != place,
        do: {:lost, entry, place, ledger[entry]}
  end

  defp invented(session, ledger, sent, killed) do
    for {entry, place} <- ledger,
        not MapSet.member?(sent, {session, entry}),
        not Enum.any?(killed, &String.starts_with?(entry, &1 <> " ")),
        do: {:invented, entry, place}
  end

  defp holes(ledger) do
    places = ledger |> Map.values() |> Enum.sort()
    if places == Enum.to_list(0..(length(places) - 1)//1), do: [], else: [{:places, places}]
  end

  defp calls(options, flags, seen \\ nothing(), own \\ []) do
    {seen, own} = step(options, seen, own)
    :atomics.add(flags, 2, 1)
    Process.sleep(options[:pause] || 0)

    if :atomics.get(flags, 1) == 1,
      do: %{seen | stray: Process.info(self(), :message_queue_len) |> elem(1)},
      else: calls(options, flags, seen, own)
  end

  defp step(options, seen, own) do
    case :rand.uniform(4) do
      1 -> {echo(options, nil, seen), own}
      2 -> {echo(options, Enum.random(options[:sessions]), seen), own}
      3 when own != [] -> {find(options, hd(own), seen), own}
      _ -> append(options, Enum.random(options[:sessions]), seen, own)
    end
  end

  defp append(options, session, seen, own) do
    entry = "#{System.pid()} #{System.unique_integer([:positive])}"
    seen = %{seen | sent: [{session, entry} | seen.sent]}

    case timed(options, session, :append, %{entry: entry}, seen) do
      {{:ok, %{"place" => place, "again" => false}}, seen} ->
        {%{seen | acknowledged: [{session, entry, place} | seen.acknowledged]},
         [{session, entry} | own]}

      {{:ok, _again}, seen} ->
        {%{seen | wrong: seen.wrong + 1}, own}

      {{:error, _}, seen} ->
        {seen, own}
    end
  end

  defp find(options, {session, entry}, seen) do
    case timed(options, session, :find, %{entry: entry}, seen) do
      {{:ok, %{"found" => false}}, seen} -> %{seen | stale: seen.stale + 1}
      {_, seen} -> seen
    end
  end

  defp echo(options, session, seen) do
    args = %{"number" => System.unique_integer()}

    case timed(options, session, :echo, args, seen) do
      {{:ok, ^args}, seen} -> seen
      {{:ok, _}, seen} -> %{seen | wrong: seen.wrong + 1}
      {{:error, _}, seen} -> seen
    end
  end

  defp timed(options, session, command, args, seen) do
    started = System.monotonic_time(:millisecond)
    settings = [pool_name: options[:pool], timeout: options[:timeout]]
    result = SessionPoolV2.execute_in_session(session, command, args, settings)
    late = System.monotonic_time(:millisecond) - started - options[:timeout]
    seen = %{seen | calls: seen.calls + 1, latest: max(seen.latest, late)}
    {result, noted(result, seen)}
  end

  defp noted({:error, error}, seen) do
    %{seen | codes: Map.update(seen.codes, error.code, 1, &(&1 + 1))}
  end

  defp noted(_result, seen), do: seen
end
