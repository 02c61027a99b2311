defmodule Clusters do
  @moduledoc """
  A cluster of nodes with a pool of the same name each, whose workers have the adapter `ledger.py` and
  share a store. The tests of a run share one, which each of them gets whole.
  """

  use GenServer
  alias DSPex.PythonBridge.SessionPoolV2

  @pool Clusters.Pool
  defstruct [:names, :folder, :links, :options, nodes: %{}]

  @doc """
  Returns the `:nodes` a, b and c, all running, connected and with a pool, and the `:links` between them:
  what a test has killed is started again, what it has frozen goes on, what it has cut off is connected.
  """
  def whole do
    GenServer.start(__MODULE__, {~w(a b c), []}, name: __MODULE__)
    whole(__MODULE__)
  end

  @doc "The same of another cluster."
  def whole(cluster), do: GenServer.call(cluster, :whole, 120_000)

  @doc "Returns the name of the pools."
  def pool, do: @pool

  @doc "Starts a pool on a node."
  def start_pool(node, options) do
    :ok = BeamNodes.call(node, OnNode, :start_pool, [options], 60_000)
  end

  @doc "Calls a command through a node's pool."
  def call(node, session, command, args \\ %{}, options \\ []) do
    options = Keyword.merge([pool_name: @pool, timeout: 20_000], options)

    BeamNodes.call(
      node,
      SessionPoolV2,
      :execute_in_session,
      [session, command, args, options],
      60_000
    )
  end

  @doc "Returns the nodes whose pools a node's pool gives calls to."
  def live(node, pool \\ @pool) do
    BeamNodes.call(node, SessionPoolV2, :get_pool_status, [pool]).nodes |> Enum.sort()
  end

  @doc """
  Waits until the pools of these nodes give calls to each other, and to no other.

  Connects the nodes with each other until then: when one is cut off, the BEAM may also part others.
  """
  def wait_for(nodes, pool \\ @pool) do
    expected = nodes |> Enum.map(& &1.node) |> Enum.sort()

    Workers.wait_until(
      fn -> connected?(nodes) and Enum.all?(nodes, &(live(&1, pool) == expected)) end,
      60_000
    )
  end

  @doc "Ends the cluster that the tests share."
  def stop, do: if(GenServer.whereis(__MODULE__), do: GenServer.stop(__MODULE__))

  @doc "Starts a cluster of nodes with these names; the options are those of the pools."
  def start_link(arguments), do: GenServer.start_link(__MODULE__, arguments)

  @impl true
  def init({names, options}) do
    Process.flag(:trap_exit, true)
    folder = BeamNodes.folder()
    links = Links.start_link(folder, names)

    options =
      Workers.options([adapter: "ledger:adapter", args: ["--store", store(folder)]] ++ options)

    pool = Keyword.merge([name: @pool, workers: 1, cluster: true], options)
    {:ok, %__MODULE__{names: names, folder: folder, links: links, options: pool}}
  end

  # CLUSTER_STORE is the address of another store, for instance of a PostgreSQL server.
  defp store(folder), do: System.get_env("CLUSTER_STORE", "sqlite:#{folder}/store.db")

  @impl true
  def handle_call(:whole, _from, cluster) do
    Links.restore(cluster.links, cluster.names, cluster.names)
    for {_, node} <- cluster.nodes, do: BeamNodes.signal(node, :CONT)
    cluster = Enum.reduce(cluster.names, cluster, &running(&2, &1))
    nodes = for name <- cluster.names, do: cluster.nodes[name]
    wait_for(nodes)
    {:reply, %{nodes: nodes, links: cluster.links}, cluster}
  end

  defp running(cluster, name) do
    node = cluster.nodes[name]

    node =
      if node != nil and Workers.os_alive?(node.os_pid),
        do: node,
        else: BeamNodes.start_link(cluster.folder, name)

    unless BeamNodes.call(node, Process, :whereis, [@pool]), do: start_pool(node, cluster.options)
    %{cluster | nodes: Map.put(cluster.nodes, name, node)}
  end

  defp connected?(nodes) do
    for one <- nodes, other <- nodes, one != other, reduce: true do
      all -> BeamNodes.call(one, :net_kernel, :connect_node, [other.node]) == true and all
    end
  end

  @impl true
  def handle_info({:EXIT, _peer, _reason}, cluster), do: {:noreply, cluster}

  @impl true
  def terminate(_reason, cluster) do
    for {_, node} <- cluster.nodes, do: BeamNodes.signal(node, :KILL)
    File.rm_rf!(cluster.folder)
  end
end
