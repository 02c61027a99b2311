defmodule DSPex.PythonBridge.Mock.Models do
  @moduledoc """
  The command `configure_lm`. A mock calls no model; it knows the common providers, and accepts others
  that a request names.
  """

  alias DSPex.PythonBridge.Error
  alias DSPex.PythonBridge.Mock.{Args, State}

  @local %{"offline" => "reader", "scripted" => "answers"}
  @aliases %{"google" => "gemini"}
  @unambiguous [
    {"openai", ~r/\A(?:(?:chat)?gpt-\d|chatgpt-|(?:o1|o3|o4)(?:\z|-)|text-embedding-(?:3|ada))/},
    {"anthropic", ~r/\Aclaude-/},
    {"gemini", ~r/\Agemini-/},
    {"xai", ~r/\Agrok-\d/}
  ]
  # In the order in which a worker checks them.
  @ranges [
    {"temperature", 0, 2},
    {"max_tokens", 1, 2_147_483_647},
    {"timeout", 0.001, 86_400},
    {"retries", 0, 10},
    {"retry_wait", 0, 60},
    {"retry_cap", 0, 600},
    {"cache", 0, 100_000}
  ]
  @longest_name 512
  @longest_key 8192

  @doc "Raises `:invalid_args` for a number that is out of its range."
  @spec check_ranges!(map(), String.t()) :: :ok
  def check_ranges!(settings, path) do
    for {name, least, most} <- @ranges, value = settings[name], value < least or value > most do
      expected = "a number from #{least} to #{most}"
      at = "#{path}.#{name}"
      raise Args.invalid(at, "#{at}: expected #{expected}", %{"expected" => expected})
    end

    :ok
  end

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

  @spec configure(map(), State.call(), State.t()) :: {map(), State.t()}
  def configure(args, call, state) do
    check_ranges!(args, "args")
    provider = args["provider"] || args["type"]
    name = if args["model"] in [nil, ""], do: @local[provider], else: args["model"]

    unless name do
      message = "args.model: a model is required, as in gemini-2.0-flash or openai/gpt-4o-mini"
      raise Args.invalid("args.model", message)
    end

    full = full_name!(name, provider, nil)
    [provider | _] = String.split(full, "/", parts: 2)
    check_key!(args["api_key"])

    if args["answers"] != nil and provider != "scripted" do
      raise Args.invalid("args.answers", "args.answers: only for the provider scripted")
    end

    model = %{name: name, full: full}

    result = %{
      "status" => "configured",
      "model" => name,
      "provider" => provider,
      "temperature" => args["temperature"] && args["temperature"] / 1
    }

    if call.session_id in [nil, state.default],
      do: {result, %{state | model: model}},
      else: {result, State.update(state, call, &%{&1 | model: model})}
  end

  @doc "Returns DSPy's name of a model, provider first. Raises `:invalid_args`."
  @spec full_name!(String.t(), String.t() | nil, String.t() | nil) :: String.t()
  def full_name!(model, provider, default) do
    parts = String.split(model, "/")

    if String.trim(model) != model or model == "" or not String.printable?(model) or
         model =~ ~r/[\n\r\t]|\s\s/ or String.length(model) > @longest_name or
         String.contains?(model, "://") or "." in parts or ".." in parts do
      message =
        "args.model: a model's name has at most #{@longest_name} characters, no control or " <>
          "invisible characters, no . or .. between slashes, and is not a URL"

      raise Args.invalid("args.model", message)
    end

    {provider, rest} = split(model, provider, default)

    if rest == "" do
      message = "args.model: the model's name is missing after its provider #{provider}"
      raise Args.invalid("args.model", message)
    end

    "#{provider}/#{rest}"
  end

  defp split(model, given, default) do
    case {given, String.split(model, "/", parts: 2)} do
      {given, [head, rest]} when given not in [nil, ""] ->
        provider = canonical(given)
        {provider, if(canonical(head) == provider, do: rest, else: model)}

      {given, _} when given not in [nil, ""] ->
        {canonical(given), model}

      {_, [head, rest]} ->
        {canonical(head), rest}

      {_, [_]} ->
        {provider_of!(model, default), model}
    end
  end

  defp canonical(provider) do
    name = provider |> String.trim() |> String.downcase()
    Map.get(@aliases, name, name)
  end

  defp provider_of!(model, default) do
    case Enum.find(@unambiguous, fn {_, form} -> model =~ form end) do
      {provider, _} ->
        provider

      nil when default != nil ->
        default

      nil ->
        message =
          "args.model: the provider of '#{model}' is not known: write provider/model, as in " <>
            "openai/#{model}, or send args.provider"

        raise Args.invalid("args.model", message, %{"expected" => "provider/model"})
    end
  end

  defp check_key!(nil), do: :ok

  defp check_key!(key) do
    key = String.trim(key)

    reason =
      cond do
        String.length(key) > @longest_key ->
          "it has more than #{@longest_key} characters"

        key =~ ~r/[^\x20-\x7e]/ ->
          "it has a line break, another control character, or a character outside ASCII"

        true ->
          nil
      end

    if reason do
      message = "args.api_key: this cannot be sent as a key: #{reason}"
      raise Args.invalid("args.api_key", message)
    end
  end

  @doc "Returns the model of the session, or that of all sessions, or `nil`."
  @spec of_session(State.t(), State.call()) :: map() | nil
  def of_session(state, call), do: State.session(state, call).model || state.model

  @doc "Returns the full name of the model that a program runs on. Raises `:lm_not_configured`."
  @spec of_run!(map(), map() | nil) :: String.t()
  def of_run!(%{model: name}, _model) when name != nil, do: full_name!(name, nil, "gemini")

  def of_run!(_program, nil) do
    raise Error.new(
            :lm_not_configured,
            "no language model is configured: send configure_lm first (provider offline needs " <>
              "neither key nor network)"
          )
  end

  def of_run!(_program, model), do: model.full
end
