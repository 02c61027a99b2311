defmodule DSPex.PythonBridge.Mock.Modules do
  @moduledoc """
  The types of programs: which args of `create_program` each takes, and the checks of these, with the
  errors of a worker.

  A mock does not check whether the stages of a pipeline fit together.

  `:main` is the predictor that gets the demos, `nil` if there is none. `:adds` is an output that the
  module adds.
  """

  alias DSPex.PythonBridge.Error
  alias DSPex.PythonBridge.Mock.Args

  @tools ["tools", "max_iters", "allow_no_tools", "indexes"]
  @attempts ["base", "n", "reward", "threshold"]
  @code ~w(tools indexes max_llm_calls max_output_chars max_step_seconds)
  @bases ["predict", "chain_of_thought", "react"]
  @blank %{
    main: "self",
    takes: [],
    adds: nil,
    bases: @bases,
    needs_demos: false,
    runs_code: false
  }

  # In the order of a worker.
  @types [
    {"predict", @blank},
    {"chain_of_thought", %{@blank | main: "predict", adds: "reasoning"}},
    {"react", %{@blank | main: "extract.predict", takes: @tools, adds: "reasoning"}},
    {"react_v2", %{@blank | main: nil, takes: @tools}},
    {"best_of_n", %{@blank | main: nil, takes: @attempts}},
    {"refine", %{@blank | main: nil, takes: @attempts}},
    {"majority", %{@blank | main: nil, takes: ["base", "n", "field"]}},
    {"ensemble", %{@blank | main: nil, takes: ["base", "n", "field"]}},
    {"multi_chain_comparison", %{@blank | main: "predict", takes: ["n"], adds: "rationale"}},
    {"rlm", %{@blank | main: nil, takes: ["max_iters" | @code], runs_code: true}},
    {"flex", %{@blank | main: nil, takes: ["source" | @code], runs_code: true}},
    {"retrieve", %{@blank | main: nil, takes: ["index", "k"]}},
    {"pipeline", %{@blank | main: nil, takes: ["stages", "outputs"]}},
    {"knn",
     %{@blank | takes: ["base", "k"], bases: ["predict", "chain_of_thought"], needs_demos: true}}
  ]
  @names Enum.map(@types, &elem(&1, 0))
  @removed ["program_of_thought", "code_act"]

  # In the order in which a worker checks them.
  @options ~w(tools max_iters allow_no_tools indexes base n reward threshold field index k max_llm_calls
              max_output_chars max_step_seconds source stages outputs)

  @doc "Returns what is special to a type, which is that of the program inside where that counts."
  @spec type(String.t(), map()) :: map()
  def type(kind, options) do
    {_, outer} = List.keyfind(@types, kind, 0, {kind, @blank})

    if "base" in outer.takes do
      {_, inner} = List.keyfind(@types, options["base"] || "predict", 0)
      %{outer | main: main(outer, inner), takes: outer.takes ++ inner.takes, adds: inner.adds}
    else
      outer
    end
  end

  defp main(%{main: "self"}, inner), do: inner.main
  defp main(%{main: nil}, %{main: "self"}), do: "module"
  defp main(%{main: nil}, inner), do: "module." <> inner.main
  defp main(outer, _inner), do: outer.main

  @doc "Returns the args that only some types take."
  @spec options(map()) :: map()
  def options(args),
    do: for({key, value} <- Map.take(args, @options), value != nil, into: %{}, do: {key, value})

  defp needs_tools?(program), do: "allow_no_tools" in type(program.kind, program.options).takes

  defp has_tools?(%{tools: tools, options: options}) do
    tools != [] or options["indexes"] not in [nil, []] or options["allow_no_tools"] == true
  end

  @doc "Returns whether programs of a type call tools."
  @spec takes_tools?(map()) :: boolean()
  def takes_tools?(%{kind: "module"}), do: false
  def takes_tools?(program), do: "tools" in type(program.kind, program.options).takes

  @doc "Raises `DSPex.PythonBridge.Error` for a type that does not exist."
  @spec check_name!(String.t(), String.t()) :: :ok
  def check_name!(kind, _path) when kind in @names, do: :ok

  def check_name!(kind, path) do
    reason =
      if kind in @removed,
        do:
          "#{kind} goes away in DSPy 3.5 and is not available: use rlm, which also writes and runs code",
        else: "unknown program type '#{kind}'; known: #{Enum.join(@names, ", ")}"

    raise Args.invalid(path, "#{path}: #{reason}", %{"expected" => Enum.join(@names, " | ")})
  end

  @doc "Raises `DSPex.PythonBridge.Error` for args that programs of a type do not take."
  @spec check_options!(String.t(), map()) :: :ok
  def check_options!(kind, options) do
    %{takes: takes} = type(kind, options)

    with name when name != nil <-
           Enum.find(@options, &(is_map_key(options, &1) and &1 not in takes)) do
      takers = for {kind, type} <- @types, name in type.takes, do: kind
      path = "args.#{name}"

      raise Args.invalid(
              path,
              "#{path}: only for programs of type #{Enum.join(takers, " or ")}"
            )
    end

    :ok
  end

  @doc "Raises `:not_allowed` for a type that runs code of models, unless that is allowed."
  @spec check_allowed!(String.t(), boolean()) :: :ok
  def check_allowed!(kind, allowed?) do
    if type(kind, %{}).runs_code and not allowed? do
      raise Error.new(
              :not_allowed,
              "a program of the type #{kind} runs code that a model has written: the operator of the " <>
                "worker has not allowed that (--allow-code-execution)"
            )
    end

    :ok
  end

  @doc "Raises `DSPex.PythonBridge.Error` if demos are missing, or if programs of a type take none."
  @spec check_demos!(String.t(), map(), list()) :: :ok
  def check_demos!(kind, options, demos) do
    type = type(kind, options)

    reason =
      cond do
        type.needs_demos and demos == [] -> "#{kind} needs demos, of which it shows the nearest"
        demos != [] and type.main == nil -> "programs of type #{kind} take none"
        true -> nil
      end

    if reason, do: raise(Args.invalid("args.demos", "args.demos: #{reason}"))
    :ok
  end

  @doc "Raises `DSPex.PythonBridge.Error` if the options of a program do not fit together, or its signature."
  @spec check!(map(), String.t()) :: :ok
  def check!(%{kind: kind, options: options} = program, path) do
    {_, outer} = List.keyfind(@types, kind, 0)
    outputs = Enum.map(program.checked.outputs, & &1.name)

    cond do
      kind == "retrieve" and options["index"] == nil ->
        message = "#{path}.index: a program of type retrieve needs an index"
        raise Args.invalid("#{path}.index", message)

      Map.get(options, "base", hd(outer.bases)) not in outer.bases ->
        bases = Enum.join(outer.bases, " or ")
        raise Args.invalid("#{path}.base", "#{path}.base: #{kind} runs programs of type #{bases}")

      needs_tools?(program) and not has_tools?(program) ->
        message =
          "#{path}.tools: #{kind} needs tools, and the session has none: send register_tools first, " <>
            "with the same session_id, name indexes to search, or allow_no_tools if the program needs " <>
            "none"

        raise Args.invalid("#{path}.tools", message)

      Map.get(options, "field", hd(outputs)) not in outputs ->
        reason = "the signature has no output '#{options["field"]}'; its outputs: "
        raise Args.invalid("#{path}.field", "#{path}.field: #{reason}#{Enum.join(outputs, ", ")}")

      true ->
        :ok
    end
  end
end
