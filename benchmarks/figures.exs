defmodule Figures do
  @moduledoc """
  What benchmarks in Elixir do with the figures of their rounds: take medians, print them, and keep all of
  them for --json. `rounds` is a list with, for each round, a map of contenders, each with `:p50` and `:cpu`
  in µs.
  """

  @doc "Returns the median of what `read` returns for each round."
  def median(rounds, read), do: rounds |> Enum.map(read) |> middle()

  @doc "Returns the median of numbers."
  def middle(values), do: values |> Enum.sort() |> Enum.at(div(length(values), 2))

  @doc "Returns a time in µs as text."
  def us(time), do: "#{Float.round(time * 1.0, 2)} µs"

  @doc "Returns a ratio as text."
  def ratio(ratio), do: "#{Float.round(ratio * 1.0, 2)} ×"

  @doc "Prints the medians of each contender, and keeps the figures of all rounds."
  def show(section, contenders, rounds) do
    for {name, _} <- contenders do
      for {key, unit} <- [p50: "p50_us", cpu: "cpu_us"],
          do: keep(section, "#{name}_#{unit}", Enum.map(rounds, & &1[name][key]))

      figures = "p50 #{us(median(rounds, & &1[name].p50))}  cpu #{us(median(rounds, & &1[name].cpu))}"
      IO.puts("#{section}  #{String.pad_leading(to_string(name), 8)}  #{figures}")
    end
  end

  @doc "Keeps figures for `write/1`."
  def keep(section, name, values) do
    Process.put(Figures, [{section, name, values} | Process.get(Figures, [])])
  end

  @doc "Writes all that was kept to a file, as JSON: by section and by name. Does nothing without a path."
  def write(nil), do: :ok

  def write(path) do
    sections = Process.get(Figures, []) |> Enum.reverse() |> Enum.group_by(&elem(&1, 0))

    json =
      object(
        for {section, rows} <- sections do
          {section, object(for {_, name, values} <- rows, do: {name, "[#{Enum.join(values, ", ")}]"})}
        end
      )

    File.write!(path, json <> "\n")
  end

  defp object(pairs), do: "{" <> Enum.map_join(pairs, ", ", fn {key, value} -> ~s("#{key}": #{value}) end) <> "}"
end
