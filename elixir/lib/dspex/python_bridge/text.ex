defmodule DSPex.PythonBridge.Text do
  @moduledoc """
  Makes text from other programs safe to display: valid UTF-8, shortened to one line where needed.
  """

  # The most characters of one line.
  @line_limit 500

  @doc """
  Replaces each byte that is not UTF-8 by U+FFFD.

      iex> DSPex.PythonBridge.Text.valid(<<"a", 255, "b">>)
      "a\uFFFDb"
  """
  @spec valid(binary()) :: String.t()
  def valid(text), do: if(valid?(text), do: text, else: scrub(text, ""))

  @doc "Returns whether a binary is UTF-8. Faster than `String.valid?/1` for long binaries."
  @spec valid?(binary()) :: boolean()
  def valid?(text), do: is_binary(:unicode.characters_to_binary(text))

  defp scrub(<<char::utf8, rest::binary>>, done), do: scrub(rest, <<done::binary, char::utf8>>)
  defp scrub(<<_, rest::binary>>, done), do: scrub(rest, <<done::binary, 0xFFFD::utf8>>)
  defp scrub(<<>>, done), do: done

  @doc """
  Returns the first line that is not blank, as valid UTF-8 and at most #{@line_limit} characters
  long.

      iex> DSPex.PythonBridge.Text.line("\\nfirst\\nsecond")
      "first"
  """
  @spec line(binary()) :: String.t()
  def line(text), do: text |> lines() |> Enum.at(0, "") |> String.slice(0, @line_limit)

  @doc """
  Returns the first line that is not blank, and also the next one if the first ends with a colon.

      iex> DSPex.PythonBridge.Text.opening("wrong arguments:\\n\\n  * 1st argument: no integer\\n")
      "wrong arguments: * 1st argument: no integer"
  """
  @spec opening(binary()) :: String.t()
  def opening(text) do
    case lines(text) do
      [first, second | _] ->
        joined =
          if String.ends_with?(first, ":"), do: "#{first} #{String.trim(second)}", else: first

        String.slice(joined, 0, @line_limit)

      _ ->
        line(text)
    end
  end

  @doc """
  Returns the last line that is not blank, with the same limits as `line/1`.
  """
  @spec last_line(binary()) :: String.t()
  def last_line(text), do: text |> lines() |> Enum.at(-1, "") |> String.slice(0, @line_limit)

  @doc """
  Returns the line of a Python traceback that names the exception: the first one after the frames.

      iex> DSPex.PythonBridge.Text.raised("Traceback:\\n  here\\nValueError: no\\nnot at all\\n")
      "ValueError: no"
  """
  @spec raised(binary()) :: String.t()
  def raised(traceback) do
    traceback
    |> lines()
    |> Enum.reverse()
    |> Enum.take_while(&(not String.starts_with?(&1, " ")))
    |> Enum.at(-1, "")
    |> String.slice(0, @line_limit)
  end

  defp lines(text) do
    for line <- text |> valid() |> String.split(["\r\n", "\n", "\r"]),
        String.trim(line) != "",
        do: line
  end
end
