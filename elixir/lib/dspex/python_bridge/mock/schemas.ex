defmodule DSPex.PythonBridge.Mock.Schemas do
  @moduledoc """
  The arguments of tools: checks their declaration, and the arguments of a call.

  A worker checks both by the whole of JSON Schema. A mock knows of a schema only which arguments
  there are, which of them are required, and their types.
  """

  alias DSPex.PythonBridge.Mock.Args

  @compositions ["allOf", "anyOf", "oneOf", "required"]
  @references ["$ref", "$dynamicRef", "$recursiveRef"]
  @types ["array", "boolean", "integer", "null", "number", "object", "string"]
  @longest_name 200
  @tool {:struct,
         %{
           "name" => {:required, :string},
           "description" => {:nullable, :string},
           "args" => {:nullable, {:map, :any}},
           "inputSchema" => {:nullable, {:map, :any}},
           "outputSchema" => :ignored,
           "title" => :ignored,
           "annotations" => :ignored,
           "icons" => :ignored,
           "execution" => :ignored,
           "_meta" => :ignored
         }}

  @doc "Returns the type of a tool in the args of `register_tools`."
  @spec tool_type() :: term()
  def tool_type, do: @tool

  @doc "Returns the declared tools in their order, or raises `DSPex.PythonBridge.Error`."
  @spec tools!([map()]) :: [{String.t(), map()}]
  def tools!(definitions) do
    {tools, _} =
      definitions
      |> Enum.with_index()
      |> Enum.map_reduce([], fn {definition, index}, names ->
        path = "args.tools[#{index}]"
        tool = tool!(definition, path)

        if tool.name in names,
          do: raise(Args.invalid(path, "#{path}.name: a second tool '#{tool.name}'"))

        {{tool.name, tool}, [tool.name | names]}
      end)

    tools
  end

  @doc "Returns a tool that takes any arguments."
  @spec any(String.t()) :: map()
  def any(name), do: tool!(%{"name" => name, "args" => %{"additionalProperties" => true}}, name)

  defp tool!(%{"name" => name} = definition, path) do
    if String.trim(name) == "" or String.length(name) > @longest_name do
      at = "#{path}.name"
      raise Args.invalid(at, "#{at}: a tool's name has 1 to #{@longest_name} characters")
    end

    {args, schema} = {map(definition["args"]), map(definition["inputSchema"])}

    if args != %{} and definition["inputSchema"] != nil do
      raise Args.invalid(
              path,
              "#{path}: args and inputSchema mean the same: send only one of them"
            )
    end

    at = if definition["inputSchema"], do: "#{path}.inputSchema", else: "#{path}.args"
    declared = if args == %{}, do: schema, else: args
    check!(declared, at)

    %{
      name: name,
      description: definition["description"] || "",
      args: declared,
      members: members(declared)
    }
  end

  defp map(empty) when empty in [nil, []], do: %{}
  defp map(map), do: map

  defp check!(args, path) do
    with reference when reference != nil <- outside(args) do
      allowed = "only references within the schema (#/$defs/…) are allowed"
      raise Args.invalid(path, "#{path}: a reference to '#{reference}': #{allowed}")
    end

    {properties, _required, _open} = members(args)

    for {name, schema} <- properties, not is_map(schema) and schema != [] do
      raise Args.invalid(path, "#{path}: not a JSON Schema for each argument: #{name}")
    end

    for {name, %{"type" => type}} <- properties, not type?(type) do
      shown = if is_binary(type), do: "'#{type}'", else: inspect(type)
      why = "properties.#{name}.type: #{shown} is not valid under any of the given schemas"
      raise Args.invalid(path, "#{path}: not a JSON Schema: #{why}")
    end
  end

  defp type?(types) when is_list(types), do: types != [] and Enum.all?(types, &(&1 in @types))
  defp type?(type), do: type in @types

  # Returns the first reference that leads out of the schema.
  defp outside(map) when is_map(map) do
    Enum.find_value(map, fn
      {key, "#" <> _} when key in @references -> nil
      {key, reference} when key in @references and is_binary(reference) -> reference
      {_key, value} -> outside(value)
    end)
  end

  defp outside(list) when is_list(list), do: Enum.find_value(list, &outside/1)
  defp outside(_value), do: nil

  defp members(args) do
    if object?(args) do
      properties = map(args["properties"])
      open = args["additionalProperties"] not in [nil, false]
      {properties, args["required"] || [], open}
    else
      required = for {name, schema} <- args, not match?(%{"default" => _}, schema), do: name
      {args, required, false}
    end
  end

  defp object?(%{"type" => type}) when type == "object", do: true
  defp object?(%{"type" => types}) when is_list(types), do: "object" in types

  defp object?(args) do
    is_binary(args["$ref"]) or is_boolean(args["additionalProperties"]) or
      Enum.any?(@compositions, &is_list(args[&1])) or
      (is_map(args["properties"]) and
         Enum.all?(args["properties"], fn {_, schema} -> is_map(schema) end))
  end

  @doc "Returns the problem with the arguments of a call in one line, or `nil`."
  @spec problem(map(), map()) :: String.t() | nil
  def problem(%{members: {properties, required, open}}, arguments) do
    unknown = for {name, _} <- arguments, not is_map_key(properties, name), do: name
    missing = Enum.sort(required -- Map.keys(arguments))

    cond do
      unknown != [] and not open -> "has no argument #{Enum.join(unknown, ", ")}"
      missing != [] -> "needs the argument #{Enum.join(missing, ", ")}"
      true -> Enum.find_value(arguments, &wrong(&1, properties))
    end
  end

  defp wrong({name, value}, properties) do
    types = List.wrap(properties |> Map.get(name, %{}) |> map() |> Map.get("type", []))

    if types != [] and not Enum.any?(types, &of?(value, &1)) do
      listed = Enum.map_join(types, ", ", &"'#{&1}'")
      "cannot take #{name}: #{inspect(value)} is not of type #{listed}"
    end
  end

  defp of?(value, "string"), do: is_binary(value)
  defp of?(value, "integer"), do: is_integer(value) or (is_float(value) and trunc(value) == value)
  defp of?(value, "number"), do: is_number(value)
  defp of?(value, "boolean"), do: is_boolean(value)
  defp of?(value, "null"), do: value == nil
  defp of?(value, "array"), do: is_list(value)
  defp of?(value, "object"), do: is_map(value)
  defp of?(_value, _type), do: true
end
