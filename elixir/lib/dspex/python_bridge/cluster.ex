defmodule DSPex.PythonBridge.Cluster do
  @moduledoc """
  What makes pools of one name on several connected nodes act as one pool: the option `cluster: true` of
  `DSPex.PythonBridge.SessionPoolV2`.

  Each pool has a member (`Member`) that finds those of the other nodes and knows which of them take
  calls. Callers read that from a persistent term (`View`), choose the node of a session by a hash
  (`Ring`), and call it themselves (`Remote`), where a `Receiver` takes the calls.
  """

  use Supervisor

  alias DSPex.PythonBridge.Cluster.{Homes, Member, Receiver, Settings}

  # incarnation: of this pool's sessions, unique in all nodes. heartbeat: ms. homes: see `Homes`.
  # history: the numbers of `history/1`, and 1 while this node makes a change for all, else 0.
  @enforce_keys [:incarnation, :heartbeat, :homes, :history, :settings]
  defstruct @enforce_keys

  @type t :: %__MODULE__{
          incarnation: reference(),
          heartbeat: pos_integer(),
          homes: :ets.table(),
          history: :atomics.atomics_ref(),
          settings: Settings.t()
        }

  @typedoc """
  The changes of what is set up without a session: how many there were, and a hash of them. Of two different
  histories the greater one holds.
  """
  @type history :: {non_neg_integer(), non_neg_integer()}

  @heartbeat 500
  # A timer of the BEAM takes no more than 49 days; longer than an hour is a mistake.
  @longest_heartbeat 3_600_000

  @doc """
  Returns what a pool with this option keeps for its cluster; `nil` without a cluster. The table belongs
  to the calling process.
  """
  @spec new(boolean() | keyword(), Settings.t()) :: t() | nil
  def new(false, _settings), do: nil
  def new(true, settings), do: new([], settings)

  def new(options, settings) do
    %__MODULE__{
      settings: settings,
      incarnation: make_ref(),
      heartbeat: options[:heartbeat] || @heartbeat,
      homes: Homes.new_table(),
      history: :atomics.new(3, signed: false)
    }
  end

  @doc "Returns the history of a pool on this node."
  @spec history(t()) :: history()
  def history(%{history: history}), do: {:atomics.get(history, 1), :atomics.get(history, 2)}

  @doc "Notes the history of a pool on this node."
  @spec tell_history(t(), history()) :: :ok
  def tell_history(%{history: history}, {count, hash}) do
    :atomics.put(history, 1, count)
    :atomics.put(history, 2, hash)
  end

  @doc "Returns whether this node makes a change for all nodes at the moment."
  @spec leads?(t()) :: boolean()
  def leads?(%{history: history}), do: :atomics.get(history, 3) == 1

  @doc "Notes whether this node makes a change for all nodes at the moment."
  @spec tell_leads(t(), boolean()) :: :ok
  def tell_leads(%{history: history}, leads?),
    do: :atomics.put(history, 3, if(leads?, do: 1, else: 0))

  @doc "Returns a history with one more change."
  @spec next(history(), map()) :: history()
  def next({count, hash}, change),
    do: {count + 1, :erlang.phash2({hash, change.kind, change.command, change.args})}

  @doc "Returns whether a value is valid for the option `:cluster`."
  @spec valid?(term()) :: boolean()
  def valid?(value) when is_boolean(value), do: true

  def valid?(value) do
    Keyword.keyword?(value) and
      Enum.all?(value, fn {key, ms} -> key == :heartbeat and ms in 1..@longest_heartbeat end)
  end

  @doc false
  @spec start_link(DSPex.PythonBridge.Pool.t()) :: Supervisor.on_start()
  def start_link(pool), do: Supervisor.start_link(__MODULE__, pool)

  @impl true
  def init(pool) do
    scope = Module.concat(pool.name, "Cluster")
    receiver = Module.concat(scope, "Receiver")

    children = [
      %{id: scope, start: {__MODULE__, :start_scope, [scope]}},
      {Receiver, receiver},
      {Member, {pool, scope, receiver}}
    ]

    Supervisor.init(children, strategy: :rest_for_one)
  end

  # The application may have started it.
  @doc false
  @spec start_scope(atom()) :: GenServer.on_start() | :ignore
  def start_scope(scope) do
    with {:error, {:already_started, _}} <- :pg.start_link(scope), do: :ignore
  end
end
