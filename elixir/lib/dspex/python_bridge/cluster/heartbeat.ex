defmodule DSPex.PythonBridge.Cluster.Heartbeat do
  @moduledoc """
  What the member of a pool tells those of other nodes at short intervals: how to call the pool, whether it
  takes calls, and what it is busy with.
  """

  alias DSPex.PythonBridge.{Cluster, Connection, Pool}
  alias DSPex.PythonBridge.Cluster.Settings

  @type t :: %{
          incarnation: reference(),
          heartbeat: pos_integer(),
          receiver: pid(),
          ready: boolean(),
          history: Cluster.history(),
          settings: Settings.t(),
          workers: non_neg_integer(),
          sessions: non_neg_integer(),
          open_calls: non_neg_integer()
        }

  @doc "Returns the heartbeat of a pool, which may have been stopped."
  @spec new(atom(), Cluster.t(), receiver :: pid(), ready? :: boolean()) :: t()
  def new(name, cluster, receiver, ready?) do
    Map.merge(load(Pool.get(name)), %{
      incarnation: cluster.incarnation,
      heartbeat: cluster.heartbeat,
      receiver: receiver,
      ready: ready?,
      history: Cluster.history(cluster),
      settings: cluster.settings
    })
  end

  defp load(nil), do: %{workers: 0, sessions: 0, open_calls: 0}

  defp load(pool) do
    connections = Tuple.to_list(pool.slots)

    %{
      workers: length(connections),
      sessions: :ets.info(pool.sessions, :size),
      open_calls: connections |> Enum.map(&Connection.open_calls(&1.table)) |> Enum.sum()
    }
  end

  @doc "Returns what `get_pool_status` says of a node whose last heartbeat this is, and which hangs or not."
  @spec status(t(), hangs? :: boolean()) :: map()
  def status(heartbeat, hangs?) do
    state = if(hangs?, do: :hung, else: if(heartbeat.ready, do: :live, else: :not_ready))
    heartbeat |> Map.take([:workers, :sessions, :open_calls]) |> Map.put(:state, state)
  end
end
