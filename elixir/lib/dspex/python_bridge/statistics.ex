defmodule DSPex.PythonBridge.Statistics do
  @moduledoc """
  The counters of one bridge. Callers and the owner of the port update them concurrently.

  The counters of a bridge with a name survive its restarts: they are stored under the name.
  """

  alias DSPex.PythonBridge.Error

  @counted [:starts, :calls, :replies, :casts, :events, :tool_calls, :late_replies, :abandoned]
  @codes Error.codes()

  @type t :: :counters.counters_ref()

  @doc "Returns the counters of a name, or new ones for `nil`."
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

  @doc """
  Increments a counter: #{Enum.map_join(@counted, ", ", &"`#{inspect(&1)}`")}, or the code of an
  error.
  """
  @spec count(t(), atom()) :: :ok
  def count(counters, what), do: :counters.add(counters, index(what), 1)

  @doc """
  Returns all counters. `errors` has the codes that occurred, `restarts` the starts after the
  first.
  """
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
