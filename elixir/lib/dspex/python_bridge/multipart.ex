defmodule DSPex.PythonBridge.Multipart do
  @moduledoc """
  Tensors and long binaries beside a message instead of in it. Pure.

  A tensor is `{:tensor, type, shape, binary}`, as `Nx` has them: `{:tensor, {:f, 32}, {2, 3},
  binary}`, little-endian, row by row. It may stand anywhere in the args of a call, in what a tool
  returns, in results and in events.

  Other binaries of more than 4 KiB stand apart too where they are no text. A worker takes any
  binary that is UTF-8 for text; bytes that may look like it go as a tensor of `{:u, 8}`.

  What comes back is not copied: its binaries are parts of the frame that they came in, which lives
  as long as one of them. `:binary.copy/1` lets go of it.
  """

  @magic <<0xC1, 1, 0, 0>>
  # Bytes from the frame's start, of each buffer.
  @alignment 64
  # Bytes; a longer binary stands apart.
  @apart 4096
  # What a worker takes in one frame; what is more stays in the message.
  @most_buffers 65_536
  @kinds [:s, :u, :f, :c, :bf, :f8_e4m3fn]

  @type type ::
          {:s | :u, 8 | 16 | 32 | 64}
          | {:f, 8 | 16 | 32 | 64}
          | {:bf, 16}
          | {:c, 64 | 128}
          | {:f8_e4m3fn, 8}
  @type tensor :: {:tensor, type(), tuple(), binary()}

  @doc "The kinds of numbers: atoms that a reply may hold, and that are there from now on."
  @spec kinds() :: [atom()]
  def kinds, do: @kinds

  @doc "Bytes from which on a binary, or a whole message, is worth a look."
  @spec apart() :: pos_integer()
  def apart, do: @apart

  @doc """
  The term with references in place of the data of tensors and of long binaries, and those.

      iex> DSPex.PythonBridge.Multipart.set_apart(%{x: {:tensor, {:u, 8}, {3}, "abc"}, y: "short"})
      {%{x: {:tensor, {:u, 8}, {3}, %{"$buffer" => 0}}, y: "short"}, ["abc"]}
  """
  @spec set_apart(term()) :: {term(), [binary()]}
  def set_apart(term) do
    {term, {_count, buffers}} = walk(term, {0, []})
    {term, Enum.reverse(buffers)}
  end

  defp walk({:tensor, type, shape, data}, found) when is_binary(data) do
    {data, found} = reference(data, found)
    {{:tensor, type, shape, data}, found}
  end

  defp walk(data, found) when is_binary(data) and byte_size(data) > @apart do
    if is_binary(:unicode.characters_to_binary(data)),
      do: {data, found},
      else: reference(data, found)
  end

  defp walk([first | rest], found) do
    {first, found} = walk(first, found)
    {rest, found} = walk(rest, found)
    {[first | rest], found}
  end

  defp walk(map, found) when is_map(map) do
    Enum.reduce(:maps.to_list(map), {map, found}, fn {key, value}, {map, found} ->
      case walk(value, found) do
        {_same, ^found} -> {map, found}
        {value, found} -> {%{map | key => value}, found}
      end
    end)
  end

  defp walk(tuple, found) when is_tuple(tuple) do
    {list, found} = walk(Tuple.to_list(tuple), found)
    {List.to_tuple(list), found}
  end

  defp walk(other, found), do: {other, found}

  defp reference(data, {@most_buffers, _} = found), do: {data, found}

  defp reference(data, {count, buffers}),
    do: {%{"$buffer" => count}, {count + 1, [data | buffers]}}

  @doc "The frame of an encoded message and its buffers, which are not copied."
  @spec frame(iodata(), [binary()]) :: iodata()
  def frame(envelope, []), do: envelope

  def frame(envelope, buffers) do
    length = IO.iodata_length(envelope)
    count = length(buffers)
    lengths = for buffer <- buffers, into: <<>>, do: <<byte_size(buffer)::32>>
    head = <<@magic, count::32, length::32, lengths::binary>>
    [head, envelope | padded(buffers, byte_size(head) + length)]
  end

  defp padded([], _end), do: []

  defp padded([buffer | rest], ending) do
    padding = Integer.mod(-ending, @alignment)
    [<<0::size(padding)-unit(8)>>, buffer | padded(rest, ending + padding + byte_size(buffer))]
  end

  @doc """
  The message of a multipart frame as bytes, and its buffers as a tuple; `:error` where its table
  does not fit it.
  """
  @spec parts(binary()) :: {:ok, binary(), tuple()} | :error
  def parts(<<@magic, count::32, length::32, rest::binary>> = frame)
      when count <= @most_buffers and 4 * count + length <= byte_size(rest) do
    <<lengths::binary-size(count)-unit(32), envelope::binary-size(length), _::binary>> = rest
    buffers(for(<<size::32 <- lengths>>, do: size), 12 + 4 * count + length, frame, envelope, [])
  end

  def parts(_frame), do: :error

  defp buffers([], ending, frame, envelope, found) when ending == byte_size(frame) do
    {:ok, envelope, found |> Enum.reverse() |> List.to_tuple()}
  end

  defp buffers([size | rest], ending, frame, envelope, found) do
    start = ending + Integer.mod(-ending, @alignment)

    if start + size <= byte_size(frame) do
      buffers(rest, start + size, frame, envelope, [binary_part(frame, start, size) | found])
    else
      :error
    end
  end

  defp buffers([], _ending, _frame, _envelope, _found), do: :error

  @doc "The term with buffers in place of references. Raises ArgumentError for one to none."
  @spec resolve(term(), tuple()) :: term()
  def resolve(%{"$buffer" => index} = map, buffers) when map_size(map) == 1 do
    elem(buffers, index)
  end

  def resolve(map, buffers) when is_map(map) do
    :maps.map(fn _key, value -> resolve(value, buffers) end, map)
  end

  def resolve([first | rest], buffers), do: [resolve(first, buffers) | resolve(rest, buffers)]

  def resolve(tuple, buffers) when is_tuple(tuple) do
    tuple |> Tuple.to_list() |> resolve(buffers) |> List.to_tuple()
  end

  def resolve(other, _buffers), do: other
end
