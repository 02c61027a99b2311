defmodule DSPex.PythonBridge.Cluster.View do
  @moduledoc """
  What a node knows of its cluster: which nodes take calls of a pool. A persistent term, which the pool's
  member replaces when a node joins or is lost, so that callers read it in some nanoseconds. It outlives the
  member, and that of a pool that has been stopped is replaced when the pool is started again.
  """

  alias DSPex.PythonBridge.Cluster.{Remote, Ring}

  # ring: of the nodes that take calls. links: by node, how it is called. incarnations: by node, the
  # reference of its pool. generation: changes whenever a node was added to the ring. behind?: whether other
  # nodes have made changes that this one lacks.
  @enforce_keys [:ring]
  defstruct @enforce_keys ++ [links: %{}, incarnations: %{}, generation: 0, behind?: false]

  @type t :: %__MODULE__{
          ring: Ring.t(),
          links: %{node() => Remote.link()},
          incarnations: %{node() => reference()},
          generation: non_neg_integer(),
          behind?: boolean()
        }

  @doc "Stores what is known of the cluster of a pool."
  @spec put(atom(), t()) :: :ok
  def put(name, view), do: :persistent_term.put({__MODULE__, name}, view)

  @doc "Returns what is known of the cluster of a pool. Without a member the node is alone."
  @spec get(atom()) :: t()
  def get(name) do
    :persistent_term.get({__MODULE__, name}, nil) || %__MODULE__{ring: Ring.new([node()])}
  end

  @doc "Returns the node of an incarnation, or `nil` if it is that of this node or does not take part."
  @spec node_of(t(), reference()) :: node() | nil
  def node_of(view, incarnation) do
    Enum.find_value(view.incarnations, fn {node, known} -> known == incarnation && node end)
  end
end
