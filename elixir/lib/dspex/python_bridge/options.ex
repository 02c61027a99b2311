defmodule DSPex.PythonBridge.Options do
  @moduledoc """
  The options of a bridge (`DSPex.PythonBridge.Bridge.start_link/1`): defaults and validation.
  Error messages never contain values of `:env`, which may be API keys.
  """

  @defaults [
    name: DSPex.PythonBridge.Bridge,
    connect: nil,
    python: nil,
    adapter: "dspy",
    args: [],
    env: [],
    threads: nil,
    max_frame: 64 * 1024 * 1024,
    format: :etf,
    start_timeout: 30_000,
    setup_timeout: 60_000,
    heartbeat_interval: 2_000,
    stuck_after: 300_000,
    backoff_min: 50,
    backoff_max: 10_000,
    healthy_after: 5_000,
    retry_start: false,
    tool_timeout: 300_000,
    logs: true,
    tools: [],
    models: %{},
    metrics: %{},
    rewards: %{},
    embedders: %{}
  ]

  # What is decided where the worker is started.
  @of_started_workers [:python, :adapter, :args, :env, :threads, :stuck_after]

  @doc """
  Returns the options of a child of a supervisor, which starts also if its first worker does not.
  Supervisors write the arguments of their children into reports, so `:env` becomes a function.
  Raises `ArgumentError` if they are no keyword list.
  """
  @spec of_child!(keyword()) :: keyword()
  def of_child!(options) do
    keyword!(options)
    options = Keyword.put_new(options, :retry_start, true)

    case options[:env] do
      nil -> options
      env when is_function(env, 0) -> options
      env -> Keyword.put(options, :env, fn -> env end)
    end
  end

  defp keyword!(options) do
    Keyword.keyword?(options) || raise ArgumentError, "options must be a keyword list"
  end

  @doc "Returns the options with defaults. Raises `ArgumentError` for invalid options."
  @spec checked!(keyword()) :: keyword()
  def checked!(options) do
    keyword!(options)
    defaults = defaults()

    for {key, _} <- options, not Keyword.has_key?(defaults, key) do
      raise ArgumentError, "unknown option #{inspect(key)}"
    end

    if options[:connect], do: refuse_with_connect!(options)
    options = Keyword.merge(defaults, options)
    for {key, value} <- options, do: check!(key, value)
    options
  end

  # `:kill` and `:ended` are for code that has started the worker to which the bridge connects (a
  # pool). `:kill` is called with the worker's process id if the worker does not answer; `:ended` is
  # called with it and the error when the connection has ended, and returns the error that callers get.
  # The process id is nil if the worker has not reported it.
  defp defaults do
    [
      setup: fn _bridge -> :ok end,
      kill: fn _os_pid -> :ok end,
      ended: fn _os_pid, error -> error end
    ] ++ @defaults
  end

  defp refuse_with_connect!(options) do
    for key <- @of_started_workers, options[key] != nil do
      raise ArgumentError,
            "#{inspect(key)} is for a worker that the bridge starts; with :connect, the server at " <>
              "the other end of the socket starts it, and has flags for that"
    end
  end

  # `GenServer` checks the name.
  defp check!(:name, _name), do: :ok
  defp check!(:env, env) when is_function(env, 0), do: check!(:env, env.())
  defp check!(:env, nil), do: :ok

  defp check!(:env, env) when is_map(env) or is_list(env) do
    Enum.each(env, &check_variable!/1)
  end

  defp check!(key, value) when key in [:models, :metrics, :rewards, :embedders],
    do: DSPex.PythonBridge.Functions.checked!([{key, value}])

  defp check!(key, value) do
    valid?(key, value) || raise ArgumentError, "#{inspect(key)} must be #{expected(key)}"
  end

  defp valid?(key, value) when key in [:connect, :python], do: value == nil or text?(value)
  defp valid?(:adapter, value), do: text?(value)
  defp valid?(:args, value), do: is_list(value) and Enum.all?(value, &text?/1)
  defp valid?(:threads, value), do: value == nil or whole?(value, 1)
  defp valid?(:max_frame, value), do: whole?(value, 1)
  defp valid?(:format, value), do: value in [:etf, :json]
  defp valid?(:setup, value), do: is_function(value, 1)
  defp valid?(:kill, value), do: is_function(value, 1)
  defp valid?(:ended, value), do: is_function(value, 2)
  defp valid?(:healthy_after, value), do: whole?(value, 0)
  defp valid?(:heartbeat_interval, value), do: value == false or whole?(value, 1)
  defp valid?(:stuck_after, value), do: value == false or whole?(value, 1)
  defp valid?(:tool_timeout, value), do: value == :infinity or whole?(value, 1)
  defp valid?(key, value) when key in [:logs, :retry_start], do: is_boolean(value)
  defp valid?(:env, _value), do: false

  defp valid?(:tools, value) do
    is_list(value) and Enum.all?(value, &is_struct(&1, DSPex.Tool))
  end

  defp valid?(_time, value), do: whole?(value, 1)

  defp expected(:connect), do: "the address of a socket, as a string: \"unix:/run/bridge.sock\""
  defp expected(:python), do: "the path of an interpreter, as a string"
  defp expected(:adapter), do: "a string"
  defp expected(:args), do: "a list of strings"
  defp expected(key) when key in [:threads, :max_frame], do: "a positive integer"
  defp expected(:format), do: ":etf or :json"
  defp expected(:setup), do: "a function of one argument, the bridge"
  defp expected(:kill), do: "a function of one argument, a process id"
  defp expected(:ended), do: "a function of two arguments, a process id and an error"
  defp expected(key) when key in [:logs, :retry_start], do: "true or false"
  defp expected(:env), do: "a map or a list of pairs of strings"
  defp expected(:tools), do: "a list of DSPex.Tool structs"
  defp expected(:healthy_after), do: "a non-negative integer in ms"

  defp expected(key) when key in [:heartbeat_interval, :stuck_after] do
    "a positive integer in ms, or false"
  end

  defp expected(:tool_timeout), do: "a positive integer in ms, or :infinity"
  defp expected(_time), do: "a positive integer in ms"

  defp check_variable!({name, value}) when is_binary(name) or is_atom(name) do
    name = to_string(name)

    if name == "" or String.contains?(name, ["=", "\0"]) do
      raise ArgumentError, "a name in :env must not be empty or contain = or NUL"
    end

    value in [nil, false] or text?(value) or charlist?(value) ||
      raise ArgumentError, "the value of #{name} in :env must be a string without NUL"
  end

  defp check_variable!(_other), do: check!(:env, :no_pair)

  defp whole?(value, least), do: is_integer(value) and value >= least

  defp charlist?(value), do: is_list(value) and List.ascii_printable?(value)

  # The operating system ends strings at NUL.
  defp text?(value), do: is_binary(value) and not String.contains?(value, "\0")
end
