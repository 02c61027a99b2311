defmodule DSPex.Tool do
  @moduledoc """
  An Elixir function that a program of type `react` may call.

    * `name` - a string, by which the model calls it
    * `description` - what it does, for the model
    * `args` - the JSON Schema of each argument, by name
    * `run` - a function of one argument: the map of arguments, with string keys. What it returns
      is what the model is told. The worker has looked at the arguments before

  In an application `run` is a capture, `&Module.function/1`: it calls the code of now. A `fn`
  belongs to the version of its module that made it, and fails after two recompilations of that. What
  a tool raises is logged with its stacktrace, and its message is what the model is told; what it
  returns is written as `DSPex.Encodable` says.
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
  A tool. An argument is a type (#{Enum.map_join(Map.keys(@types), ", ", &"`#{inspect(&1)}`")}), a
  list of a type (`{:list, :string}`), or its JSON Schema as a map; one whose schema has a
  `default` may be missing.

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
      _ -> raise ArgumentError, "#{inspect(type)} is no type of an argument"
    end
  end
end
