defmodule DSPex.PythonBridge.Text do
  @moduledoc """
  Makes text from other programs safe to show: valid UTF-8, and on one line where that is wanted.
  """

  # Characters of one line.
  @line_limit 500

  @doc """
  Replaces bytes that are not UTF-8 by U+FFFD.

      iex> DSPex.PythonBridge.Text.valid(<<"a", 255, "b">>)
      "a\uFFFDb"
  """
  @spec valid(binary()) :: String.t()
  def valid(text) do
    if String.valid?(text), do: text, else: for(<<part <- scrub(text)>>, into: "", do: <<part>>)
  end

  defp scrub(<<char::utf8, rest::binary>>), do: <<char::utf8, scrub(rest)::binary>>
  defp scrub(<<_, rest::binary>>), do: <<0xFFFD::utf8, scrub(rest)::binary>>
  defp scrub(<<>>), do: <<>>

  @doc """
  Returns the first line that is not blank, valid and at most #{@line_limit} characters long.

      iex> DSPex.PythonBridge.Text.line("\\nfirst\\nsecond")
      "first"
  """
  @spec line(binary()) :: String.t()
  def line(text) do
    text
    |> valid()
    |> String.split(["\r\n", "\n", "\r"])
    |> Enum.find("", &(String.trim(&1) != ""))
    |> String.slice(0, @line_limit)
  end
end
