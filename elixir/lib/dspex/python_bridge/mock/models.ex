defmodule DSPex.PythonBridge.Mock.Models do
  @moduledoc """
  The command `configure_lm`. A mock calls no model; it knows the common providers, and accepts others
  that a request names.
  """

  alias DSPex.PythonBridge.Error
  alias DSPex.PythonBridge.Mock.{Args, Settings, State}

  @local %{"offline" => "reader", "scripted" => "answers"}
  @aliases %{"google" => "gemini"}
  @unambiguous [
    {"openai", ~r/\A(?:(?:chat)?gpt-\d|chatgpt-|(?:o1|o3|o4)(?:\z|-)|text-embedding-(?:3|ada))/},
    {"anthropic", ~r/\Aclaude-/},
    {"gemini", ~r/\Agemini-/},
    {"xai", ~r/\Agrok-\d/}
  ]
  @longest_name 512
  @longest_key 8192

  @spec configure(map(), State.call(), State.t()) :: {map(), State.t()}
  def configure(args, call, state) do
    check_name!(args["name"])
    Settings.check_generation!(args, "args")
    Settings.check_others!(args, "args")
    Settings.check_format!(args["adapter"])
    provider = args["provider"] || args["type"]
    name = if args["model"] in [nil, ""], do: @local[provider], else: args["model"]

    unless name do
      message = "args.model: a model is required, as in gemini-2.0-flash or openai/gpt-4o-mini"
      raise Args.invalid("args.model", message)
    end

    full = full_name!(name, provider, nil)
    [provider | _] = String.split(full, "/", parts: 2)
    check_provider!(provider, args)
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

    own = args["name"] || ""
    result = if own == "", do: result, else: Map.put(result, "name", own)
    put = &%{&1 | models: Map.put(&1.models, own, model)}

    if call.session_id in [nil, state.default],
      do: {result, put.(state)},
      else: {result, State.update(state, call, put)}
  end

  defp check_name!(name) do
    unless name == nil or name?(name) do
      message = "args.name: a name has 1 to 128 letters, digits and characters of _ - . :"
      raise Args.invalid("args.name", message)
    end
  end

  defp name?(name), do: name =~ ~r/\A[\w.:-]{1,128}\z/u

  defp check_provider!(provider, args) do
    local = if provider in ["host" | Map.keys(@local)], do: ["extra_headers"], else: []
    of_host = if provider == "host", do: ["api_key", "api_base"], else: []
    version = if String.starts_with?(provider, "azure"), do: [], else: ["api_version"]

    for name <- local ++ of_host ++ version, args[name] != nil do
      path = "args.#{name}"
      raise Args.invalid(path, "#{path}: the provider #{provider} has no such setting")
    end
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

  defp check_key!(%{"env" => variable}) do
    message = "args.api_key: the operator has not allowed keys from '#{variable}' (--api-key-env)"

    raise Error.new(:not_allowed, message, %{"path" => "args.api_key"})
  end

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

  @doc "Returns the default model of the session, or that of all sessions, or `nil`."
  @spec of_session(State.t(), State.call()) :: map() | nil
  def of_session(state, call), do: named("", state, call)

  defp named(name, state, call), do: State.session(state, call).models[name] || state.models[name]

  @doc """
  Returns the names in a choice of models, in their order; none for `nil`. Raises `:invalid_args`.
  """
  @spec names!(term(), String.t()) :: [String.t()]
  def names!(choice, path \\ "args.model")
  def names!(nil, _path), do: []
  def names!(name, path) when is_binary(name), do: names!([{name, path}], [], [])

  def names!(%{"models" => names}, path) do
    names
    |> Enum.with_index()
    |> Enum.map(fn {name, index} -> {name, "#{path}.models[#{index}]"} end)
    |> names!([], [])
  end

  defp names!([], found, _seen), do: Enum.reverse(found)

  defp names!([{name, path} | rest], found, seen) do
    unless name?(name) or unconfigured?(name) do
      message =
        "#{path}: expected the name of a configured model (configure_lm name), or host/NAME"

      raise Args.invalid(path, message)
    end

    if name in seen, do: raise(Args.invalid(path, "#{path}: the model #{name} occurs twice"))
    names!(rest, [name | found], [name | seen])
  end

  defp unconfigured?(name) do
    case String.split(name, "/", parts: 2) do
      [provider, rest] when provider in ["host", "offline"] -> name?(rest)
      _ -> false
    end
  end

  @doc """
  Returns the full name of the first model that a program runs on: of the call, its own, or the default
  one; `nil` if none is configured. Raises `:lm_not_configured` for a name that no model has.
  """
  @spec chosen!([String.t()], map(), State.t(), State.call()) :: String.t() | nil
  def chosen!([_ | _] = names, _program, state, call),
    do: first!(names, state, call, "args.model: ")

  def chosen!([], %{models: [_ | _] = names} = program, state, call),
    do: first!(names, state, call, "program #{program.id}: ")

  def chosen!([], %{model: name}, _state, _call) when name != nil,
    do: full_name!(name, nil, "gemini")

  def chosen!([], _program, state, call) do
    with %{full: full} <- of_session(state, call), do: full
  end

  defp first!(names, state, call, where) do
    names |> Enum.map(&one!(&1, state, call, where)) |> hd()
  end

  defp one!(name, state, call, where) do
    case named(name, state, call) do
      %{full: full} ->
        full

      nil ->
        if not unconfigured?(name), do: raise(unknown(name, state, call, where))
        name
    end
  end

  defp unknown(name, state, call, where) do
    known =
      [State.session(state, call).models, state.models]
      |> Enum.flat_map(&Map.keys/1)
      |> Enum.uniq()
      |> List.delete("")
      |> Enum.sort()

    message =
      "#{where}no model of the name #{name} is configured: send configure_lm " <>
        ~s({"name": "#{name}", …} first)

    Error.new(:lm_not_configured, message, %{"name" => name, "known" => known})
  end

  @doc "Returns a model that is configured. Raises `:lm_not_configured`."
  @spec configured!(String.t() | nil) :: String.t()
  def configured!(nil) do
    raise Error.new(
            :lm_not_configured,
            "no language model is configured: send configure_lm first (provider offline needs " <>
              "neither key nor network)"
          )
  end

  def configured!(model), do: model
end
