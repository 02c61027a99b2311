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
  def argument(%{"const" => value}, _name), do: value
  def argument(%{"default" => value}, _name), do: value
  def argument(%{"enum" => [value | _]}, _name), do: value
  def argument(%{"examples" => [value | _]}, _name), do: value
  def argument(%{"anyOf" => [schema | _]}, name), do: argument(schema, name)
  def argument(%{"oneOf" => [schema | _]}, name), do: argument(schema, name)
  def argument(%{"allOf" => [schema | _]}, name), do: argument(schema, name)

  def argument(%{"type" => [type | _]} = schema, name),
    do: argument(%{schema | "type" => type}, name)

  def argument(%{"type" => "array"} = schema, name),
    do: List.duplicate(argument(schema["items"] || %{}, name), max(schema["minItems"] || 1, 1))

  def argument(%{"type" => "object"} = schema, _name) do
    properties = schema["properties"] || %{}

    for key <- schema["required"] || Map.keys(properties), into: %{} do
      {key, argument(properties[key] || %{}, key)}
    end
  end

  def argument(%{"type" => type} = schema, _name) when type in ["integer", "number"],
    do: schema["minimum"] || schema["maximum"] || 1

  def argument(%{"type" => "boolean"}, _name), do: true
  def argument(%{"type" => "null"}, _name), do: nil
  def argument(%{"format" => "date"}, _name), do: "2000-01-01"
  def argument(%{"format" => "date-time"}, _name), do: "2000-01-01T00:00:00Z"
  def argument(%{"format" => "time"}, _name), do: "00:00:00Z"
  def argument(%{"format" => "uuid"}, _name), do: "00000000-0000-0000-0000-000000000000"
  def argument(%{"format" => "email"}, _name), do: "mock@example.com"
  def argument(%{"format" => "uri"}, _name), do: "https://example.com"
  def argument(_schema, name), do: "mock_#{name}_0"
end
