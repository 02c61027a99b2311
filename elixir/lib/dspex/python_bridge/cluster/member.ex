defmodule DSPex.PythonBridge.Cluster.Member do
  @moduledoc """
  A pool as a member of its cluster: the process that finds the members of other nodes, in a `:pg` group,
  and exchanges heartbeats with them.

  A node takes part while its member's heartbeats arrive: one that has missed three is left out until the
  next one, because a node that hangs keeps its connections open for a minute. A node whose member speaks
  another version is left out, too, and one gets no calls whose pool has no worker, or does not have yet
  what the pools share (`DSPex.PythonBridge.Pool.Journal`).

  For each node that takes part there is a process, its line, which ends when the node is lost or its pool
  has been stopped. Who has called the node monitors its line.
  """

  use GenServer

  alias DSPex.PythonBridge.{Cluster, Connection, Pool}
  alias DSPex.PythonBridge.Cluster.{Heartbeat, Homes, Notices, Ring, Shared, View}

  # Of the messages between members, and what they call on each other's nodes. Members of different
  # versions leave each other out.
  @version 1
  @group :pools
  # Heartbeats in a row that may be missing, and looks at a pool without workers.
  @missing 3
  # Looks in a row at which others know more changes, before they are asked for them: most changes are on
  # their way.
  @behind 2
  # For the first look at the other nodes, and between two removals of old homes, ms.
  @discovery_timeout 1_000
  @sweep_interval 60_000

  # others: by node, `{pid, line, missed, info}`, where the line is `nil` while the node is left out.
  # sending: by node, the process that sends it a heartbeat. awaited: members that were there at the start
  # and have not answered, for the time of some heartbeats. joining: callers that wait for them.
  # incompatible: nodes of another version. empty: looks in a row at a pool without workers. behind: looks
  # in a row at which others knew more changes. sharing: the process that takes over what the others share,
  # if it runs; shared?: whether that has been done. generation: see `View`. looked: when, in ms.
  @enforce_keys [:pool, :cluster, :scope, :receiver, :generation]
  defstruct @enforce_keys ++
              [
                :sharing,
                :looked,
                others: %{},
                sending: %{},
                awaited: [],
                joining: [],
                incompatible: [],
                empty: @missing,
                behind: 0,
                shared?: false
              ]

  @doc false
  @spec start_link({Pool.t(), scope :: atom(), receiver :: atom()}) :: GenServer.on_start()
  def start_link({pool, scope, receiver}) do
    state = %__MODULE__{
      generation: new_generation(),
      pool: pool.name,
      cluster: pool.cluster,
      scope: scope,
      receiver: Process.whereis(receiver)
    }

    GenServer.start_link(__MODULE__, state, name: name(pool.name))
  end

  defp name(pool), do: Module.concat(pool, "Cluster.Member")

  @doc """
  Waits until a new member has heard of those that it has found, and has what they share or has not got
  it from them.
  """
  @spec await(atom()) :: :ok
  def await(pool), do: GenServer.call(name(pool), :await, :infinity)

  @doc "Returns the state of each node; see `DSPex.PythonBridge.SessionPoolV2.get_pool_status/1`."
  @spec nodes(atom()) :: %{node() => map()}
  def nodes(pool), do: GenServer.call(name(pool), :nodes)

  @impl true
  def init(state) do
    Process.flag(:trap_exit, true)
    # So that a busy node is not taken for one that hangs.
    Process.flag(:priority, :high)
    :ok = :pg.join(state.scope, @group, self())
    Process.send_after(self(), :sweep, @sweep_interval)
    {:ok, publish(state), {:continue, :discover}}
  end

  # The group fills up only after a while.
  @impl true
  def handle_continue(:discover, state) do
    question = [state.scope, @group]

    found =
      for {:ok, pids} <-
            :erpc.multicall(Node.list(), :pg, :get_local_members, question, @discovery_timeout),
          pid <- pids,
          do: pid

    Process.send_after(self(), :tick, state.cluster.heartbeat)
    Process.send_after(self(), :awaited, @missing * state.cluster.heartbeat)
    {:noreply, beat(look(%{state | awaited: found}), found)}
  end

  @impl true
  def handle_call(:await, from, state) do
    state = look(%{state | joining: [from | state.joining]})
    {:noreply, beat(state, [])}
  end

  def handle_call(:nodes, _from, state) do
    others =
      Map.new(state.others, fn {node, %{line: line, info: info}} ->
        {node, Heartbeat.status(info, line == nil)}
      end)

    {:reply, Map.put(others, node(), Heartbeat.status(info(state), false)), state}
  end

  @impl true
  def handle_info(:tick, state) do
    Process.send_after(self(), :tick, state.cluster.heartbeat)
    state = state |> stopped(Connection.now()) |> missed() |> look()
    {:noreply, beat(state, :pg.get_members(state.scope, @group))}
  end

  # Those that have not answered yet hang, or are gone.
  def handle_info(:awaited, state), do: {:noreply, publish(share(%{state | awaited: []}))}

  def handle_info({:dspex_bridge_cluster, @version, pid, info}, state) do
    {:noreply, state |> heard(node(pid), pid, info) |> answered(pid) |> share() |> publish()}
  end

  def handle_info({:dspex_bridge_cluster, version, pid, _info}, state) when is_pid(pid) do
    {:noreply, state |> incompatible(node(pid), version) |> answered(pid) |> share() |> publish()}
  end

  def handle_info({:DOWN, _, :process, pid, reason}, %{sharing: pid} = state) do
    shared? = state.shared? or reason == :normal
    state = released(%{state | sharing: nil, shared?: shared?, behind: 0})
    {:noreply, beat(publish(state), [])}
  end

  def handle_info({:DOWN, _, :process, pid, reason}, state) do
    {:noreply, state |> gone(node(pid), pid, reason) |> answered(pid) |> share() |> publish()}
  end

  def handle_info(:sweep, state) do
    Process.send_after(self(), :sweep, @sweep_interval)
    pool = Pool.get(state.pool)
    if pool, do: spawn(fn -> Homes.sweep(pool) end)
    {:noreply, state}
  end

  def handle_info(_message, state), do: {:noreply, state}

  # This node

  # The others have left this node out if it was stopped for so long.
  defp stopped(%{looked: last} = state, now) do
    if last != nil and now - last > @missing * state.cluster.heartbeat,
      do: %{state | looked: now, generation: new_generation(), shared?: false},
      else: %{state | looked: now}
  end

  defp look(state) do
    pool = Pool.get(state.pool)
    empty = if pool == nil or pool.slots == {}, do: state.empty + 1, else: 0
    behind = if behind?(state), do: state.behind + 1, else: 0
    publish(share(%{state | empty: empty, behind: behind}))
  end

  # A worker that has ended is followed by another one in less time than three heartbeats.
  defp ready?(state), do: state.empty < @missing and state.shared?

  defp behind?(state) do
    own = Cluster.history(state.cluster)
    Enum.any?(state.others, fn {_, other} -> other.line != nil and other.info.history > own end)
  end

  # Takes over what the others share, if this node has just joined, or has missed some of it.
  defp share(%{sharing: nil, awaited: []} = state) do
    live =
      for {node, %{line: line, info: info}} <- state.others,
          line != nil,
          do: {info.history, node, line}

    cond do
      live == [] -> released(%{state | shared?: true})
      state.shared? and state.behind < @behind -> released(state)
      true -> share(state, Enum.max(live))
    end
  end

  defp share(state), do: state

  defp share(state, {_history, node, line}) do
    {pool, link} = {state.pool, {line, state.others[node].info.receiver}}
    {pid, _} = spawn_monitor(fn -> Shared.take_over(pool, node, link) end)
    %{state | sharing: pid}
  end

  defp released(state) do
    for from <- state.joining, do: GenServer.reply(from, :ok)
    %{state | joining: []}
  end

  # Heartbeats

  defp beat(state, members) do
    known = for {_, other} <- state.others, do: other.pid
    pids = for pid <- Enum.uniq(members ++ known), node(pid) != node(), do: pid
    message = {:dspex_bridge_cluster, @version, self(), info(state)}
    Enum.reduce(pids, state, &send_beat(&2, &1, message))
  end

  # In a process of its own, which is suspended while the connection takes no data.
  defp send_beat(state, pid, message) do
    sender = state.sending[node(pid)]

    if sender != nil and Process.alive?(sender),
      do: state,
      else:
        put_in(
          state.sending[node(pid)],
          spawn(fn -> :erlang.send(pid, message, [:noconnect]) end)
        )
  end

  defp info(state),
    do: Heartbeat.new(state.pool, state.cluster, state.receiver, ready?(state))

  defp missed(state) do
    others = Map.new(state.others, fn {node, other} -> {node, missed(state, node, other)} end)
    %{state | others: others}
  end

  defp missed(state, node, %{missed: missed, line: line} = other) do
    if line != nil and missed * state.cluster.heartbeat >= patience(state, other.info) do
      cut(line)
      Notices.node(state.pool, node, :hung)
      %{other | missed: missed + 1, line: nil}
    else
      %{other | missed: missed + 1}
    end
  end

  # The other node may send its heartbeats at longer intervals.
  defp patience(state, theirs), do: @missing * max(state.cluster.heartbeat, theirs.heartbeat)

  defp heard(state, node, pid, info) do
    case state.others[node] do
      %{pid: ^pid, line: line} = other when line != nil ->
        put_in(state.others[node], %{other | missed: 0, info: info})

      known ->
        if known == nil or known.pid != pid, do: Process.monitor(pid)
        line = line(info.receiver)
        Notices.node(state.pool, node, :joined)

        if known == nil,
          do: Notices.settings(state.pool, node, state.cluster.settings, info.settings)

        other = %{pid: pid, line: line, missed: 0, info: info}
        state = %{state | others: Map.put(state.others, node, other)}
        behind = if behind?(state), do: @behind, else: state.behind
        beat(%{state | behind: behind}, [])
    end
  end

  defp answered(state, pid), do: %{state | awaited: List.delete(state.awaited, pid)}

  defp incompatible(state, node, version) do
    unless node in state.incompatible, do: Notices.version(state.pool, node, @version, version)
    %{state | incompatible: Enum.uniq([node | state.incompatible])}
  end

  defp gone(state, node, pid, reason) do
    case state.others[node] do
      %{pid: ^pid} ->
        Notices.node(state.pool, node, if(reason == :noconnection, do: :lost, else: :left))
        sending = Map.delete(state.sending, node)
        %{state | others: Map.delete(state.others, node), sending: sending}

      _ ->
        state
    end
  end

  # Lines

  # A pool that is being stopped answers what it was asked, so its line ends later than its member.
  defp line(receiver) do
    spawn(fn ->
      Process.monitor(receiver)
      receive do: (_ended_or_cut -> :ok)
    end)
  end

  defp cut(line), do: send(line, :cut)

  # What callers see

  defp publish(state) do
    live =
      for {node, %{line: line, info: info}} <- state.others, line != nil, do: {node, line, info}

    ready = for {node, _, %{ready: true}} <- live, do: node
    own = if ready?(state) or ready == [], do: [node()], else: []

    known = View.get(state.pool)
    added = (own ++ ready) -- Ring.nodes(known.ring)
    state = if added == [], do: state, else: %{state | generation: new_generation()}

    view = %View{
      ring: Ring.new(own ++ ready),
      links: Map.new(live, fn {node, line, info} -> {node, {line, info.receiver}} end),
      incarnations: Map.new(live, fn {node, _, info} -> {node, info.incarnation} end),
      generation: state.generation,
      behind?: state.behind >= @behind
    }

    if view != known, do: View.put(state.pool, view)
    state
  end

  # Also after a restart of this process it is none that the table of homes knows.
  defp new_generation, do: System.unique_integer([:positive, :monotonic])

  # Until the pool has ended, its callers on this node call the others, as those on other nodes do.
  @impl true
  def terminate(_reason, state), do: publish(%{state | shared?: false})
end
