defmodule DSPex.Tool do
  @moduledoc """
  An Elixir function that a program of type `react` may call.

    * `name` - the name that the model uses, a string
    * `description` - a description for the model
    * `args` - the JSON Schema of each argument, by name
    * `run` - a function of one argument, the map of arguments with string keys. Its result is
      sent to the model. The worker checks the arguments against `args` before the call

  In an application, use a capture, `&Module.function/1`, which always calls the current code. A
  `fn` belongs to the version of the module that created it, and fails after that module has been
  recompiled twice.

  If a tool raises, the stacktrace is logged and the message is sent to the model. Structs in a
  result are sent as `DSPex.Encodable` defines.
  """

  @enforce_keys [:name, :description, :args, :run]
  defstruct @enforce_keys

  @type t :: %__MODULE__{
          name: String.t(),
          description: String.t(),
          args: %{optional(String.t()) => map()},
          run: (map() -> term())
        }

  @types %{
    string: "string",
    integer: "integer",
    float: "number",
    number: "number",
    boolean: "boolean",
    list: "array",
    map: "object"
  }

  @doc """
  Returns a tool. An argument is a type
  (#{Enum.map_join(Map.keys(@types), ", ", &"`#{inspect(&1)}`")}), a list of a type
  (`{:list, :string}`), or its JSON Schema as a map; an argument whose schema has a `default` is
  optional.

      iex> tool = DSPex.Tool.new(:temperature, "The temperature in a city.", [city: :string],
      ...>   fn %{"city" => city} -> "It is 21 degrees in " <> city end)
      iex> {tool.name, tool.args}
      {"temperature", %{"city" => %{"type" => "string"}}}
      iex> tool.run.(%{"city" => "Graz"})
      "It is 21 degrees in Graz"
  """
  @spec new(atom() | String.t(), String.t(), keyword() | map(), (map() -> term())) :: t()
  def new(name, description, args, run) when is_function(run, 1) do
    %__MODULE__{
      name: to_string(name),
      description: description,
      args: Map.new(args, fn {name, type} -> {to_string(name), schema(type)} end),
      run: run
    }
  end

  defp schema(%{} = schema), do: schema
  defp schema({:list, type}), do: %{"type" => "array", "items" => schema(type)}

  defp schema(type) do
    case @types do
      %{^type => name} -> %{"type" => name}
      _ -> raise ArgumentError, "#{inspect(type)} is not an argument type; known: #{known()}"
    end
  end

  defp known do
    Enum.map_join(Map.keys(@types), ", ", &inspect/1) <> ", {:list, type}, a JSON Schema as a map"
  end
end
