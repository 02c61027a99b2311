defmodule DSPex.PythonBridge.Mock.Signatures do
  @moduledoc """
  Checks signatures as a worker does. A checked one has `:inputs` and `:outputs`, each a list of
  fields with `:name`, `:type` (see `DSPex.PythonBridge.Mock.Types`; `{:schema, schema}` for a JSON
  Schema, by which a mock checks nothing), `:type_name`, `:description`, `:constraints` (not checked
  either) and `:default`, `{:ok, value}` or `nil`.
  """

  alias DSPex.PythonBridge.Mock.{Args, Types}

  @field %{
    "type" => {:nullable, :string},
    "description" => {:nullable, :string},
    "json_schema" => {:nullable, {:either, [:boolean, {:map, :any}]}},
    "constraints" => {:nullable, {:map, :any}},
    "default" => :any,
    "prefix" => {:nullable, :string}
  }
  @fields {:required,
           {:either_form, {:list, {:struct, Map.put(@field, "name", {:required, :string})}},
            {:map, {:struct, @field}}}}
  @signature {:struct,
              %{
                "inputs" => @fields,
                "outputs" => @fields,
                "name" => {:nullable, :string},
                "description" => {:nullable, :string},
                "module" => :ignored,
                "metadata" => :ignored
              }}
  @most_fields 256

  @doc "Returns the checked signature, or raises `DSPex.PythonBridge.Error`."
  @spec parse!(term(), String.t()) :: map()
  def parse!(signature, path \\ "args.signature") do
    signature = Args.checked!(signature, @signature, path)
    inputs = fields!(signature["inputs"], "#{path}.inputs", true)
    outputs = fields!(signature["outputs"], "#{path}.outputs", false)

    if outputs == [] do
      path = "#{path}.outputs"
      raise Args.invalid(path, "#{path}: at least one output is needed")
    end

    %{
      name: signature["name"] || "Signature",
      description: signature["description"] || "",
      inputs: inputs,
      outputs: outputs
    }
  end

  defp fields!(fields, path, inputs?) do
    if Enum.count(fields) > @most_fields do
      raise Args.invalid(path, "#{path}: more than #{@most_fields} fields")
    end

    {fields, _names} =
      fields
      |> named(path)
      |> Enum.map_reduce([], fn {name, at, field}, names ->
        if String.trim(name) == "" or name in names do
          reason = if name in names, do: "second field '#{name}'", else: "a field needs a name"
          raise Args.invalid(at, "#{at}: #{reason}")
        end

        {field!(name, at, field, inputs?), [name | names]}
      end)

    fields
  end

  defp default(%{"default" => value}), do: {:ok, value}
  defp default(_schema), do: nil

  defp named(fields, path) when is_list(fields) do
    for {field, i} <- Enum.with_index(fields), do: {field["name"], "#{path}[#{i}]", field}
  end

  defp named(fields, path), do: for({name, field} <- fields, do: {name, "#{path}.#{name}", field})

  defp field!(name, path, field, input?) do
    field = if field == [], do: %{}, else: field
    type_name = if field["type"] in [nil, ""], do: "string", else: field["type"]

    case Types.parse(type_name) do
      {:ok, type} when not input? and type in [:media, :history, {:list, :media}] ->
        line = "#{path}.type: only inputs can have this type: models write text"
        raise Args.invalid("#{path}.type", line)

      {:ok, type} ->
        schema = field["json_schema"]

        %{
          name: name,
          type: if(is_map(schema), do: {:schema, schema}, else: type),
          type_name: type_name,
          description: field["description"] || "",
          constraints: field["constraints"] || %{},
          default:
            if(is_map_key(field, "default"), do: {:ok, field["default"]}, else: default(schema))
        }

      {:error, reason} ->
        path = "#{path}.type"
        raise Args.invalid(path, "#{path}: #{reason}", %{"expected" => "a type name"})
    end
  end
end
