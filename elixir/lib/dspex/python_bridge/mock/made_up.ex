defmodule DSPex.PythonBridge.Mock.MadeUp do
  @moduledoc """
  Makes up values: of output fields by their types, and of arguments of tools by their JSON Schemas.
  Equal seeds give equal values.
  """

  @doc "Returns a value of a type of `DSPex.PythonBridge.Mock.Types`. The seed is below 1000."
  @spec value(term(), String.t(), 0..999) :: term()
  def value(:integer, _name, seed), do: seed
  # From 0 to 1, because it may be a probability.
  def value(:float, _name, seed), do: seed / 1000
  def value(:boolean, _name, seed), do: rem(seed, 2) == 0
  def value(:null, _name, _seed), do: nil
  def value(:date, _name, seed), do: ~D[2000-01-01] |> Date.add(seed) |> Date.to_iso8601()
  def value(:time, _name, seed), do: ~T[00:00:00] |> Time.add(seed * 60) |> Time.to_iso8601()
  def value(:datetime, name, seed), do: "2000-01-01T" <> value(:time, name, seed)
  def value(:decimal, _name, seed), do: "#{div(seed, 10)}.#{rem(seed, 10)}"

  def value(:uuid, _name, seed) do
    "00000000-0000-0000-0000-" <> String.pad_leading(to_string(seed), 12, "0")
  end

  def value({:schema, schema}, name, _seed), do: argument(schema, name)
  def value({:list, type}, name, seed), do: [value(type, name, seed)]

  def value({:dict, key, type}, name, seed),
    do: %{key_text(value(key, "key", seed)) => value(type, name, seed)}

  def value({:union, types}, name, seed), do: value(hd((types -- [:null]) ++ [:null]), name, seed)
  def value({:literal, choices}, _name, seed), do: Enum.at(choices, rem(seed, length(choices)))
  def value(_text, name, seed), do: "mock_#{name}_#{seed}"

  # As in JSON.
  defp key_text(key), do: to_string(key)

  @doc "Returns a value for an argument. It fits simple schemas; a test sets the others."
  @spec argument(map(), String.t()) :: term()
  def argument(schema, name), do: argument(schema, name, schema)

  # The root is the whole schema, to which references refer.
  defp argument(%{"$ref" => reference}, name, root) do
    key = reference |> String.split("/") |> List.last()
    argument(get_in(root, ["$defs", key]) || %{}, name, root)
  end

  defp argument(%{"const" => value}, _name, _root), do: value
  defp argument(%{"default" => value}, _name, _root), do: value
  defp argument(%{"enum" => [value | _]}, _name, _root), do: value
  defp argument(%{"examples" => [value | _]}, _name, _root), do: value
  defp argument(%{"anyOf" => [schema | _]}, name, root), do: argument(schema, name, root)
  defp argument(%{"oneOf" => [schema | _]}, name, root), do: argument(schema, name, root)
  defp argument(%{"allOf" => [schema | _]}, name, root), do: argument(schema, name, root)

  defp argument(%{"type" => [type | _]} = schema, name, root),
    do: argument(%{schema | "type" => type}, name, root)

  defp argument(%{"type" => "array"} = schema, name, root),
    do:
      List.duplicate(
        argument(schema["items"] || %{}, name, root),
        max(schema["minItems"] || 1, 1)
      )

  defp argument(%{"type" => "object"} = schema, _name, root) do
    properties = schema["properties"] || %{}

    for key <- schema["required"] || Map.keys(properties), into: %{} do
      {key, argument(properties[key] || %{}, key, root)}
    end
  end

  defp argument(%{"type" => type} = schema, _name, _root) when type in ["integer", "number"],
    do: schema["minimum"] || schema["maximum"] || 1

  defp argument(%{"type" => "boolean"}, _name, _root), do: true
  defp argument(%{"type" => "null"}, _name, _root), do: nil
  defp argument(%{"format" => "date"}, _name, _root), do: "2000-01-01"
  defp argument(%{"format" => "date-time"}, _name, _root), do: "2000-01-01T00:00:00Z"
  defp argument(%{"format" => "time"}, _name, _root), do: "00:00:00Z"
  defp argument(%{"format" => "uuid"}, _name, _root), do: "00000000-0000-0000-0000-000000000000"
  defp argument(%{"format" => "email"}, _name, _root), do: "mock@example.com"
  defp argument(%{"format" => "uri"}, _name, _root), do: "https://example.com"
  defp argument(%{"maxLength" => most}, name, _root), do: String.slice("mock_#{name}_0", 0, most)
  defp argument(_schema, name, _root), do: "mock_#{name}_0"
end
