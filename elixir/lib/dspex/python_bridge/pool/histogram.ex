defmodule DSPex.PythonBridge.Pool.Histogram do
  @moduledoc """
  Merges the statistics of several workers. Bucket `i` of a histogram is `i` ns below 32; above, there
  are 32 buckets for each doubling, so adding calls by index merges histograms exactly, and a
  percentile is at most 1/32 off (docs/protocol.md).
  """

  @shares [{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p99.9", 0.999}]
  @sums ~w(calls errors bytes_in bytes_out in_flight queue_depth)

  @doc """
  Merges entries of one command or session as `get_stats` with `histograms` returns them. The result
  has the same keys; the latencies are those of all calls together.
  """
  @spec merge([map()]) :: map()
  def merge([first | _] = entries) do
    histogram = merge_histograms(for %{"histogram" => histogram} <- entries, do: histogram)

    first
    |> Map.take(@sums)
    |> Map.new(fn {key, _} -> {key, sum(entries, key)} end)
    |> Map.merge(%{"histogram" => histogram, "latency_us" => latency(histogram)})
    |> maybe(first, "errors_by_category", fn key -> add(entries, key) end)
    |> maybe(first, "counters", fn key -> add(entries, key) end)
    |> maybe(first, "windows", fn key -> windows(for(entry <- entries, do: entry[key])) end)
    |> maybe(first, "seconds", fn key -> entries |> Enum.map(& &1[key]) |> Enum.max() end)
  end

  defp maybe(merged, first, key, value) do
    if is_map_key(first, key), do: Map.put(merged, key, value.(key)), else: merged
  end

  defp sum(entries, key), do: entries |> Enum.map(&(&1[key] || 0)) |> Enum.sum()

  defp add(entries, key) do
    Enum.reduce(entries, %{}, fn entry, sums ->
      Map.merge(sums, entry[key] || %{}, fn _, one, other -> one + other end)
    end)
  end

  defp windows(all) do
    for name <- all |> Enum.flat_map(&Map.keys/1) |> Enum.uniq(), into: %{} do
      {name, merge(for %{^name => window} <- all, do: window)}
    end
  end

  defp merge_histograms(histograms) do
    counts =
      for %{"buckets" => buckets} <- histograms, [index, calls] <- buckets, reduce: %{} do
        counts -> Map.update(counts, index, calls, &(&1 + calls))
      end

    histograms
    |> Enum.reduce(%{}, fn histogram, sums ->
      histogram
      |> Map.drop(["buckets"])
      |> Map.merge(sums, fn
        "max_ns", one, other -> max(one, other)
        _key, one, other -> one + other
      end)
    end)
    |> Map.put("buckets", for({index, calls} <- Enum.sort(counts), do: [index, calls]))
  end

  defp latency(%{"buckets" => buckets} = histogram) do
    total = buckets |> Enum.map(fn [_, calls] -> calls end) |> Enum.sum()
    greatest = Map.get(histogram, "max_ns", 0)

    @shares
    |> Map.new(fn {name, share} -> {name, micro(percentile(buckets, total, share, greatest))} end)
    |> Map.put("max", micro(greatest))
  end

  defp percentile(_buckets, 0, _share, _greatest), do: 0

  defp percentile(buckets, total, share, greatest) do
    rank = max(1, ceil(share * total))

    Enum.reduce_while(buckets, 0, fn [index, calls], seen ->
      if seen + calls >= rank, do: {:halt, {:top, top(index)}}, else: {:cont, seen + calls}
    end)
    |> then(fn {:top, top} -> min(top, greatest) end)
  end

  @doc "Returns the longest duration of a bucket in ns."
  @spec top(non_neg_integer()) :: non_neg_integer()
  def top(index) when index < 32, do: index

  def top(index) do
    shift = div(index, 32) - 1
    (index - 32 * shift + 1) * Integer.pow(2, shift) - 1
  end

  defp micro(nanoseconds), do: Float.round(nanoseconds / 1000, 3)
end
