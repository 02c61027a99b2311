defmodule DSPex.PythonBridge.Terms do
  @moduledoc """
  Prepares a term for encoding: replaces structs by what `DSPex.Encodable` returns, and raises an
  error with the path of any value that cannot be sent. Pure functions.
  """

  alias DSPex.PythonBridge.{Error, Exits, Multipart, Protocol, Text}

  # The deepest nesting that a worker accepts.
  @deepest 512
  @out_of_band_above Multipart.out_of_band_above()

  @doc """
  Returns whether a term can be encoded in ETF unchanged: it needs no replacement of structs, no
  out-of-band buffer, and contains nothing that cannot be sent.

  Returns `false` when in doubt; then `written!/3` and `Multipart.extract/1` walk the term.
  """
  @spec plain?(term()) :: boolean()
  def plain?(term), do: plain?(term, @deepest)

  defp plain?(text, _depth) when is_binary(text), do: byte_size(text) <= @out_of_band_above
  defp plain?(value, _depth) when is_number(value) or is_atom(value), do: true
  defp plain?([], _depth), do: true
  defp plain?(_deep, 0), do: false
  defp plain?(list, depth) when is_list(list), do: plain_list?(list, depth - 1)
  defp plain?(%{__struct__: _}, _depth), do: false

  defp plain?(map, depth) when is_map(map) do
    plain_pairs?(:maps.next(:maps.iterator(map)), depth - 1, nil)
  end

  defp plain?(_other, _depth), do: false

  defp plain_list?([first | rest], depth), do: plain?(first, depth) and plain_list?(rest, depth)
  defp plain_list?(rest, _depth), do: rest == []

  # Only maps whose keys are all atoms or all strings, since an atom and a string may be equal in
  # Python.
  defp plain_pairs?(:none, _depth, _kind), do: true

  defp plain_pairs?({key, value, rest}, depth, kind) when is_atom(key) and kind != :binary do
    plain?(value, depth) and plain_pairs?(:maps.next(rest), depth, :atom)
  end

  defp plain_pairs?({key, value, rest}, depth, kind) when is_binary(key) and kind != :atom do
    plain?(value, depth) and plain_pairs?(:maps.next(rest), depth, :binary)
  end

  defp plain_pairs?(_next, _depth, _kind), do: false

  @doc """
  Replaces the structs in a term by what `DSPex.Encodable` returns.

  Raises `DSPex.PythonBridge.Error` with `:not_encodable` for a value that the format cannot
  represent. The message begins with the path of the value, and the path begins with `root`.

      iex> DSPex.PythonBridge.Terms.written!(%{inputs: %{day: ~D[2024-01-01]}}, :etf, "args")
      %{inputs: %{day: "2024-01-01"}}

      iex> DSPex.PythonBridge.Terms.written!(%{inputs: [self()]}, :etf, "args")
      ** (DSPex.PythonBridge.Error) args.inputs[0]: a pid cannot be sent
  """
  @spec written!(term(), Protocol.format(), String.t()) :: term()
  def written!(term, format, root), do: walk(term, {[root], 0, format})

  # A position: the path to the term, last part first; its depth; the format.
  defp walk(text, {_, _, format} = position) when is_binary(text) do
    if format == :json and not Text.valid?(text) do
      refuse(
        position,
        "a binary that is not UTF-8 cannot be sent in JSON; use the format :etf"
      )
    end

    text
  end

  defp walk(value, _place) when is_number(value) or is_atom(value) or value == [], do: value

  defp walk(_term, {_, @deepest, _} = position),
    do: refuse(position, "nested more than #{@deepest} levels deep")

  defp walk(%module{} = struct, position),
    do: struct |> encoded(module, position) |> walk(deeper(position))

  defp walk(list, position) when is_list(list), do: items(list, 0, position)

  defp walk(map, position) when is_map(map) do
    written =
      for {key, value} <- :maps.to_list(map), into: %{} do
        key = key(key, position)
        {key, walk(value, deeper(position, ".#{name(key)}"))}
      end

    if map_size(Map.new(written, fn {key, _} -> {comparable(key), true} end)) < map_size(map) do
      refuse(position, ~s(two keys of the map are equal in Python, as :a and "a" are))
    end

    written
  end

  defp walk({:tensor, _, _, _}, {_, _, :json} = position) do
    refuse(position, "a tensor cannot be sent in JSON; use the format :etf")
  end

  # The worker checks type, shape and size.
  defp walk({:tensor, _type, _shape, data} = tensor, _place) when is_binary(data), do: tensor

  defp walk(tuple, {_, _, :json} = position) when is_tuple(tuple) do
    refuse(position, "a tuple cannot be sent in JSON; send a list")
  end

  defp walk(tuple, position) when is_tuple(tuple) do
    tuple |> Tuple.to_list() |> items(0, position) |> List.to_tuple()
  end

  defp walk(other, position), do: refuse(position, "a #{kind(other)} cannot be sent")

  defp items([first | rest], index, position) do
    [walk(first, deeper(position, "[#{index}]")) | items(rest, index + 1, position)]
  end

  defp items([], _index, _place), do: []
  defp items(_tail, _index, position), do: refuse(position, "an improper list cannot be sent")

  defp key(key, {_, _, :json}) when is_atom(key) or is_number(key), do: json_key(key)
  defp key(key, position) when is_binary(key), do: walk(key, position)
  defp key(key, _place) when is_atom(key) or is_number(key), do: key

  defp key(%module{} = key, position) do
    case encoded(key, module, position) do
      text when is_binary(text) ->
        text

      _ ->
        refuse(position, "a struct #{inspect(module)} cannot be a key: it is not encoded as text")
    end
  end

  defp key(key, {_, _, :json} = position),
    do: refuse(position, "a #{kind(key)} cannot be a key in JSON")

  # Whether tuples, lists and maps can be keys is up to the receiver.
  defp key(key, position), do: walk(key, deeper(position, " (a key)"))

  # As JSON modules encode keys; `to_string(nil)` would be empty.
  defp json_key(key) when is_atom(key), do: Atom.to_string(key)
  defp json_key(key), do: to_string(key)

  # Atoms become strings in Python, where equal numbers, and `True` and 1, are the same key.
  defp comparable(true), do: 1
  defp comparable(false), do: 0
  defp comparable(key) when is_atom(key) and key != nil, do: Atom.to_string(key)
  defp comparable(key) when is_float(key) and trunc(key) == key, do: trunc(key)
  defp comparable(key), do: key

  defp name(key) when is_binary(key), do: Text.line(key)
  defp name(key) when is_atom(key), do: Atom.to_string(key)
  defp name(key), do: inspect(key, limit: 5, printable_limit: 50)

  defp encoded(struct, module, position) do
    if DSPex.Encodable.impl_for(struct) == DSPex.Encodable.Any do
      refuse(
        position,
        "a struct #{inspect(module)} cannot be sent: #{instead(module)}, or implement " <>
          "DSPex.Encodable for it"
      )
    end

    try do
      DSPex.Encodable.encode(struct)
    catch
      kind, reason ->
        line = Exits.line(kind, reason, __STACKTRACE__)
        refuse(position, "the struct #{inspect(module)} cannot be encoded: #{line}")
    end
  end

  defp instead(module) when module in [MapSet, Range, Date.Range], do: "send Enum.to_list/1 of it"
  defp instead(Nx.Tensor), do: "send {:tensor, type, shape, binary}"
  defp instead(_module), do: "send a map of the fields it needs"

  defp deeper({path, depth, format}), do: {path, depth + 1, format}
  defp deeper({path, depth, format}, part), do: {[part | path], depth + 1, format}

  defp kind(term) when is_pid(term), do: "pid"
  defp kind(term) when is_port(term), do: "port"
  defp kind(term) when is_reference(term), do: "reference"
  defp kind(term) when is_function(term), do: "function"
  defp kind(term) when is_bitstring(term), do: "bit string that is not a binary"
  defp kind(term) when is_tuple(term), do: "tuple"
  defp kind(term) when is_list(term), do: "list"
  defp kind(_map), do: "map"

  @spec refuse({[String.t()], non_neg_integer(), Protocol.format()}, String.t()) :: no_return()
  defp refuse({path, _depth, _format}, why) do
    path = path |> Enum.reverse() |> Enum.join()
    raise Error.new(:not_encodable, "#{shortened(path)}: #{why}", %{"path" => shortened(path)})
  end

  # A very long path is shortened to its two ends.
  defp shortened(path) when byte_size(path) <= 400, do: path

  defp shortened(path) do
    String.slice(path, 0, 150) <> "…" <> String.slice(path, -150, 150)
  end
end
