defmodule DSPex.PythonBridge.Cluster.Member do
  @moduledoc """
  A pool as a member of its cluster: the process that finds the members of other nodes, in a `:pg` group,
  and exchanges heartbeats with them.

  A node takes part while its member's heartbeats arrive: one that has missed three is left out until the
  next one, because a node that hangs keeps its connections open for a minute. A node whose pool has no
  worker, or whose member speaks another version, is left out too.

  For each node that takes part there is a process, its line, which ends when the node is lost. Who has
  called the node monitors its line.
  """

  use GenServer
  require Logger

  alias DSPex.PythonBridge.{Connection, Pool, Telemetry}
  alias DSPex.PythonBridge.Cluster.{Ring, View}

  # Of the messages between members, and what they call on each other's nodes. Members of different
  # versions leave each other out.
  @version 1
  @group :pools
  # Heartbeats in a row that may be missing, and looks at a pool without workers.
  @missing 3
  # For the first look at the other nodes, ms.
  @discovery_timeout 1_000

  # others: by node, `{pid, line, missed, info}`, where the line is `nil` while the node is left out.
  # sending: by node, the process that sends it a heartbeat. awaited: members that were there at the start
  # and have not answered. joining: callers that wait for them. strangers: nodes of another version. empty:
  # looks in a row at a pool without workers. generation: see `View`. ticked: when, in ms.
  @enforce_keys [:pool, :cluster, :scope]
  defstruct @enforce_keys ++
              [
                others: %{},
                sending: %{},
                awaited: [],
                joining: [],
                strangers: [],
                empty: 0,
                generation: 0,
                ticked: nil
              ]

  @doc false
  @spec start_link({Pool.t(), atom()}) :: GenServer.on_start()
  def start_link({pool, scope}) do
    GenServer.start_link(__MODULE__, {pool, scope}, name: name(pool.name))
  end

  defp name(pool), do: Module.concat(pool, Cluster.Member)

  @doc "Waits until the members that a new member has found have answered, or are left out."
  @spec await(atom()) :: :ok
  def await(pool), do: GenServer.call(name(pool), :await, :infinity)

  @impl true
  def init({pool, scope}) do
    Process.flag(:trap_exit, true)
    :ok = :pg.join(scope, @group, self())
    state = %__MODULE__{pool: pool.name, cluster: pool.cluster, scope: scope}
    {:ok, publish(state), {:continue, :discover}}
  end

  # The group fills up only after a while.
  @impl true
  def handle_continue(:discover, state) do
    nodes = Node.list()

    found =
      for {:ok, pids} <-
            :erpc.multicall(
              nodes,
              :pg,
              :get_local_members,
              [state.scope, @group],
              @discovery_timeout
            ),
          pid <- pids,
          do: pid

    {:noreply, tick(%{state | awaited: found}, found)}
  end

  @impl true
  def handle_call(:await, from, state) do
    {:noreply, joined(%{state | joining: [from | state.joining]})}
  end

  defp joined(%{awaited: []} = state) do
    for from <- state.joining, do: GenServer.reply(from, :ok)
    %{state | joining: []}
  end

  defp joined(state), do: state

  # Heartbeats

  @impl true
  def handle_info(:tick, state) do
    {:noreply, tick(state, :pg.get_members(state.scope, @group))}
  end

  def handle_info({:dspex_bridge_cluster, @version, pid, info}, state) do
    {:noreply, state |> heard(node(pid), pid, info) |> answered(pid) |> publish()}
  end

  def handle_info({:dspex_bridge_cluster, version, pid, _info}, state) do
    {:noreply, state |> stranger(node(pid), version) |> answered(pid)}
  end

  def handle_info({:DOWN, _, :process, pid, reason}, state) do
    {:noreply, state |> gone(node(pid), pid, reason) |> answered(pid) |> publish()}
  end

  def handle_info(_message, state), do: {:noreply, state}

  defp tick(state, members) do
    Process.send_after(self(), :tick, state.cluster.heartbeat)
    state = stopped(state, Connection.now())
    pool = Pool.get(state.pool)
    empty = if pool == nil or pool.slots == {}, do: state.empty + 1, else: 0
    state = publish(missed(%{state | empty: empty}))
    pids = for pid <- members, node(pid) != node(), do: pid
    known = for {_, other} <- state.others, do: other.pid
    Enum.reduce(Enum.uniq(pids ++ known), state, &send_heartbeat(&2, &1, pool))
  end

  # The others have left this node out if it was stopped for so long.
  defp stopped(%{ticked: last} = state, now) do
    away? = last != nil and now - last > @missing * state.cluster.heartbeat
    generation = if away?, do: state.generation + 1, else: state.generation
    %{state | ticked: now, generation: generation}
  end

  # In a process of its own, which is suspended while the connection takes no data.
  defp send_heartbeat(state, pid, pool) do
    sender = state.sending[node(pid)]

    if sender != nil and Process.alive?(sender) do
      state
    else
      message = {:dspex_bridge_cluster, @version, self(), info(state, pool)}
      put_in(state.sending[node(pid)], spawn(fn -> :erlang.send(pid, message, [:noconnect]) end))
    end
  end

  defp info(state, pool) do
    %{
      incarnation: state.cluster.incarnation,
      ready: ready?(state),
      workers: if(pool, do: tuple_size(pool.slots), else: 0)
    }
  end

  # A worker that has ended is followed by another one in less time than three heartbeats.
  defp ready?(state), do: state.empty < @missing

  defp missed(state) do
    others = Map.new(state.others, fn {node, other} -> {node, missed(state, node, other)} end)
    silent = for {_, %{missed: missed, pid: pid}} <- others, missed > @missing, do: pid
    joined(%{state | others: others, awaited: state.awaited -- silent})
  end

  defp missed(state, node, %{missed: @missing, line: line} = other) when line != nil do
    cut(line)
    report(state, node, :hung)
    %{other | missed: @missing + 1, line: nil}
  end

  defp missed(_state, _node, other), do: %{other | missed: other.missed + 1}

  defp heard(state, node, pid, info) do
    case state.others[node] do
      %{pid: ^pid, line: line} = other when line != nil ->
        put_in(state.others[node], %{other | missed: 0, info: info})

      known ->
        if known == nil or known.pid != pid, do: Process.monitor(pid)
        line = (known && known.line) || line(node)
        report(state, node, :joined)
        other = %{pid: pid, line: line, missed: 0, info: info}
        others = Map.put(state.others, node, other)
        state = %{state | others: others, generation: state.generation + 1}
        send_heartbeat(state, pid, Pool.get(state.pool))
    end
  end

  defp answered(state, pid), do: joined(%{state | awaited: List.delete(state.awaited, pid)})

  defp stranger(state, node, version) do
    unless node in state.strangers do
      Logger.warning(
        "#{inspect(state.pool)}: the pool on #{node} speaks version #{inspect(version)} of the " <>
          "cluster's protocol, this one version #{@version}: they give each other no calls"
      )
    end

    %{state | strangers: Enum.uniq([node | state.strangers])}
  end

  defp gone(state, node, pid, reason) do
    case state.others[node] do
      %{pid: ^pid, line: line} ->
        # While the node is connected it still answers what it was asked.
        if reason == :noconnection, do: line && cut(line)
        report(state, node, if(reason == :noconnection, do: :lost, else: :left))
        %{state | others: Map.delete(state.others, node)}

      _ ->
        state
    end
  end

  # Lines

  defp line(node) do
    spawn(fn ->
      Node.monitor(node, true)
      receive do: (_nodedown_or_cut -> :ok)
    end)
  end

  defp cut(line), do: send(line, :cut)

  # What callers see

  defp publish(state) do
    live =
      for {node, %{line: line, info: info}} <- state.others, line != nil, do: {node, line, info}

    ready = for {node, _, %{ready: true}} <- live, do: node
    own = if ready?(state) or ready == [], do: [node()], else: []

    view = %View{
      ring: Ring.new(own ++ ready),
      lines: Map.new(live, fn {node, line, _} -> {node, line} end),
      incarnations: Map.new(live, fn {node, _, info} -> {node, info.incarnation} end),
      generation: state.generation
    }

    if view != View.get(state.pool), do: View.put(state.pool, view)
    state
  end

  defp report(state, node, event) do
    Logger.info("#{inspect(state.pool)}: the pool on #{node}: #{event}")
    Telemetry.cluster(%{pool: state.pool, node: node, event: event})
  end

  @impl true
  def terminate(_reason, state), do: View.erase(state.pool)
end
