defmodule DSPex.Signature do
  @moduledoc """
  Builds signatures in the form that a worker expects, from a line of text or from a keyword list.

  The types are `string`, `integer`, `float`, `boolean`, `list<T>`, `dict<K, V>`, `optional<T>`,
  `union<A|B>`, `enum<"a"|"b">`, `any`, `date`, `datetime`, `image`, `audio`, `file`, `history`, `code`
  and more; `docs/dspy.md` of the Python package lists them. The worker answers `:invalid_args` with the
  position of an unknown type.
  """

  alias DSPex.Signature.Type

  @type field ::
          {atom() | String.t(), Type.t() | {Type.t(), description :: String.t() | keyword()}}
  @type wire :: %{required(String.t()) => term()}

  @doc """
  Returns a signature.

  As text: inputs, `->`, outputs. The fields are separated by commas, and each is `name` or
  `name: type`.

      iex> DSPex.Signature.new("question -> answer: string, score: float")
      %{
        "inputs" => [%{"name" => "question", "type" => "string"}],
        "outputs" => [
          %{"name" => "answer", "type" => "string"},
          %{"name" => "score", "type" => "float"}
        ]
      }

  As a keyword list: `:inputs` and `:outputs`, with a type for each field, or a type and a
  description, or a type and options.

      iex> DSPex.Signature.new(
      ...>   inputs: [passages: {{:list, :string}, "where to look"}],
      ...>   outputs: [kind: {:enum, ["yes", "no"]}, counts: {:dict, :string, :integer}]
      ...> )
      %{
        "inputs" => [
          %{"name" => "passages", "type" => "list<string>", "description" => "where to look"}
        ],
        "outputs" => [
          %{"name" => "kind", "type" => ~s(enum<"yes"|"no">)},
          %{"name" => "counts", "type" => "dict<string, integer>"}
        ]
      }

  The options of a field are `:description`, `:prefix` (the words before the field in a prompt),
  `:default` (of an input that a call may leave out), and constraints on its values: `:minimum`,
  `:maximum`, `:above`, `:below`, `:multiple_of`, `:min_length`, `:max_length`, `:pattern`, `:format`,
  `:min_items`, `:max_items` and `:unique_items`.

  `{:object, fields}` is a map with the given keys, whose types have such options, too (without
  `:prefix`). A type may also be a JSON Schema, as a map.

      iex> signature = DSPex.Signature.new(
      ...>   inputs: [page: :image, language: {:string, default: "de"}],
      ...>   outputs: [
      ...>     total: {:float, minimum: 0},
      ...>     items: {{:list, {:object, name: :string, count: {:integer, minimum: 1}}}, "in order"}
      ...>   ]
      ...> )
      iex> signature["inputs"]
      [
        %{"name" => "page", "type" => "image"},
        %{"name" => "language", "type" => "string", "default" => "de"}
      ]
      iex> [total, items] = signature["outputs"]
      iex> total
      %{"name" => "total", "json_schema" => %{"type" => "number", "minimum" => 0}}
      iex> items["json_schema"]["items"]["required"]
      ["name", "count"]

  Both forms accept `:description` (the instructions to the model) and `:name`.

      iex> DSPex.Signature.new("text -> summary", description: "In one sentence.")["description"]
      "In one sentence."

  Raises `ArgumentError` with the column of a mistake in the text.

      iex> DSPex.Signature.new("question: -> answer")
      ** (ArgumentError) no type after "question:" at column 1 of "question: -> answer"
  """
  @spec new(String.t() | keyword(), keyword()) :: wire()
  def new(signature, options \\ [])

  def new(text, options) when is_binary(text) do
    case split(text, "->") do
      [{inputs, _}, {outputs, column}] ->
        wire(text_fields(inputs, 1, text), text_fields(outputs, column, text), options)

      parts ->
        raise ArgumentError,
              "a signature needs one ->, not #{length(parts) - 1}: #{inspect(text)}"
    end
  end

  def new(keywords, options) when is_list(keywords) do
    options = Keyword.merge(keywords, options)
    {inputs, options} = Keyword.pop(options, :inputs, [])
    {outputs, options} = Keyword.pop(options, :outputs, [])
    wire(Enum.map(inputs, &field/1), Enum.map(outputs, &field/1), options)
  end

  defp wire(_inputs, [], _options), do: raise(ArgumentError, "a signature needs an output")

  defp wire(inputs, outputs, options) do
    for {option, value} <- Keyword.validate!(options, [:description, :name]),
        value != nil,
        into: %{"inputs" => inputs, "outputs" => outputs} do
      {Atom.to_string(option), to_string(value)}
    end
  end

  defp field({name, given}) do
    {type, options} = Type.split(given)
    {own, constraints} = Keyword.split(options, [:description, :prefix, :default])

    for {option, value} <- own,
        into: Map.put(Type.entries(type, Type.checked!(constraints)), "name", to_string(name)) do
      {Atom.to_string(option), value}
    end
  end

  # Text is parsed into fields with the column at which each begins, for the error messages.

  defp text_fields(part, column, text) do
    if String.trim(part) == "" do
      []
    else
      for {field, offset} <- split(part, ","), do: text_field(field, column + offset - 1, text)
    end
  end

  defp text_field(field, column, text) do
    column = column + String.length(field) - String.length(String.trim_leading(field))

    case field |> String.trim() |> String.split(":", parts: 2) |> Enum.map(&String.trim/1) do
      ["" | _] -> raise ArgumentError, "no name at column #{column} of #{inspect(text)}"
      [name] -> %{"name" => name, "type" => "string"}
      [name, ""] -> no_type(name, column, text)
      [name, type] -> %{"name" => name, "type" => type}
    end
  end

  defp no_type(name, column, text) do
    raise ArgumentError, "no type after \"#{name}:\" at column #{column} of #{inspect(text)}"
  end

  # Splits at separators outside of brackets and quotes. Returns each part with its column.
  defp split(text, separator), do: split(text, separator, 1, [], {"", 1}, text)

  defp split("", _separator, _column, [], {part, begin}, _text), do: [{part, begin}]

  defp split("", _separator, _column, [{open, at} | _], _part, text) do
    raise ArgumentError, "the #{open} at column #{at} of #{inspect(text)} is not closed"
  end

  defp split(rest, separator, column, open, {part, begin}, text) do
    size = byte_size(separator)

    case {rest, open} do
      {<<^separator::binary-size(size), rest::binary>>, []} ->
        [{part, begin} | split(rest, separator, column + size, [], {"", column + size}, text)]

      {<<?\\, char::utf8, rest::binary>>, [{"\"", _} | _]} ->
        part = <<part::binary, ?\\, char::utf8>>
        split(rest, separator, column + 2, open, {part, begin}, text)

      {<<?", rest::binary>>, [{"\"", _} | outer]} ->
        split(rest, separator, column + 1, outer, {part <> "\"", begin}, text)

      {<<char::utf8, rest::binary>>, [{"\"", _} | _]} ->
        split(rest, separator, column + 1, open, {<<part::binary, char::utf8>>, begin}, text)

      {<<"->", rest::binary>>, _} ->
        split(rest, separator, column + 2, open, {part <> "->", begin}, text)

      {<<char::utf8, rest::binary>>, _} ->
        open = nesting(<<char::utf8>>, column, open, text)
        split(rest, separator, column + 1, open, {<<part::binary, char::utf8>>, begin}, text)
    end
  end

  @closing %{">" => "<", "]" => "["}

  defp nesting(char, column, open, _text) when char in ["<", "[", "\""],
    do: [{char, column} | open]

  defp nesting(char, column, open, text) when is_map_key(@closing, char) do
    expected = @closing[char]

    case open do
      [{^expected, _} | outer] -> outer
      _ -> raise ArgumentError, "unmatched #{char} at column #{column} of #{inspect(text)}"
    end
  end

  defp nesting(_char, _column, open, _text), do: open
end
