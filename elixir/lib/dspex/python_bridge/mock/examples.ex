defmodule DSPex.PythonBridge.Mock.Examples do
  @moduledoc """
  Checks examples, of which demos, devsets and trainsets consist, with the errors of a worker.

  A checked example is a map with `"inputs"` and `"outputs"`.
  """

  alias DSPex.PythonBridge.Mock.{Args, Inputs, Modules}

  @sides ["inputs", "outputs"]

  @doc """
  Returns the examples of a program. With `complete: true`, they need all outputs; with
  `alternatives: true`, an output may be a list of right ones. Raises `DSPex.PythonBridge.Error`.
  """
  @spec read!(term(), map(), String.t(), keyword()) :: [map()]
  def read!(rows, program, path, options \\ []) do
    is_list(rows) ||
      raise Args.invalid(path, "#{path}: expected a list of examples", expected("list"))

    for {row, index} <- Enum.with_index(rows) do
      example!(row, program, "#{path}[#{index}]", options)
    end
  end

  defp example!(row, program, path, options) do
    is_map(row) ||
      raise Args.invalid(path, "#{path}: expected a map with inputs and outputs", expected("map"))

    %{inputs: inputs, outputs: outputs} = program.checked
    adds = Modules.type(program.kind, program.options).adds
    extra = if adds == "reasoning", do: ["reasoning"], else: []
    {given, places} = sides!(row, inputs, outputs, extra, path)

    check_names!(
      given["inputs"],
      inputs,
      names(inputs),
      required_inputs(inputs),
      places["inputs"]
    )

    required = if options[:complete], do: names(outputs), else: []
    declared = Enum.uniq(extra ++ names(outputs))
    check_names!(given["outputs"], outputs, declared, required, places["outputs"], options)
    given
  end

  # As a map of both sides, or as one map of all fields.
  defp sides!(%{"inputs" => inputs} = row, _, _, _, path)
       when is_map(inputs) and
              (map_size(row) == 1 or
                 (map_size(row) == 2 and is_map(:erlang.map_get("outputs", row)))) do
    {Map.put_new(row, "outputs", %{}), Map.new(@sides, &{&1, "#{path}.#{&1}"})}
  end

  defp sides!(row, inputs, outputs, extra, path) do
    known = Enum.uniq(names(inputs) ++ extra ++ names(outputs))

    case Map.keys(row) -- known do
      [] ->
        {of_inputs, of_outputs} = Map.split(row, names(inputs))
        {%{"inputs" => of_inputs, "outputs" => of_outputs}, Map.new(@sides, &{&1, path})}

      [first | _] = unknown ->
        line = "fields not declared by the signature: #{Enum.join(unknown, ", ")}"
        line = "#{path}: #{line}; declared: #{Enum.join(known, ", ")}"
        raise Args.invalid("#{path}.#{first}", line, %{"unknown" => unknown, "declared" => known})
    end
  end

  defp check_names!(given, fields, declared, required, path, options \\ []) do
    kind = Enum.find(@sides, "fields", &String.ends_with?(path, "." <> &1))

    case {Map.keys(given) -- declared, required -- Map.keys(given)} do
      {[first | _] = unknown, _} ->
        line =
          "#{kind} not declared by the signature: #{Enum.join(unknown, ", ")}; declared: " <>
            if(declared == [], do: "none", else: Enum.join(declared, ", "))

        details = %{"unknown" => unknown, "declared" => declared}
        raise Args.invalid("#{path}.#{first}", line, details)

      {[], [first | _] = missing} ->
        line = "#{kind} missing: #{Enum.join(missing, ", ")}"
        raise Args.invalid("#{path}.#{first}", line, %{"missing" => missing})

      {[], []} ->
        for field <- fields, is_map_key(given, field.name) do
          check_value!(given[field.name], field, "#{path}.#{field.name}", options[:alternatives])
        end
    end
  end

  defp check_value!([_ | _] = list, field, path, true) do
    unless Enum.all?(list, &(Inputs.problem(&1, field.type, path) == nil)),
      do: Inputs.check_value!(list, field, path)
  end

  defp check_value!(value, field, path, _alternatives),
    do: Inputs.check_value!(value, field, path)

  defp required_inputs(fields) do
    for field <- fields, Inputs.problem(nil, field.type, "") != nil, do: field.name
  end

  defp names(fields), do: Enum.map(fields, & &1.name)
  defp expected(what), do: %{"expected" => what}
end
