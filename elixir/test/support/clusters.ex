defmodule Clusters do
  @moduledoc """
  A cluster for the tests of a module: nodes with a pool of the same name each, whose workers have the
  adapter `ledger.py` and share a store.
  """

  use GenServer
  import ExUnit.Callbacks, only: [start_supervised!: 1]
  alias DSPex.PythonBridge.SessionPoolV2

  @pool Clusters.Pool
  defstruct [:names, :folder, :links, :options, nodes: %{}]

  @doc "Starts a cluster of nodes with these names, without pools, which ends with the test or its module."
  def start(names, options \\ []), do: start_supervised!({__MODULE__, {names, options}})

  @doc """
  Returns a cluster in which all nodes run, are connected and have a pool: what a test has killed is
  started again, what it has frozen goes on, what it has cut off is connected.
  """
  def whole(cluster), do: GenServer.call(cluster, :whole, 60_000)

  @doc "Starts one node, with its pool if there is none; without `:connect` it stays alone."
  def start_node(cluster, name), do: GenServer.call(cluster, {:start, name}, 60_000)

  @doc "Returns the name of the pools."
  def pool, do: @pool

  @doc "Starts a pool on a node, in a process of its own. Options are added to those of the cluster."
  def start_pool(node, options) do
    :ok = BeamNodes.call(node, __MODULE__, :run_pool, [options], 60_000)
  end

  @doc false
  def run_pool(options) do
    starter = self()

    spawn(fn ->
      Process.flag(:trap_exit, true)
      send(starter, {self(), SessionPoolV2.start_link(options)})
      receive do: ({:EXIT, _, _} -> :ok)
    end)
    |> started()
  end

  defp started(runner) do
    receive do
      {^runner, {:ok, _}} -> :ok
      {^runner, {:error, reason}} -> {:error, reason}
    end
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
  def live(node) do
    BeamNodes.call(node, SessionPoolV2, :get_pool_status, [@pool]).nodes |> Enum.sort()
  end

  @doc "Waits until the pools of these nodes give calls to each other, and to no other."
  def wait_for(nodes) do
    expected = nodes |> Enum.map(& &1.node) |> Enum.sort()
    Workers.wait_until(fn -> Enum.all?(nodes, &(live(&1) == expected)) end, 30_000)
  end

  def start_link(arguments), do: GenServer.start_link(__MODULE__, arguments)

  @impl true
  def init({names, options}) do
    Process.flag(:trap_exit, true)
    folder = BeamNodes.folder()
    links = Links.start_link(folder, names)

    options =
      Workers.options(
        [adapter: "ledger:adapter", args: ["--store", "sqlite:#{folder}/store.db"]] ++ options
      )

    pool = Keyword.merge([name: @pool, workers: 1, cluster: true], options)
    {:ok, %__MODULE__{names: names, folder: folder, links: links, options: pool}}
  end

  @impl true
  def handle_call(:whole, _from, cluster) do
    Links.restore(cluster.links, cluster.names, cluster.names)
    for {_, node} <- cluster.nodes, do: BeamNodes.signal(node, :CONT)
    cluster = Enum.reduce(cluster.names, cluster, &running(&2, &1))
    nodes = for name <- cluster.names, do: cluster.nodes[name]
    Workers.wait_until(fn -> connected?(nodes) end, 30_000)
    wait_for(nodes)
    {:reply, %{nodes: nodes, links: cluster.links}, cluster}
  end

  def handle_call({:start, name}, _from, cluster) do
    cluster = running(cluster, name)
    {:reply, cluster.nodes[name], cluster}
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
