defmodule DSPex.PythonBridge.Statistics do
  @moduledoc """
  Counters of one bridge, written by callers and by the port's owner without asking each other.

  A bridge with a name keeps its counters over restarts: they belong to the name.
  """

  alias DSPex.PythonBridge.Error

  @counted [:starts, :calls, :replies, :casts, :events, :tool_calls, :late_replies, :abandoned]
  @codes Error.codes()

  @type t :: :counters.counters_ref()

  @doc "The counters of a name; new ones without a name."
  @spec for_name(term()) :: t()
  def for_name(nil), do: :counters.new(length(@counted) + length(@codes), [:write_concurrency])

  def for_name(name) do
    key = {__MODULE__, name}

    with nil <- :persistent_term.get(key, nil) do
      counters = for_name(nil)
      :persistent_term.put(key, counters)
      counters
    end
  end

  @doc "Counts one of #{Enum.map_join(@counted, ", ", &"`#{inspect(&1)}`")}, or an error's code."
  @spec count(t(), atom()) :: :ok
  def count(counters, what), do: :counters.add(counters, index(what), 1)

  @doc "All counters; `errors` has the codes that occurred, `restarts` the starts after the first."
  @spec read(t()) :: map()
  def read(counters) do
    codes = for code <- @codes, (n = :counters.get(counters, index(code))) > 0, do: {code, n}

    @counted
    |> Map.new(&{&1, :counters.get(counters, index(&1))})
    |> Map.put(:errors, Map.new(codes))
    |> then(fn read -> Map.put(read, :restarts, max(read.starts - 1, 0)) end)
  end

  for {what, index} <- Enum.with_index(@counted ++ @codes, 1) do
    defp index(unquote(what)), do: unquote(index)
  end
end
