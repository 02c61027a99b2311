defmodule DSPex.PythonBridge.Mock.Settings do
  @moduledoc """
  Checks the settings of models, and the formats of prompts and replies, with the errors of a worker.
  """

  alias DSPex.PythonBridge.Mock.Args

  # In the order in which a worker checks them.
  @generation [
    {"temperature", 0, 2},
    {"max_tokens", 1, 2_147_483_647},
    {"top_p", 0, 1},
    {"top_k", 1, 2_147_483_647},
    {"seed", -9_223_372_036_854_775_808, 9_223_372_036_854_775_807},
    {"frequency_penalty", -2, 2},
    {"presence_penalty", -2, 2},
    {"n", 1, 128}
  ]
  @others [
    {"timeout", 0.001, 86_400},
    {"retries", 0, 10},
    {"retry_wait", 0, 60},
    {"retry_cap", 0, 600},
    {"cache", 0, 100_000},
    {"history", 0, 1000}
  ]
  @most_stops 64

  @doc "Raises `:invalid_args` for a setting of requests that no provider accepts."
  @spec check_generation!(map(), String.t()) :: :ok
  def check_generation!(settings, path) do
    check_ranges!(settings, @generation, path)

    with stop when stop != nil <- settings["stop"] do
      stops = List.wrap(stop)

      if length(stops) not in 1..@most_stops or "" in stops,
        do: expected!("#{path}.stop", "1 to #{@most_stops} texts that are not empty")
    end

    with %{} = format <- settings["response_format"],
         do: check_response_format!(format, "#{path}.response_format")

    :ok
  end

  @doc "Raises `:invalid_args` for a number of `configure_lm` that is out of its range."
  @spec check_others!(map(), String.t()) :: :ok
  def check_others!(settings, path), do: check_ranges!(settings, @others, path)

  defp check_ranges!(settings, ranges, path) do
    for {name, least, most} <- ranges,
        value = settings[name],
        value < least or value > most,
        do: expected!("#{path}.#{name}", "a number from #{least} to #{most}")

    :ok
  end

  defp check_response_format!(%{"type" => "json_object"} = format, path),
    do: check_keys!(format, ["type"], path)

  defp check_response_format!(%{"type" => "json_schema"} = format, path) do
    check_keys!(format, ["type", "json_schema"], path)

    unless match?(%{"schema" => %{}}, format["json_schema"]),
      do:
        expected!(
          "#{path}.json_schema",
          ~s(a map with "name" and "schema", which is a JSON Schema)
        )
  end

  defp check_response_format!(_format, path),
    do: expected!("#{path}.type", ~s("json_object" or "json_schema"))

  defp check_keys!(map, known, path) do
    with [first | _] <- Map.keys(map) -- known,
         do: raise(Args.invalid("#{path}.#{first}", "#{path}.#{first}: unknown key"))
  end

  @spec expected!(String.t(), String.t()) :: no_return()
  defp expected!(path, expected),
    do: raise(Args.invalid(path, "#{path}: expected #{expected}", %{"expected" => expected}))

  @formats ~w(chat json xml two_step baml)
  @with_fallback ~w(chat xml two_step)

  @doc "Raises `:invalid_args` for a format of prompts and replies that does not exist."
  @spec check_format!(term(), String.t()) :: :ok
  def check_format!(given, path \\ "args.adapter")
  def check_format!(nil, _path), do: :ok

  def check_format!(name, path) when is_binary(name),
    do: check_format!(%{"name" => name}, path, path)

  def check_format!(given, path), do: check_format!(given, path <> ".name", path)

  defp check_format!(given, path_of_name, path) do
    {name, fallback} = {Map.get(given, "name", "chat"), given["fallback"]}

    {at, reason, expected} =
      cond do
        name not in @formats ->
          {path_of_name, "unknown adapter '#{name}'", "one of #{Enum.join(@formats, ", ")}"}

        fallback not in [nil, "json"] ->
          {"#{path}.fallback", "unknown fallback '#{fallback}'", "json"}

        fallback != nil and name not in @with_fallback ->
          line = "only for the adapters #{Enum.join(@with_fallback, ", ")}, not #{name}"
          {"#{path}.fallback", line, nil}

        given["model"] != nil and name != "two_step" ->
          {"#{path}.model", "only for the adapter two_step, not #{name}", nil}

        true ->
          {nil, nil, nil}
      end

    cond do
      at == nil ->
        :ok

      expected == nil ->
        raise Args.invalid(at, "#{at}: #{reason}")

      true ->
        raise Args.invalid(at, "#{at}: #{reason}; expected #{expected}", %{"expected" => expected})
    end
  end
end
