defmodule SmallJSON do
  @moduledoc "A JSON module for the tests, as an application would provide."

  def encode_to_iodata!(nil), do: "null"
  def encode_to_iodata!(value) when is_boolean(value), do: Atom.to_string(value)
  def encode_to_iodata!(value) when is_atom(value), do: encode_to_iodata!(Atom.to_string(value))
  def encode_to_iodata!(value) when is_integer(value), do: Integer.to_string(value)
  def encode_to_iodata!(value) when is_float(value), do: Float.to_string(value)

  def encode_to_iodata!(value) when is_binary(value) do
    String.valid?(value) || raise ArgumentError, "not UTF-8"
    [?", Regex.replace(~r/["\\\x00-\x1f]/, value, fn <<char>> -> escape(char) end), ?"]
  end

  def encode_to_iodata!(list) when is_list(list) do
    [?[, list |> Enum.map(&encode_to_iodata!/1) |> Enum.intersperse(?,), ?]]
  end

  def encode_to_iodata!(%{} = map) do
    pairs =
      for {key, value} <- map do
        [encode_to_iodata!(to_string(key)), ?:, encode_to_iodata!(value)]
      end

    [?{, Enum.intersperse(pairs, ?,), ?}]
  end

  def encode_to_iodata!(other), do: raise(ArgumentError, "no JSON: #{inspect(other)}")

  defp escape(char), do: "\\u00" <> Base.encode16(<<char>>)

  # Decodes valid JSON; does not reject all that is invalid.
  def decode!(text) do
    true = String.starts_with?(text, ["{", "["])
    tokens = Regex.scan(~r/"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\]]|[^\s,:{}\[\]]+/, text)
    {value, []} = tokens |> List.flatten() |> value()
    value
  end

  defp value([open | rest]) when open in ["{", "["], do: items(rest, [])
  defp value([token | rest]), do: {scalar(token), rest}

  defp items(["]" | rest], list), do: {Enum.reverse(list), rest}

  defp items(["}" | rest], list) do
    {list |> Enum.reverse() |> Enum.chunk_every(2) |> Map.new(&List.to_tuple/1), rest}
  end

  defp items(tokens, list) do
    {value, rest} = value(tokens)
    items(rest, [value | list])
  end

  defp scalar("true"), do: true
  defp scalar("false"), do: false
  defp scalar("null"), do: nil

  defp scalar("\"" <> text) do
    text = binary_part(text, 0, byte_size(text) - 1)
    Regex.replace(~r/(?:\\u[0-9a-f]{4})+|\\./i, text, &unescape/1)
  end

  defp scalar(number) do
    {value, ""} = if number =~ ~r/[.e]/i, do: Float.parse(number), else: Integer.parse(number)
    value
  end

  # Adjacent escapes are decoded together: a character past 0xFFFF is a surrogate pair.
  defp unescape("\\u" <> _ = units) do
    units = units |> String.replace("\\u", "") |> Base.decode16!(case: :mixed)
    :unicode.characters_to_binary(units, :utf16)
  end

  defp unescape(<<?\\, char>>) do
    Map.get(%{?b => "\b", ?f => "\f", ?n => "\n", ?r => "\r", ?t => "\t"}, char, <<char>>)
  end
end
