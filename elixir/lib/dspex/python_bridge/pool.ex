defmodule DSPex.PythonBridge.Pool do
  @moduledoc """
  What a caller needs to know about a pool in order to choose a worker itself: the connections of the
  slots that take calls, the table of sessions, and what its commands do.

  The pool's server (`DSPex.PythonBridge.Pool.Server`) stores it as a persistent term under the
  pool's name, so that reading it costs a caller some nanoseconds whatever the number of slots, and
  replaces it when a slot begins to take calls or stops. A worker that has ended may still be in it:
  its connection refuses requests, and the caller chooses again.
  """

  alias DSPex.PythonBridge.{CircuitBreaker, Cluster, Connection, Error, RetryBudget}

  @enforce_keys [
    :name,
    :server,
    :journal,
    :sessions,
    :functions,
    :slots,
    :commands,
    :default_session,
    :threads,
    :limit,
    :affinity,
    :isolate,
    :stored,
    :budget,
    :breaker,
    :providers,
    :wants_more,
    :cluster
  ]
  defstruct @enforce_keys

  @typedoc """
  What the pool does with a command: sends it to one worker (`:one`; `:run` may use a model), or
  without a session to all of them (`:all`); ends a session or all sessions; refuses it.
  """
  @type kind :: :one | :run | :all | :end_session | :end_all | :refused

  @type t :: %__MODULE__{
          name: atom(),
          server: pid(),
          journal: pid(),
          sessions: :ets.table(),
          functions: :ets.table(),
          slots: tuple(),
          commands: %{String.t() => {kind(), idempotent :: boolean()}},
          default_session: String.t() | nil,
          threads: pos_integer(),
          limit: pos_integer(),
          affinity: :strict | :hint,
          isolate: nil | :session,
          stored: boolean(),
          budget: RetryBudget.t(),
          breaker: CircuitBreaker.t(),
          providers: :ets.table(),
          wants_more: :atomics.atomics_ref(),
          cluster: Cluster.t() | nil
        }

  # How long to wait for a pool that a supervisor restarts, and between two looks, ms.
  @restart_gap 200
  @pause 2

  @lanes %{
    "run" => :run,
    "session" => :all,
    "everyone" => :everyone,
    "end_session" => :end_session,
    "end_all" => :end_all
  }
  # They belong to the connection, which is the pool's; ids of calls are not known outside of it.
  @refused ~w(hello shutdown cancel pause resume)
  # An inline command that changes its worker.
  @everywhere ~w(set_log_level)

  @doc "Stores a pool under its name."
  @spec put(t()) :: :ok
  def put(pool), do: :persistent_term.put({__MODULE__, pool.name}, pool)

  @doc "Removes a pool, unless another server has taken the name."
  @spec erase(atom(), pid()) :: boolean()
  def erase(name, server) do
    match?(%{server: ^server}, get(name)) and :persistent_term.erase({__MODULE__, name})
  end

  @doc "Returns the pool of a name, or `nil`."
  @spec get(atom()) :: t() | nil
  def get(name), do: :persistent_term.get({__MODULE__, name}, nil)

  @doc """
  Returns the pool of a name. Raises `DSPex.PythonBridge.Error` with `:worker_crashed` if there is
  none, after the time that a supervisor needs to restart it.
  """
  @spec fetch!(atom()) :: t()
  def fetch!(name), do: get(name) || running!(name)

  @doc "Returns the pool of a name whose server runs; otherwise like `fetch!/1`."
  @spec running!(atom()) :: t()
  def running!(name), do: running!(name, Connection.now() + @restart_gap)

  defp running!(name, deadline) do
    pool = get(name)

    cond do
      pool && Process.alive?(pool.server) ->
        pool

      Connection.remaining(deadline) > 0 ->
        Process.sleep(@pause)
        running!(name, deadline)

      true ->
        raise not_running(name)
    end
  end

  @doc "Returns the error of a call to a pool that does not run."
  @spec not_running(term()) :: Error.t()
  def not_running(name) do
    error =
      Error.new(
        :worker_crashed,
        "no pool is running as #{inspect(name)}: add {DSPex.PythonBridge.SessionPoolV2, []} to a " <>
          "supervisor, or call DSPex.PythonBridge.SessionPoolV2.start_link/1"
      )

    %{error | category: :initialization}
  end

  @doc "Returns what the pool does with each command that `describe` has listed."
  @spec commands(map()) :: %{String.t() => {kind(), boolean()}}
  def commands(%{"commands" => described}) do
    Map.new(described, fn {name, about} -> {name, {kind(name, about), about["idempotent"]}} end)
  end

  defp kind(name, _about) when name in @refused, do: :refused
  defp kind(name, _about) when name in @everywhere, do: :everyone
  defp kind(_name, about), do: Map.get(@lanes, about["lane"], :one)

  @doc "Returns what the pool does with a command, and whether it is idempotent."
  @spec command(t(), atom() | String.t()) :: {kind(), boolean()}
  def command(pool, command) when is_atom(command), do: command(pool, Atom.to_string(command))

  def command(%{commands: commands}, command) do
    case commands do
      %{^command => about} -> about
      _ -> {:one, false}
    end
  end
end
