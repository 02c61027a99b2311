defmodule DSPex.PythonBridge.Terms do
  @moduledoc """
  Makes a term one that a worker can take, before it is encoded: structs in their written form
  (`DSPex.Encodable`), and an error with its path for what has none. Pure.
  """

  alias DSPex.PythonBridge.{Error, Exits, Multipart, Protocol, Text}

  # As deep as a worker reads.
  @deepest 512
  @apart Multipart.apart()

  @doc """
  Whether a term goes out in ETF as it is: nothing in it needs a written form, an error, or a buffer
  of its own. `false` costs no more than a closer look.
  """
  @spec plain?(term()) :: boolean()
  def plain?(term), do: plain?(term, @deepest)

  defp plain?(text, _depth) when is_binary(text), do: byte_size(text) <= @apart
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

  # Keys of one kind alone, since an atom and a string may mean the same.
  defp plain_pairs?(:none, _depth, _kind), do: true

  defp plain_pairs?({key, value, rest}, depth, kind) when is_atom(key) and kind != :binary do
    plain?(value, depth) and plain_pairs?(:maps.next(rest), depth, :atom)
  end

  defp plain_pairs?({key, value, rest}, depth, kind) when is_binary(key) and kind != :atom do
    plain?(value, depth) and plain_pairs?(:maps.next(rest), depth, :binary)
  end

  defp plain_pairs?(_next, _depth, _kind), do: false

  @doc """
  Returns the term with structs in their written form. Raises `DSPex.PythonBridge.Error`
  (`:not_encodable`) with the path for what a format cannot carry; `root` is how paths begin.

      iex> DSPex.PythonBridge.Terms.written!(%{inputs: %{day: ~D[2024-01-01]}}, :etf, "args")
      %{inputs: %{day: "2024-01-01"}}

      iex> DSPex.PythonBridge.Terms.written!(%{inputs: [self()]}, :etf, "args")
      ** (DSPex.PythonBridge.Error) args.inputs[0]: a pid cannot be sent
  """
  @spec written!(term(), Protocol.format(), String.t()) :: term()
  def written!(term, format, root), do: walk(term, {[root], 0, format})

  # A place: the path to the term, last part first; how deep it is; the format.
  defp walk(text, {_, _, format} = place) when is_binary(text) do
    if format == :json and not Text.valid?(text) do
      refuse(
        place,
        "a binary that is not UTF-8 cannot be sent in JSON; the format :etf carries it"
      )
    end

    text
  end

  defp walk(value, _place) when is_number(value) or is_atom(value) or value == [], do: value

  defp walk(_term, {_, @deepest, _} = place),
    do: refuse(place, "nested more than #{@deepest} levels deep")

  defp walk(%module{} = struct, place),
    do: struct |> encoded(module, place) |> walk(deeper(place))

  defp walk(list, place) when is_list(list), do: items(list, 0, place)

  defp walk(map, place) when is_map(map) do
    written =
      for {key, value} <- :maps.to_list(map), into: %{} do
        key = key(key, place)
        {key, walk(value, deeper(place, ".#{name(key)}"))}
      end

    if map_size(Map.new(written, fn {key, _} -> {comparable(key), true} end)) < map_size(map) do
      refuse(place, ~s(two keys of the map mean the same, as :a and "a" do))
    end

    written
  end

  defp walk({:tensor, _, _, _}, {_, _, :json} = place) do
    refuse(place, "tensors go in the format :etf alone")
  end

  # What is wrong with one, the worker says.
  defp walk({:tensor, _type, _shape, data} = tensor, _place) when is_binary(data), do: tensor

  defp walk(tuple, {_, _, :json} = place) when is_tuple(tuple) do
    refuse(place, "a tuple cannot be sent in JSON; send a list")
  end

  defp walk(tuple, place) when is_tuple(tuple) do
    tuple |> Tuple.to_list() |> items(0, place) |> List.to_tuple()
  end

  defp walk(other, place), do: refuse(place, "a #{kind(other)} cannot be sent")

  defp items([first | rest], index, place) do
    [walk(first, deeper(place, "[#{index}]")) | items(rest, index + 1, place)]
  end

  defp items([], _index, _place), do: []
  defp items(_tail, _index, place), do: refuse(place, "an improper list cannot be sent")

  defp key(key, {_, _, :json}) when is_atom(key) or is_number(key), do: json_key(key)
  defp key(key, place) when is_binary(key), do: walk(key, place)
  defp key(key, _place) when is_atom(key) or is_number(key), do: key

  defp key(%module{} = key, place) do
    case encoded(key, module, place) do
      text when is_binary(text) ->
        text

      _ ->
        refuse(place, "a struct #{inspect(module)} cannot be a key: its written form is no text")
    end
  end

  defp key(key, {_, _, :json} = place),
    do: refuse(place, "a #{kind(key)} cannot be a key in JSON")

  # Tuples, lists and maps as keys are a matter of what reads them.
  defp key(key, place), do: walk(key, deeper(place, " (a key)"))

  # What JSON makes of it; `to_string(nil)` is empty.
  defp json_key(key) when is_atom(key), do: Atom.to_string(key)
  defp json_key(key), do: to_string(key)

  # In Python atoms are texts, and numbers that are equal, `True` and 1 too, are one key.
  defp comparable(true), do: 1
  defp comparable(false), do: 0
  defp comparable(key) when is_atom(key) and key != nil, do: Atom.to_string(key)
  defp comparable(key) when is_float(key) and trunc(key) == key, do: trunc(key)
  defp comparable(key), do: key

  defp name(key) when is_binary(key), do: Text.line(key)
  defp name(key) when is_atom(key), do: Atom.to_string(key)
  defp name(key), do: inspect(key, limit: 5, printable_limit: 50)

  defp encoded(struct, module, place) do
    if DSPex.Encodable.impl_for(struct) == DSPex.Encodable.Any do
      refuse(
        place,
        "a struct #{inspect(module)} cannot be sent: #{instead(module)}, or implement " <>
          "DSPex.Encodable for it"
      )
    end

    try do
      DSPex.Encodable.encode(struct)
    catch
      kind, reason ->
        line = Exits.line(kind, reason, __STACKTRACE__)
        refuse(place, "the struct #{inspect(module)} has no written form: #{line}")
    end
  end

  defp instead(module) when module in [MapSet, Range, Date.Range], do: "send Enum.to_list/1 of it"
  defp instead(Nx.Tensor), do: "send {:tensor, type, shape, binary}"
  defp instead(_module), do: "send a map of the fields that are wanted"

  defp deeper({path, depth, format}), do: {path, depth + 1, format}
  defp deeper({path, depth, format}, part), do: {[part | path], depth + 1, format}

  defp kind(term) when is_pid(term), do: "pid"
  defp kind(term) when is_port(term), do: "port"
  defp kind(term) when is_reference(term), do: "reference"
  defp kind(term) when is_function(term), do: "function"
  defp kind(term) when is_bitstring(term), do: "bit string that is no whole number of bytes"
  defp kind(term) when is_tuple(term), do: "tuple"
  defp kind(term) when is_list(term), do: "list"
  defp kind(_map), do: "map"

  @spec refuse({[String.t()], non_neg_integer(), Protocol.format()}, String.t()) :: no_return()
  defp refuse({path, _depth, _format}, why) do
    path = path |> Enum.reverse() |> Enum.join()
    raise Error.new(:not_encodable, "#{shortened(path)}: #{why}", %{"path" => shortened(path)})
  end

  # Of a path that is very deep, both ends.
  defp shortened(path) when byte_size(path) <= 400, do: path

  defp shortened(path) do
    String.slice(path, 0, 150) <> "…" <> String.slice(path, -150, 150)
  end
end
