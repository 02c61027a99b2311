defmodule DSPex.PythonBridge.Cluster.Settings do
  @moduledoc """
  The options of a pool that should be the same on all nodes of a cluster, and what is said if they are
  not.
  """

  @type t :: map()

  @doc "Returns the settings of a pool with these options of its own and of its workers."
  @spec of(keyword(), keyword()) :: t()
  def of(own, worker) do
    store = if worker[:connect], do: :of_server, else: store(worker[:args])
    %{adapter: worker[:adapter], store: store, affinity: own[:affinity], isolate: own[:isolate]}
  end

  # A hash, because an address may name users.
  defp store(["--store", address | _]), do: store(["--store=" <> address])

  defp store(["--store=" <> address | _]),
    do: {address |> String.split(":") |> hd(), :erlang.phash2(address)}

  defp store([_ | args]), do: store(args)
  defp store([]), do: nil

  @doc "Returns a line for each thing that is wrong with the settings of another node."
  @spec complaints(t(), node(), t()) :: [String.t()]
  def complaints(own, node, theirs) do
    different = for {key, value} <- own, Map.get(theirs, key) != value, do: key
    different(node, different) ++ not_shared(own, node, theirs)
  end

  defp different(_node, []), do: []

  defp different(node, keys) do
    [
      "the pool on #{node} has other options (#{Enum.join(keys, ", ")}): a session changes its " <>
        "behavior, or loses its state, when it moves there"
    ]
  end

  defp not_shared(%{store: {"sqlite", _} = store}, node, %{store: store}) do
    if host(node) == host(node()),
      do: [],
      else: [
        "a session in a file of SQLite loses its state when it moves to #{node}, another host"
      ]
  end

  defp not_shared(_own, _node, _theirs), do: []

  # Names of nodes are NAME@HOST.
  defp host(node), do: node |> Atom.to_string() |> String.split("@") |> List.last()
end
