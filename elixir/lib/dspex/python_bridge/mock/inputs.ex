defmodule DSPex.PythonBridge.Mock.Inputs do
  @moduledoc """
  Checks the inputs of a run by the types of its signature, with the errors of a worker.
  """

  alias DSPex.PythonBridge.Mock.Args

  @truths ~w(true false yes no y n t f on off 1 0)
  @uuid ~r/\A(?:urn:uuid:)?\{?[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}\}?\z/i
  @number ~r/\A\s*[+-]?(?:\d+(?:_\d+)*\.?\d*|\.\d+)(?:e[+-]?\d+)?\s*\z/i
  @whole ~r/\A\s*[+-]?\d+(?:_\d+)*(?:\.0*)?\s*\z/
  # As Python writes the types of a union in the path of an error.
  @tags %{
    string: "constrained-str",
    integer: "int",
    float: "float",
    boolean: "bool",
    decimal: "decimal",
    uuid: "uuid",
    null: "none",
    any: "any"
  }

  @doc """
  Raises `DSPex.PythonBridge.Error` for an undeclared, missing or wrong input. `owner` is what errors
  say declares them.
  """
  @spec check!([map()], map(), String.t(), String.t()) :: :ok
  def check!(fields, inputs, owner \\ "the signature", path \\ "args.inputs") do
    declared = Enum.map(fields, & &1.name)
    unknown = for {name, _} <- inputs, name not in declared, do: name

    missing =
      for field <- fields,
          not is_map_key(inputs, field.name),
          field[:default] == nil,
          problem(nil, field.type, "") != nil,
          do: field.name

    if unknown != [], do: raise(undeclared(unknown, declared, owner, path))

    if missing != [] do
      path = "#{path}.#{hd(missing)}"
      message = "inputs missing: #{Enum.join(missing, ", ")}"
      raise Args.invalid(path, message, %{"missing" => missing})
    end

    for field <- fields, field[:default] == nil or is_map_key(inputs, field.name) do
      check_value!(inputs[field.name], field, "#{path}.#{field.name}")
    end

    :ok
  end

  @doc "Raises `DSPex.PythonBridge.Error` for a value that is not of the type of a field."
  @spec check_value!(term(), map(), String.t()) :: :ok
  def check_value!(value, %{type: type, type_name: type_name}, path) do
    with {path, reason} <- problem(value, type, path) do
      message = "#{path}: expected #{type_name}: #{reason}"
      raise Args.invalid(path, message, %{"expected" => type_name})
    end

    :ok
  end

  defp undeclared([first | _] = unknown, declared, owner, path) do
    listed = if declared == [], do: "none", else: Enum.join(declared, ", ")
    names = Enum.join(unknown, ", ")
    message = "inputs not declared by #{owner}: #{names}; declared: #{listed}"
    details = %{"unknown" => unknown, "declared" => declared}
    Args.invalid("#{path}.#{first}", message, details)
  end

  @doc "Returns the path and the reason of the first part that is not of the type, or `nil`."
  @spec problem(term(), term(), String.t()) :: {String.t(), String.t()} | nil
  def problem(_value, :any, _path), do: nil
  def problem(nil, kind, path) when kind in [:media, :history], do: {path, "Input is missing"}
  def problem(_value, kind, _path) when kind in [:media, :history], do: nil
  def problem(nil, {:schema, _schema}, path), do: {path, "Input is missing"}
  def problem(_value, {:schema, _schema}, _path), do: nil
  def problem(value, :string, _path) when is_binary(value) or is_number(value), do: nil
  def problem(_value, :string, path), do: {path, "Input should be a valid string"}

  def problem(value, :integer, _path) when is_integer(value) or is_boolean(value), do: nil

  def problem(value, :integer, path) when is_float(value) do
    if trunc(value) != value,
      do: {path, "Input should be a valid integer, got a number with a fractional part"}
  end

  def problem(value, :integer, path) do
    numeric(value, path, @whole, "integer", "an integer")
  end

  def problem(value, :float, _path) when is_number(value) or is_boolean(value), do: nil
  def problem(value, :float, path), do: numeric(value, path, @number, "number", "a number")

  def problem(value, :boolean, _path) when is_boolean(value) or value in [0, 1], do: nil

  def problem(value, :boolean, path) when is_binary(value) or is_number(value) do
    unless is_binary(value) and String.downcase(value) in @truths,
      do: {path, "Input should be a valid boolean, unable to interpret input"}
  end

  def problem(_value, :boolean, path), do: {path, "Input should be a valid boolean"}

  def problem(value, :decimal, _path) when is_number(value), do: nil

  def problem(value, :decimal, path) when is_binary(value) do
    unless value =~ @number, do: {path, "Input should be a valid decimal"}
  end

  def problem(_value, :decimal, path) do
    {path, "Decimal input should be an integer, float, string or Decimal object"}
  end

  def problem(value, :uuid, path) do
    unless is_binary(value) and value =~ @uuid, do: {path, "Input should be a valid UUID"}
  end

  def problem(nil, :null, _path), do: nil
  def problem(_value, :null, path), do: {path, "Input should be None"}

  def problem(value, type, path) when type in [:date, :time, :datetime] do
    unless is_binary(value) and moment?(value, type) do
      {path, "Value error, expected #{moment_name(type)}, not #{shown(value)}"}
    end
  end

  def problem(value, {:literal, choices}, path) do
    unless Enum.any?(choices, &(&1 === value)) do
      {path, "Input should be #{either(Enum.map(choices, &shown/1))}"}
    end
  end

  def problem(list, {:list, type}, path) when is_list(list) do
    list
    |> Enum.with_index()
    |> Enum.find_value(fn {value, index} -> problem(value, type, "#{path}[#{index}]") end)
  end

  def problem(tuple, {:list, _} = type, path) when is_tuple(tuple),
    do: problem(Tuple.to_list(tuple), type, path)

  def problem(_value, {:list, _}, path), do: {path, "Input should be a valid list"}
  def problem([], {:dict, _, _}, _path), do: nil

  def problem(map, {:dict, key_type, type}, path) when is_map(map) do
    Enum.find_value(map, fn {key, value} ->
      with {_, reason} <- problem(key, key_type, path) do
        {"#{path}.#{key}.[key]", reason}
      else
        nil -> problem(value, type, "#{path}.#{key}")
      end
    end)
  end

  def problem(_value, {:dict, _, _}, path), do: {path, "Input should be a valid dictionary"}

  # Null is a member that has no error of its own where there is only one other.
  def problem(value, {:union, types}, path) do
    if Enum.all?(types, &problem(value, &1, path)) do
      case types -- [:null] do
        [type] -> problem(value, type, path)
        [type | _] -> problem(value, type, "#{path}.#{tag(type)}")
      end
    end
  end

  defp numeric(value, path, form, name, article) when is_binary(value) do
    unless value =~ form,
      do: {path, "Input should be a valid #{name}, unable to parse string as #{article}"}
  end

  defp numeric(_value, path, _form, name, _article), do: {path, "Input should be a valid #{name}"}

  defp moment?(text, :date), do: match?({:ok, _}, Date.from_iso8601(text)) or midnight?(text)

  defp moment?(text, :time) do
    time = if text =~ ~r/\A\d\d:\d\d\z/, do: text <> ":00", else: text

    match?({:ok, _}, Time.from_iso8601(time)) or
      time =~ ~r/\A\d\d:\d\d(:\d\d)?(Z|[+-]\d\d:\d\d)\z/
  end

  defp moment?(text, :datetime) do
    match?({:ok, _}, NaiveDateTime.from_iso8601(with_seconds(text))) or
      match?({:ok, _}, Date.from_iso8601(text))
  end

  # A date and time without a time is a date.
  defp midnight?(text), do: text =~ ~r/\A\d{4}-\d\d-\d\d[T ]00:00(:00)?\z/

  defp with_seconds(text) do
    Regex.replace(~r/\A(\d{4}-\d\d-\d\d[T ]\d\d:\d\d)(?=\z|Z|[+-])/, text, "\\1:00")
  end

  defp moment_name(:date), do: "a date"
  defp moment_name(:time), do: "a time"
  defp moment_name(:datetime), do: "a date and time"

  defp tag({:list, _}), do: "list"
  defp tag({:dict, _, _}), do: "dict"
  defp tag(type) when is_map_key(@tags, type), do: @tags[type]
  defp tag(type), do: inspect(type)

  defp either([one]), do: one

  defp either(choices),
    do: Enum.join(Enum.drop(choices, -1), ", ") <> " or " <> List.last(choices)

  # As Python shows it.
  defp shown(nil), do: "None"
  defp shown(true), do: "True"
  defp shown(false), do: "False"
  defp shown(text) when is_binary(text), do: "'#{text}'"
  defp shown(number) when is_number(number), do: to_string(number)
  defp shown(list) when is_list(list), do: "a list"
  defp shown(_map), do: "a dict"
end
