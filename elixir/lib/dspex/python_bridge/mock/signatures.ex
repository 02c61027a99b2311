defmodule DSPex.PythonBridge.Mock.Signatures do
  @moduledoc """
  Checks signatures as a worker does. A checked one has `:inputs` and `:outputs`, each a list of
  fields with `:name`, `:type` (see `DSPex.PythonBridge.Mock.Types`), `:type_name`, `:description`.
  """

  alias DSPex.PythonBridge.Mock.{Args, Types}

  @field %{
    "type" => {:nullable, :string},
    "description" => {:nullable, :string},
    "constraints" => :ignored
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
    inputs = fields!(signature["inputs"], "#{path}.inputs")
    outputs = fields!(signature["outputs"], "#{path}.outputs")

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

  defp fields!(fields, path) do
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

        {field!(name, at, field), [name | names]}
      end)

    fields
  end

  defp named(fields, path) when is_list(fields) do
    for {field, i} <- Enum.with_index(fields), do: {field["name"], "#{path}[#{i}]", field}
  end

  defp named(fields, path), do: for({name, field} <- fields, do: {name, "#{path}.#{name}", field})

  defp field!(name, path, field) do
    field = if field == [], do: %{}, else: field
    type_name = if field["type"] in [nil, ""], do: "string", else: field["type"]

    case Types.parse(type_name) do
      {:ok, type} ->
        %{
          name: name,
          type: type,
          type_name: type_name,
          description: field["description"] || ""
        }

      {:error, reason} ->
        path = "#{path}.type"
        raise Args.invalid(path, "#{path}: #{reason}", %{"expected" => "a type name"})
    end
  end
end
