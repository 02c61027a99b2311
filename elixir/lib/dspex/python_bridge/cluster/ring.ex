defmodule DSPex.PythonBridge.Cluster.Ring do
  @moduledoc """
  Which node a session belongs to: a rendezvous hash of the session over the nodes that take calls.

  Each node has a weight for each session, and the session belongs to the node of the greatest one. So
  all nodes that know of the same nodes agree without asking each other. A node that joins takes its
  share of the sessions from all others equally, and what a lost node had is shared by all others; no
  other session moves.

      iex> alias DSPex.PythonBridge.Cluster.Ring
      iex> ring = Ring.new([:a@host, :b@host, :c@host])
      iex> [owner, next, _] = Ring.owners(ring, "ann")
      iex> without_owner = Ring.new(Ring.nodes(ring) -- [owner])
      iex> {Ring.owner(ring, "ann") == owner, Ring.owner(without_owner, "ann") == next}
      {true, true}
  """

  # `:erlang.phash2/2` returns the same in all releases of Erlang and on all machines.
  @range 4_294_967_296

  @enforce_keys [:hashed]
  defstruct @enforce_keys

  @opaque t :: %__MODULE__{hashed: [{non_neg_integer(), node()}]}

  @doc "Returns the ring of some nodes, whose order does not matter."
  @spec new([node()]) :: t()
  def new(nodes) do
    hashed = for node <- nodes |> Enum.uniq() |> Enum.sort(), do: {hash(node), node}
    %__MODULE__{hashed: hashed}
  end

  @doc "Returns the nodes of a ring, sorted."
  @spec nodes(t()) :: [node()]
  def nodes(ring), do: for({_, node} <- ring.hashed, do: node)

  @doc "Returns the node that a session belongs to, or `nil` if there are no nodes."
  @spec owner(t(), String.t()) :: node() | nil
  def owner(ring, session_id), do: greatest(ring.hashed, hash(session_id), -1, nil)

  @doc """
  Returns all nodes, in the order in which the session belongs to them: the first is its owner, and each
  one is the owner once those before it are gone.
  """
  @spec owners(t(), String.t()) :: [node()]
  def owners(ring, session_id) do
    key = hash(session_id)

    # A stable sort: of equal weights, that of the first node wins, as in `owner/2`.
    ring.hashed
    |> Enum.sort_by(fn {hash, _} -> weight(hash, key) end, :desc)
    |> Enum.map(fn {_, node} -> node end)
  end

  defp greatest([{hash, node} | others], key, best, owner) do
    case weight(hash, key) do
      weight when weight > best -> greatest(others, key, weight, node)
      _ -> greatest(others, key, best, owner)
    end
  end

  defp greatest([], _key, _best, owner), do: owner

  defp hash(term), do: :erlang.phash2(term, @range)

  # Each session is hashed once, whatever the number of nodes. Hashed once only, the weights of nodes with
  # similar names depend on each other, and some nodes get some percent more sessions than others.
  defp weight(hash, key), do: hash |> Bitwise.bxor(key) |> hash() |> hash()
end
