defmodule DSPex.PythonBridge.Multipart do
  @moduledoc """
  Multipart frames: the data of tensors and long binaries is sent in out-of-band buffers that
  follow the encoded message. Pure functions.

  A tensor is `{:tensor, type, shape, binary}` with types and shapes as in `Nx`, for example
  `{:tensor, {:f, 32}, {2, 3}, binary}`; the data is little-endian and row by row. Tensors are
  allowed anywhere in the args of a call, in the results of tools, in results and in events.

  Other binaries longer than 4 KiB also get a buffer unless they are UTF-8. A worker decodes every
  UTF-8 binary as text; send bytes that could be mistaken for text as a tensor of `{:u, 8}`.

  Received data is not copied: the binaries are parts of their frame and keep the whole frame in
  memory. Use `:binary.copy/1` to keep a small one without its frame.
  """

  @magic <<0xC1, 1, 0, 0>>
  # Each buffer starts at a multiple of this many bytes from the start of the frame.
  @alignment 64
  # Bytes; a longer binary gets a buffer.
  @out_of_band_above 4096
  # The most buffers that a worker accepts in one frame; further data stays in the message.
  @most_buffers 65_536
  @kinds [:s, :u, :f, :c, :bf, :f8_e4m3fn]

  @type type ::
          {:s | :u, 8 | 16 | 32 | 64}
          | {:f, 8 | 16 | 32 | 64}
          | {:bf, 16}
          | {:c, 64 | 128}
          | {:f8_e4m3fn, 8}
  @type tensor :: {:tensor, type(), tuple(), binary()}

  @doc "Returns the kinds of numbers, the atoms that the tensors in a reply may contain."
  @spec kinds() :: [atom()]
  def kinds, do: @kinds

  @doc "Returns the number of bytes above which a binary may get a buffer."
  @spec out_of_band_above() :: pos_integer()
  def out_of_band_above, do: @out_of_band_above

  @doc """
  Replaces the data of tensors and long binaries by references, and returns the term and the
  buffers.

      iex> DSPex.PythonBridge.Multipart.extract(%{x: {:tensor, {:u, 8}, {3}, "abc"}, y: "short"})
      {%{x: {:tensor, {:u, 8}, {3}, %{"$buffer" => 0}}, y: "short"}, ["abc"]}
  """
  @spec extract(term()) :: {term(), [binary()]}
  def extract(term) do
    {term, {_count, buffers}} = walk(term, {0, []})
    {term, Enum.reverse(buffers)}
  end

  defp walk({:tensor, type, shape, data}, acc) when is_binary(data) do
    {data, acc} = reference(data, acc)
    {{:tensor, type, shape, data}, acc}
  end

  defp walk(data, acc) when is_binary(data) and byte_size(data) > @out_of_band_above do
    if is_binary(:unicode.characters_to_binary(data)),
      do: {data, acc},
      else: reference(data, acc)
  end

  defp walk([first | rest], acc) do
    {first, acc} = walk(first, acc)
    {rest, acc} = walk(rest, acc)
    {[first | rest], acc}
  end

  defp walk(map, acc) when is_map(map) do
    Enum.reduce(:maps.to_list(map), {map, acc}, fn {key, value}, {map, acc} ->
      case walk(value, acc) do
        {_same, ^acc} -> {map, acc}
        {value, acc} -> {%{map | key => value}, acc}
      end
    end)
  end

  defp walk(tuple, acc) when is_tuple(tuple) do
    {list, acc} = walk(Tuple.to_list(tuple), acc)
    {List.to_tuple(list), acc}
  end

  defp walk(other, acc), do: {other, acc}

  defp reference(data, {@most_buffers, _} = acc), do: {data, acc}

  defp reference(data, {count, buffers}),
    do: {%{"$buffer" => count}, {count + 1, [data | buffers]}}

  @doc "Returns the frame of an encoded message and its buffers, which are not copied."
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
  Splits a multipart frame into the encoded message and a tuple of its buffers. Returns `:error`
  if the lengths in the frame's header do not match the frame.
  """
  @spec parts(binary()) :: {:ok, binary(), tuple()} | :error
  def parts(<<@magic, count::32, length::32, rest::binary>> = frame)
      when count <= @most_buffers and 4 * count + length <= byte_size(rest) do
    <<lengths::binary-size(count)-unit(32), envelope::binary-size(length), _::binary>> = rest
    buffers(for(<<size::32 <- lengths>>, do: size), 12 + 4 * count + length, frame, envelope, [])
  end

  def parts(_frame), do: :error

  defp buffers([], ending, frame, envelope, acc) when ending == byte_size(frame) do
    {:ok, envelope, acc |> Enum.reverse() |> List.to_tuple()}
  end

  defp buffers([size | rest], ending, frame, envelope, acc) do
    start = ending + Integer.mod(-ending, @alignment)

    if start + size <= byte_size(frame) do
      buffers(rest, start + size, frame, envelope, [binary_part(frame, start, size) | acc])
    else
      :error
    end
  end

  defp buffers([], _ending, _frame, _envelope, _found), do: :error

  @doc """
  Replaces references by their buffers. Raises `ArgumentError` for a reference without a buffer.
  """
  @spec substitute(term(), tuple()) :: term()
  def substitute(%{"$buffer" => index} = map, buffers) when map_size(map) == 1 do
    elem(buffers, index)
  end

  def substitute(map, buffers) when is_map(map) do
    :maps.map(fn _key, value -> substitute(value, buffers) end, map)
  end

  def substitute([first | rest], buffers),
    do: [substitute(first, buffers) | substitute(rest, buffers)]

  def substitute(tuple, buffers) when is_tuple(tuple) do
    tuple |> Tuple.to_list() |> substitute(buffers) |> List.to_tuple()
  end

  def substitute(other, _buffers), do: other
end
