defmodule DSPex.PythonBridge.Mock.Args do
  @moduledoc """
  Checks the args of a request by a declaration of their types, with the errors of a worker.

  A type is `:any`, `:string`, `:integer`, `:float`, `:boolean`, `{:whole, least, most}`,
  `{:one_of, strings}`, `{:list, type}`, `{:map, type}`, `{:either, types}`, `{:nullable, type}`,
  `{:either_form, list, map}`, `{:text_or_map, text, map}`, or `{:struct, fields}`, whose keys are names and whose values are
  `type`, `{:required, type}` or `:ignored`. `{:open, fields}` is a struct that ignores other keys.
  """

  alias DSPex.PythonBridge.Error

  @type type :: term()

  # The least ratio of two names for one to be suggested in place of the other.
  @similar 0.6
  # The most unknown maps that one error lists.
  @most_listed 3

  @doc """
  Returns the args: an empty map for `nil` and for an empty list, which is how a keyword list
  without elements is sent. Raises `DSPex.PythonBridge.Error` if they do not match the type.
  """
  @spec checked!(term(), type(), String.t()) :: map()
  def checked!(args, type, path \\ "args")
  def checked!(empty, type, path) when empty in [nil, []], do: checked!(%{}, type, path)

  def checked!(args, type, path) do
    check!(args, type, path)
    args
  rescue
    error in Error ->
      case unknown(args, type, path) do
        [] -> reraise error, __STACKTRACE__
        found -> raise unknown_error(found)
      end
  end

  @doc "Returns an `:invalid_args` error about a path of the args."
  @spec invalid(String.t(), String.t(), map()) :: Error.t()
  def invalid(path, message, details \\ %{}) do
    Error.new(:invalid_args, message, Map.put(details, "path", path))
  end

  defp check!(_value, :any, _path), do: :ok
  defp check!(_value, :ignored, _path), do: :ok
  defp check!(nil, {:nullable, _type}, _path), do: :ok
  defp check!(value, {:required, type}, path), do: check!(value, type, path)

  defp check!(value, {:nullable, type}, path) do
    if matches?(value, type),
      do: check!(value, type, path),
      else: mismatch(path, name({:nullable, type}), value)
  end

  defp check!(value, {:either_form, list, map} = type, path) do
    matches?(value, type) || mismatch(path, name(type), value)
    check!(value, if(is_list(value), do: list, else: map), path)
  end

  defp check!(value, {:text_or_map, text, map} = type, path) do
    matches?(value, type) || mismatch(path, name(type), value)
    check!(value, if(is_binary(value), do: text, else: map), path)
  end

  defp check!(value, type, path) do
    matches?(value, type) || mismatch(path, name(type), value)
    check_inside!(value, type, path)
  end

  defp check_inside!(value, {:whole, least, _most}, path) when value < least,
    do: raise(invalid(path, "#{path}: Expected `int` >= #{least}", %{"expected" => "int"}))

  defp check_inside!(value, {:whole, _least, most}, path) when value > most,
    do: raise(invalid(path, "#{path}: Expected `int` <= #{most}", %{"expected" => "int"}))

  defp check_inside!(value, {:one_of, choices}, path) do
    value in choices || raise invalid(path, "#{path}: Invalid enum value '#{value}'")
  end

  defp check_inside!(list, {:list, type}, path) do
    for {value, index} <- Enum.with_index(list), do: check!(value, type, "#{path}[#{index}]")
  end

  defp check_inside!(map, {:map, type}, path) do
    for {_key, value} <- as_map(map), do: check!(value, type, "#{path}[...]")
  end

  defp check_inside!(map, {:open, fields}, path), do: check_fields!(as_map(map), fields, path)

  defp check_inside!(map, {:struct, fields}, path) do
    check_fields!(as_map(map), fields, path)

    Enum.all?(Map.keys(as_map(map)), &is_map_key(fields, &1)) ||
      raise unknown_error(unknown(map, {:struct, fields}, path))
  end

  defp check_inside!(_value, _type, _path), do: :ok

  defp check_fields!(map, fields, path) do
    for {key, value} <- map, type = fields[key], do: check!(value, type, "#{path}.#{key}")

    for {key, {:required, _}} <- fields, not is_map_key(map, key) do
      path = "#{path}.#{key}"
      raise invalid(path, "#{path}: Object missing required field `#{key}`")
    end
  end

  # An empty list is accepted as an empty map.
  defp as_map([]), do: %{}
  defp as_map(map), do: map

  defp matches?(_value, :any), do: true
  defp matches?(value, :string), do: is_binary(value)
  defp matches?(value, :integer), do: is_integer(value)
  defp matches?(value, {:whole, _, _}), do: is_integer(value)
  defp matches?(value, :float), do: is_number(value)
  defp matches?(value, :boolean), do: is_boolean(value)
  defp matches?(value, {:one_of, _}), do: is_binary(value)
  defp matches?(value, {:list, _}), do: is_list(value)
  defp matches?(value, {:either, types}), do: Enum.any?(types, &matches?(value, &1))
  defp matches?(value, {:either_form, _, _}), do: is_list(value) or is_map(value)
  defp matches?(value, {:text_or_map, _, _}), do: is_binary(value) or is_map(value) or value == []
  defp matches?(value, {:nullable, type}), do: value == nil or matches?(value, type)
  defp matches?(value, _map), do: is_map(value) or value == []

  defp name(:string), do: "str"
  defp name({:one_of, _}), do: "str"
  defp name(:integer), do: "int"
  defp name({:whole, _, _}), do: "int"
  defp name(:float), do: "float"
  defp name(:boolean), do: "bool"
  defp name({:list, _}), do: "array"
  defp name({:either, types}), do: Enum.map_join(types, " | ", &name/1)
  defp name({:either_form, _, _}), do: "object | array"
  defp name({:text_or_map, _, _}), do: "str | object"
  defp name({:nullable, type}), do: name(type) <> " | null"
  defp name(_map), do: "object"

  defp mismatch(path, expected, value) do
    message = "#{path}: Expected `#{expected}`, got `#{kind(value)}`"
    raise invalid(path, message, %{"expected" => expected})
  end

  defp kind(nil), do: "null"
  defp kind(value) when is_boolean(value), do: "bool"
  defp kind(value) when is_binary(value), do: "str"
  defp kind(value) when is_integer(value), do: "int"
  defp kind(value) when is_float(value), do: "float"
  defp kind(value) when is_map(value), do: "object"
  defp kind(_list), do: "array"

  # Returns {path, unknown names, known names} of each map with unknown keys, outer ones first.
  defp unknown(value, {kind, type}, path) when kind in [:required, :nullable],
    do: unknown(value, type, path)

  defp unknown(value, {:either_form, list, map}, path),
    do: unknown(value, if(is_list(value), do: list, else: map), path)

  defp unknown(list, {:list, type}, path) when is_list(list) do
    Enum.flat_map(Enum.with_index(list), fn {value, i} ->
      unknown(value, type, "#{path}[#{i}]")
    end)
  end

  defp unknown(map, {:map, type}, path) when is_map(map) do
    Enum.flat_map(map, fn {key, value} -> unknown(value, type, "#{path}.#{key}") end)
  end

  defp unknown(map, {kind, fields}, path) when kind in [:struct, :open] and is_map(map) do
    inside =
      for {key, value} <- map,
          type = fields[key],
          found <- unknown(value, type, "#{path}.#{key}"),
          do: found

    names = for {key, _} <- map, not is_map_key(fields, key), do: key
    known = for {key, type} <- fields, type != :ignored, do: key
    if names == [] or kind == :open, do: inside, else: [{path, names, Enum.sort(known)} | inside]
  end

  defp unknown(_value, _type, _path), do: []

  defp unknown_error([{path, [first | _] = names, known} | _] = found) do
    message = found |> Enum.take(@most_listed) |> Enum.map_join("; ", &describe/1)
    invalid("#{path}.#{first}", message, %{"unknown" => names, "known" => known})
  end

  defp describe({path, names, known}) do
    named = Enum.map_join(names, ", ", &suggested(&1, known))
    listed = if known == [], do: "none", else: Enum.join(known, ", ")
    "#{path}: unknown: #{named}; known: #{listed}"
  end

  defp suggested(name, known) do
    ratio = &similarity(name, &1)

    case known |> Enum.filter(&(ratio.(&1) >= @similar)) |> Enum.max_by(ratio, fn -> nil end) do
      nil -> name
      near -> "#{name} (did you mean #{near}?)"
    end
  end

  # The ratio of Python's difflib: twice the matching characters, divided by all characters.
  defp similarity(one, other) do
    {one, other} = {String.graphemes(one), String.graphemes(other)}
    2 * matching(one, other) / max(length(one) + length(other), 1)
  end

  defp matching([], _), do: 0
  defp matching(_, []), do: 0

  defp matching(one, other) do
    case longest_block(one, other) do
      {0, _, _} ->
        0

      {size, at, other_at} ->
        size + matching(Enum.take(one, at), Enum.take(other, other_at)) +
          matching(Enum.drop(one, at + size), Enum.drop(other, other_at + size))
    end
  end

  defp longest_block(one, other) do
    for(
      i <- 0..(length(one) - 1),
      j <- 0..(length(other) - 1),
      do: {common(Enum.drop(one, i), Enum.drop(other, j)), i, j}
    )
    |> Enum.max_by(fn {size, i, j} -> {size, -i, -j} end)
  end

  defp common([same | one], [same | other]), do: 1 + common(one, other)
  defp common(_, _), do: 0
end
