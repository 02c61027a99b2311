defmodule DSPex.PythonBridge.Mock.Types do
  @moduledoc """
  Parses the names of field types, as `bridge/adapters/type_names.py` does, with the same errors.

  A parsed type is `:string`, `:integer`, `:float`, `:boolean`, `:any`, `:null`, `:date`, `:time`,
  `:datetime`, `:uuid`, `:decimal`, `:media`, `:history`, `{:list, type}`, `{:dict, key, value}`, `{:union, types}` or
  `{:literal, values}`.
  """

  @list {:list, :any}
  @dict {:dict, :string, :any}
  @plain %{
    "any" => :any,
    "array" => @list,
    "atom" => :string,
    "audio" => :media,
    "bool" => :boolean,
    "boolean" => :boolean,
    "code" => :string,
    "confidence_score" => :float,
    "date" => :date,
    "datetime" => :datetime,
    "decimal" => :decimal,
    "dict" => @dict,
    "file" => :media,
    "embedding" => {:list, :float},
    "float" => :float,
    "history" => :history,
    "image" => :media,
    "int" => :integer,
    "integer" => :integer,
    "list" => @list,
    "map" => @dict,
    "nil" => :null,
    "none" => :null,
    "nonetype" => :null,
    "null" => :null,
    "number" => :float,
    "object" => @dict,
    "probability" => :float,
    "reasoning" => :string,
    "reasoning_chain" => {:list, :string},
    "str" => :string,
    "string" => :string,
    "text" => :string,
    "time" => :time,
    "uuid" => :uuid
  }
  # How many inner types each takes; nil: one or more.
  @generic %{"array" => 1, "dict" => 2, "list" => 1, "map" => 2, "optional" => 1, "union" => nil}
  @literal ["enum", "literal"]
  @known (Map.keys(@plain) ++ Map.keys(@generic) ++ @literal) |> Enum.uniq() |> Enum.sort()
  @words %{"true" => true, "false" => false, "none" => nil, "null" => nil, "nil" => nil}
  @closing %{"<" => ">", "[" => "]"}
  @longest 1000
  @deepest 16

  @token ~r/\A\s*(?:(?<name>[A-Za-z_][\w.-]*)|(?<integer>-?\d+)(?![\w.])|(?<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?<mark>[<>\[\],|])|(?<end>\z))/su

  @doc "Returns the parsed type, or the reason why there is no such type."
  @spec parse(String.t()) :: {:ok, term()} | {:error, String.t()}
  def parse(text) do
    length = String.length(text)

    if length > @longest do
      {:error, "type name of #{length} characters, the limit is #{@longest}"}
    else
      {type, state} = type(scan(%{text: text, at: 0, token: nil, depth: 0}))
      if state.token.kind != :end, do: fail(state.token, "expected the end of the type")
      {:ok, type}
    end
  catch
    {:type, reason} -> {:error, reason}
  end

  defp type(%{depth: @deepest} = state),
    do: fail(state.token, "more than #{@deepest} nested types")

  defp type(state) do
    {members, state} = separated(%{state | depth: state.depth + 1}, &single/1, ["|"])
    {union(members), %{state | depth: state.depth - 1}}
  end

  # As Python does it: members of inner unions belong to the outer one, and each counts once.
  defp union(members) do
    flat = Enum.flat_map(members, &if(match?({:union, _}, &1), do: elem(&1, 1), else: [&1]))

    case Enum.uniq(flat) do
      [one] -> one
      types -> {:union, types}
    end
  end

  defp separated(state, parse, marks) do
    {first, state} = parse.(state)

    if state.token.kind == :mark and state.token.text in marks do
      {rest, state} = separated(scan(state), parse, marks)
      {[first | rest], state}
    else
      {[first], state}
    end
  end

  defp single(%{token: token} = state) do
    state = scan(state)
    if token.kind != :name, do: fail(token, "expected a type")
    name = token.text |> String.downcase() |> String.replace(~r/\A(?:typing|dspy)\./, "")
    if name not in @known, do: fail(token, "unknown type")

    cond do
      is_map_key(@closing, state.token.text) -> bracketed(state, token, name)
      is_map_key(@plain, name) -> {@plain[name], state}
      true -> fail(state.token, "missing inner types in <> after #{name}")
    end
  end

  defp bracketed(state, token, name) do
    if not is_map_key(@generic, name) and name not in ["code" | @literal] do
      fail(state.token, "no inner types allowed after #{name}")
    end

    closing = @closing[state.token.text]
    state = scan(state)
    {type, state} = inside(name, state, token)
    if state.token.text != closing, do: fail(state.token, "expected '#{closing}'")
    {type, scan(state)}
  end

  defp inside("code", %{token: token} = state, _token) do
    if token.kind not in [:name, :text],
      do: fail(token, "expected the name of a programming language")

    {:string, scan(state)}
  end

  defp inside(name, state, _token) when name in @literal, do: literal(state)
  defp inside(name, state, token), do: generic(state, token, name)

  defp literal(state) do
    {values, state} = separated(state, &value/1, [",", "|"])
    {{:literal, Enum.uniq(values)}, state}
  end

  defp generic(state, token, name) do
    {members, state} = separated(state, &type/1, [","])
    arity = @generic[name]
    count = length(members)

    if arity not in [nil, count],
      do: fail(token, "#{count} inner type(s) where #{name} takes #{arity}")

    {built(name, members, token), state}
  end

  defp built(name, [key, value], token) when name in ["dict", "map"] do
    if key not in [:string, :integer, :float, :boolean, :any] and not match?({:literal, _}, key) do
      fail(token, "the keys of a dict must be of a plain type")
    end

    {:dict, key, value}
  end

  defp built("optional", [type], _token), do: union([type, :null])
  defp built("union", types, _token), do: union(types)
  defp built(_list, [type], _token), do: {:list, type}

  defp value(%{token: token} = state) do
    state = scan(state)

    case token do
      %{kind: :text, text: text} ->
        {text |> String.slice(1..-2) |> String.replace(~r/\\(['"])/, "\\1"), state}

      %{kind: :integer, text: text} ->
        {String.to_integer(text), state}

      %{kind: :name, text: text} ->
        {Map.get(@words, String.downcase(text), text), state}

      _ ->
        fail(token, "expected a text, a word or an integer")
    end
  end

  # Positions are in characters, from 0.
  defp scan(%{token: %{kind: :end}} = state), do: state

  defp scan(%{text: text, at: at} = state) do
    rest = String.slice(text, at..-1)

    case Regex.named_captures(@token, rest) do
      nil ->
        trimmed = String.trim_leading(rest)
        position = String.length(text) - String.length(trimmed)
        fail(%{text: trimmed, position: position}, "not part of a type")

      found ->
        {kind, token} = Enum.find(found, {"end", ""}, fn {_, token} -> token != "" end)
        [{_, size}] = Regex.run(@token, rest, return: :index, capture: :first)
        end_at = at + String.length(binary_part(rest, 0, size))
        position = end_at - String.length(token)
        token = %{kind: String.to_existing_atom(kind), text: token, position: position}
        %{state | at: end_at, token: token}
    end
  end

  @spec fail(map(), String.t()) :: no_return()
  defp fail(token, reason) do
    part = if token.text == "", do: "the end", else: quoted(String.slice(token.text, 0, 40))
    known = Enum.join(@known, ", ")
    throw({:type, "#{reason}: #{part} at position #{token.position}; known: #{known}"})
  end

  # As Python's repr.
  defp quoted(text) do
    if String.contains?(text, "'") and not String.contains?(text, "\""),
      do: "\"#{text}\"",
      else: "'#{String.replace(text, "'", "\\'")}'"
  end
end
