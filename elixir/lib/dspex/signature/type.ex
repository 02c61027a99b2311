defmodule DSPex.Signature.Type do
  @moduledoc """
  Types of the fields of a `DSPex.Signature`: as a worker's type names, or, where those do not suffice, as
  JSON Schema.
  """

  @type t ::
          atom()
          | String.t()
          | {:list, t()}
          | {:dict, t(), t()}
          | {:optional, t()}
          | {:union, [t()]}
          | {:enum, [String.t()]}
          | {:object, keyword(t() | {t(), keyword()}) | map()}
          | %{optional(String.t()) => term()}

  # By the option of a field.
  @keywords %{
    minimum: "minimum",
    maximum: "maximum",
    above: "exclusiveMinimum",
    below: "exclusiveMaximum",
    multiple_of: "multipleOf",
    min_length: "minLength",
    max_length: "maxLength",
    pattern: "pattern",
    format: "format",
    min_items: "minItems",
    max_items: "maxItems",
    unique_items: "uniqueItems"
  }
  @plain %{
    "any" => %{},
    "bool" => %{"type" => "boolean"},
    "boolean" => %{"type" => "boolean"},
    "date" => %{"type" => "string", "format" => "date"},
    "datetime" => %{"type" => "string", "format" => "date-time"},
    "decimal" => %{"type" => "string", "format" => "decimal"},
    "float" => %{"type" => "number"},
    "int" => %{"type" => "integer"},
    "integer" => %{"type" => "integer"},
    "list" => %{"type" => "array"},
    "map" => %{"type" => "object"},
    "null" => %{"type" => "null"},
    "number" => %{"type" => "number"},
    "str" => %{"type" => "string"},
    "string" => %{"type" => "string"},
    "text" => %{"type" => "string"},
    "time" => %{"type" => "string", "format" => "time"},
    "uuid" => %{"type" => "string", "format" => "uuid"}
  }

  @doc "Returns the options of a field that are constraints on its values."
  @spec constraints() :: [atom()]
  def constraints, do: Map.keys(@keywords)

  @doc """
  Returns the entries of a field for its type: `"type"`, or `"json_schema"` for an object, a JSON Schema
  and a type with constraints. Raises `ArgumentError` for what is no type.
  """
  @spec entries(t(), keyword()) :: %{String.t() => term()}
  def entries(type, constraints \\ []) do
    if constraints == [] and named?(type),
      do: %{"type" => name(type)},
      else: %{"json_schema" => schema(type, constraints)}
  end

  defp named?({:list, type}), do: named?(type)
  defp named?({:optional, type}), do: named?(type)
  defp named?({:dict, _key, type}), do: named?(type)
  defp named?({:union, types}) when is_list(types), do: Enum.all?(types, &named?/1)
  defp named?({:object, _fields}), do: false
  defp named?(schema) when is_map(schema), do: false
  defp named?(_plain), do: true

  defp name(type) when is_binary(type) or (is_atom(type) and type not in [nil, true, false]),
    do: to_string(type)

  defp name({:list, type}), do: "list<#{name(type)}>"
  defp name({:optional, type}), do: "optional<#{name(type)}>"
  defp name({:dict, key, value}), do: "dict<#{name(key)}, #{name(value)}>"

  defp name({:union, types}) when is_list(types),
    do: "union<#{Enum.map_join(types, "|", &name/1)}>"

  defp name({:enum, values}) when is_list(values),
    do: "enum<#{Enum.map_join(values, "|", &choice/1)}>"

  defp name(other), do: refuse(other)

  # Quoted. The worker takes a backslash before a quote for an escape.
  defp choice(value) do
    text = to_string(value)

    if text =~ ~r/\\(['"]|\z)/ do
      raise ArgumentError, "#{inspect(text)} has a backslash before a quote or at its end"
    end

    ~s("#{String.replace(text, ~s("), ~S(\"))}")
  end

  defp schema({:optional, type}, constraints),
    do: %{"anyOf" => [schema(type, constraints), %{"type" => "null"}]}

  defp schema(type, constraints) do
    Enum.reduce(constraints, schema(type), fn {option, value}, schema ->
      Map.put(schema, @keywords[option], constraint(value))
    end)
  end

  defp constraint(%Regex{source: source}), do: source
  defp constraint(value), do: value

  defp schema(schema) when is_map(schema) and not is_struct(schema), do: schema
  defp schema({:list, type}), do: %{"type" => "array", "items" => schema(type)}
  defp schema({:optional, _} = type), do: schema(type, [])

  defp schema({:dict, _key, type}),
    do: %{"type" => "object", "additionalProperties" => schema(type)}

  defp schema({:union, types}) when is_list(types), do: %{"anyOf" => Enum.map(types, &schema/1)}

  defp schema({:enum, values}) when is_list(values),
    do: %{"enum" => Enum.map(values, &to_string/1)}

  defp schema({:object, fields}) when is_list(fields) or is_map(fields) do
    fields = for {name, field} <- fields, do: {to_string(name), split(field)}
    properties = for {name, {type, options}} <- fields, do: {name, member(type, options)}
    required = for {name, {type, options}} <- fields, required?(type, options), do: name

    %{
      "type" => "object",
      "properties" => Map.new(properties),
      "required" => required,
      "additionalProperties" => false
    }
  end

  defp schema(plain) when is_atom(plain) or is_binary(plain) do
    @plain[to_string(plain)] ||
      raise ArgumentError,
            "#{inspect(plain)} has no JSON Schema, so it cannot be part of an object, nor have constraints"
  end

  defp schema(other), do: refuse(other)

  defp member(type, options) do
    {described, constraints} = Keyword.split(options, [:description, :default])

    for {key, value} <- described, into: schema(type, checked!(constraints)) do
      {Atom.to_string(key), value}
    end
  end

  defp required?({:optional, _type}, _options), do: false
  defp required?(_type, options), do: not Keyword.has_key?(options, :default)

  @doc """
  Splits what is given for a field into its type and its options: `type`, `{type, description}` or
  `{type, options}`.
  """
  @spec split(term()) :: {t(), keyword()}
  def split({kind, _} = type) when kind in [:list, :optional, :union, :enum, :object],
    do: {type, []}

  def split({type, description}) when is_binary(description),
    do: {type, [description: description]}

  def split({type, options}) when is_list(options), do: {type, options}
  def split(type), do: {type, []}

  @doc "Returns options that are constraints. Raises `ArgumentError` for others."
  @spec checked!(keyword()) :: keyword()
  def checked!(options), do: Keyword.validate!(options, constraints())

  @spec refuse(term()) :: no_return()
  defp refuse(other) do
    raise ArgumentError,
          "#{inspect(other)} is not a field type; use an atom, a string, {:list, type}, " <>
            "{:dict, key, value}, {:optional, type}, {:union, types}, {:enum, strings}, " <>
            "{:object, fields} or a JSON Schema as a map"
  end
end
