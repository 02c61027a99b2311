defmodule DSPex.PythonBridge.Pool.Server do
  @moduledoc """
  The process that keeps the slots of a pool: starts and replaces workers, adds and removes some with
  the load, and ends those that are worn out. Calls do not go through it; a caller asks it only while no
  worker takes calls.

  When a worker ends, another one is started at once. If workers end within 10 s of their start again
  and again, the next start is delayed by 0.1 s, doubled each time up to 5 s, and after five of them in
  a row the pool does not grow.
  """

  use GenServer
  require Logger

  alias DSPex.PythonBridge.{Connection, Error, Owner, Pool, Statistics, Telemetry}
  alias DSPex.PythonBridge.Pool.{Care, Journal, Sessions, Slot, Template}

  # A worker that ends sooner after its start than this, in ms, may be one of many.
  @early 10_000
  # After so many of them in a row the pool does not grow.
  @no_growth 5
  @first_delay 100
  @longest_delay 5_000
  # Signals that come from outside of the worker.
  @from_outside ["SIGKILL", "SIGTERM"]
  @outside_statuses [137, 143]
  @tick 1_000
  # Less than a supervisor waits for a slot, ms.
  @stop_timeout 4_000

  # options: a function, because they may hold API keys. address: of the template; nil for ports.
  # early: how many workers in a row have ended early. waiting: callers without a worker.
  @enforce_keys [:pool, :own, :options, :supervisor, :template]
  defstruct @enforce_keys ++
              [
                :address,
                :failure,
                :start_timer,
                slots: %{},
                next: 1,
                early: 0,
                waiting: [],
                waiting_for: %{},
                first: [],
                swept: %{},
                sweep_at: 0
              ]

  @doc false
  @spec start_link(map()) :: GenServer.on_start()
  def start_link(context), do: GenServer.start_link(__MODULE__, context)

  @doc "Waits until a worker takes calls. Returns the pool, or why there is no worker."
  @spec await(Pool.t() | pid(), integer() | :infinity) :: {:ok, Pool.t()} | {:error, Error.t()}
  def await(server, deadline), do: ask(server, {:await, deadline}, deadline)

  @doc "Starts a worker for one session, and waits until it takes calls."
  @spec start_for(pid(), String.t(), integer() | :infinity) ::
          {:ok, Connection.t()} | {:error, Error.t()}
  def start_for(server, session_id, deadline),
    do: ask(server, {:start_for, session_id, deadline}, deadline)

  defp ask(server, question, deadline) do
    patience = if deadline == :infinity, do: :infinity, else: Connection.remaining(deadline) + 100
    GenServer.call(server, question, patience)
  catch
    :exit, {:timeout, _} ->
      {:error, Error.new(:deadline_exceeded, "no worker has started in time")}

    :exit, _reason ->
      {:error, Error.new(:worker_crashed, "the pool was stopped during the call")}
  end

  @doc "Waits until the first worker takes calls, or has failed to start."
  @spec first(pid()) :: :ok | {:error, Error.t()}
  def first(server), do: GenServer.call(server, :first, :infinity)

  @doc "Replaces a worker that cannot go on; its open calls are answered within the grace period."
  @spec replace(pid(), pid(), Error.t()) :: :ok
  def replace(server, owner, error), do: GenServer.cast(server, {:replace, owner, error})

  @doc "Reports a fault of a worker that runs, for instance that it has not answered."
  @spec fault(pid(), pid(), Error.t()) :: :ok
  def fault(server, owner, error), do: GenServer.cast(server, {:fault, owner, error})

  @doc "Ends the worker of a session that has ended, if it is its own."
  @spec ended(pid(), String.t()) :: :ok
  def ended(server, session_id), do: GenServer.cast(server, {:ended, session_id})

  @doc "Returns all slots."
  @spec slots(pid()) :: {[Slot.t()], Error.t() | nil}
  def slots(server), do: GenServer.call(server, :slots)

  # Starting

  @impl true
  def init(context) do
    Process.flag(:trap_exit, true)
    Telemetry.load()
    # Slots of an earlier server, which has failed: their state is not known any more.
    for {_, owner, _, _} <- DynamicSupervisor.which_children(context.supervisor), is_pid(owner) do
      Process.exit(owner, :kill)
    end

    state = struct!(__MODULE__, %{context | pool: %{context.pool | server: self()}})
    Pool.put(state.pool)
    Process.send_after(self(), :tick, @tick)
    {:ok, %{state | address: Template.subscribe(state.template)}, {:continue, :fill}}
  end

  @impl true
  def handle_continue(:fill, state), do: {:noreply, fill(state)}

  # Starts as many workers as the pool must have.
  defp fill(%{start_timer: timer} = state) when timer != nil, do: state
  defp fill(%{address: :starting} = state), do: state

  defp fill(state) do
    missing = state.own[:workers].first - Enum.count(shared(state), &(&1.state != :draining))
    Enum.reduce(1..missing//1, state, fn _, state -> elem(start(state, []), 0) end)
  end

  defp shared(state), do: for({_, %{session: nil} = slot} <- state.slots, do: slot)

  defp start(%{pool: pool} = state, fields) do
    number = state.next

    worker = %{
      name: {pool.name, number},
      counters: Statistics.for_name(pool.name),
      tools: pool.tools
    }

    spec = %{
      id: number,
      start: {Owner, :start_link, [worker, worker_options(state), self()]},
      restart: :temporary,
      shutdown: @stop_timeout
    }

    {:ok, owner} = DynamicSupervisor.start_child(state.supervisor, spec)

    slot =
      struct!(
        %Slot{
          pool: pool.name,
          number: number,
          owner: owner,
          monitor: Process.monitor(owner),
          session: nil,
          started: Connection.now(),
          limits: Slot.limits(state.own)
        },
        fields
      )

    {put_slot(%{state | next: number + 1}, slot), slot}
  end

  defp worker_options(%{pool: %{journal: journal}, options: options, address: address} = state) do
    {server, template, describe?} = {self(), state.template, state.pool.commands == %{}}

    fn ->
      options = options.()
      set_up = options[:setup]

      setup = fn connection ->
        result = set_up.(connection)
        if describe?, do: describe(server, connection)
        :ok = Journal.join(journal, connection)
        result
      end

      options |> Keyword.put(:setup, setup) |> Template.connected(template, address)
    end
  end

  defp describe(server, connection) do
    described = DSPex.PythonBridge.Bridge.call!(connection, :describe, %{}, 30_000)
    :ok = GenServer.call(server, {:commands, Pool.commands(described)}, :infinity)
  end

  defp put_slot(state, slot), do: put_in(state.slots[slot.number], slot)

  defp by_owner(state, owner) do
    Enum.find_value(state.slots, fn {_, slot} -> if slot.owner == owner, do: slot end)
  end

  # What callers see

  defp publish(state) do
    ready = for %{state: :ready} = slot <- shared(state), do: slot.connection
    pool = %{state.pool | slots: List.to_tuple(ready)}
    if pool != state.pool, do: Pool.put(pool)
    %{state | pool: pool}
  end

  @impl true
  def handle_call({:await, deadline}, from, state) do
    if Enum.any?(shared(state), &(&1.state == :ready)) do
      {:reply, {:ok, state.pool}, state}
    else
      {:noreply, %{state | waiting: [waiter(from, deadline) | state.waiting]}}
    end
  end

  def handle_call({:start_for, session_id, deadline}, from, state) do
    waiter = waiter(from, deadline)

    case Enum.find(state.slots, fn {_, slot} -> slot.session == session_id end) do
      {_, %{state: :ready} = slot} ->
        {:reply, {:ok, slot.connection}, state}

      {number, %{state: :starting}} ->
        {:noreply, update_in(state.waiting_for[number], &[waiter | &1 || []])}

      _ ->
        start_own(state, session_id, waiter)
    end
  end

  def handle_call(:first, from, state) do
    cond do
      Enum.any?(shared(state), &(&1.state == :ready)) -> {:reply, :ok, state}
      state.failure -> {:reply, {:error, state.failure}, state}
      true -> {:noreply, %{state | first: [from | state.first]}}
    end
  end

  def handle_call({:commands, commands}, _from, state) do
    pool = %{state.pool | commands: commands}
    Pool.put(pool)
    {:reply, :ok, %{state | pool: pool}}
  end

  def handle_call(:slots, _from, state) do
    {:reply, {Map.values(state.slots), state.failure}, state}
  end

  defp start_own(state, session_id, {from, _} = waiter) do
    count = Enum.count(state.slots, fn {_, slot} -> slot.session != nil end)

    cond do
      count >= state.own[:max_sessions] ->
        line = "there are #{count} sessions with a worker of their own (option :max_sessions)"
        {:reply, {:error, Error.new(:overloaded, line, %{"retry_after" => 1})}, state}

      state.early >= @no_growth ->
        {:reply, {:error, state.failure}, state}

      state.address == :starting ->
        Process.send_after(self(), {:again, from, session_id, waiter}, 5)
        {:noreply, state}

      true ->
        {state, slot} = start(state, session: session_id)
        {:noreply, put_in(state.waiting_for[slot.number], [waiter])}
    end
  end

  defp waiter(from, :infinity), do: {from, nil}

  defp waiter(from, deadline),
    do: {from, Process.send_after(self(), {:late, from}, Connection.remaining(deadline))}

  defp answer(waiters, reply) do
    for {from, timer} <- waiters do
      if timer, do: Process.cancel_timer(timer)
      GenServer.reply(from, reply)
    end
  end

  # Events

  @impl true
  def handle_info({:started, owner, connection}, state) do
    case by_owner(state, owner) do
      %{state: :starting} = slot -> {:noreply, ready(state, slot, connection)}
      _ -> {:noreply, state}
    end
  end

  def handle_info({:DOWN, _, :process, owner, reason}, state) do
    case by_owner(state, owner) do
      nil -> {:noreply, state}
      slot -> {:noreply, gone(state, slot, reason)}
    end
  end

  def handle_info({:template, address}, state) do
    case address do
      {:failed, error} -> {:noreply, failed_template(state, error)}
      address -> {:noreply, fill(%{state | address: address})}
    end
  end

  def handle_info(:grow, state) do
    slots = shared(state)
    count = Enum.count(slots, &(&1.state != :draining))
    starting? = Enum.any?(slots, &(&1.state == :starting))

    if count < state.own[:workers].last and not starting? and state.early < @no_growth and
         state.address != :starting do
      {:noreply, elem(start(state, []), 0)}
    else
      # Asked again with the next tick, so that callers do not send a message each.
      {:noreply, state}
    end
  end

  def handle_info(:start, state), do: {:noreply, fill(%{state | start_timer: nil})}

  def handle_info({:again, _from, session_id, waiter}, state) do
    with {:reply, reply, state} <- start_own(state, session_id, waiter) do
      answer([waiter], reply)
      {:noreply, state}
    end
  end

  def handle_info({:late, from}, state) do
    error = too_late(state.failure)
    mine? = fn {waiting, _} -> waiting == from end
    known = state.waiting ++ List.flatten(Map.values(state.waiting_for))
    if Enum.any?(known, mine?), do: GenServer.reply(from, {:error, error})
    waiting_for = Map.new(state.waiting_for, fn {n, list} -> {n, Enum.reject(list, mine?)} end)
    {:noreply, %{state | waiting: Enum.reject(state.waiting, mine?), waiting_for: waiting_for}}
  end

  def handle_info(:tick, state) do
    Process.send_after(self(), :tick, @tick)
    :atomics.put(state.pool.wants_more, 1, 0)
    {:noreply, state |> sweep() |> tend() |> fill()}
  end

  def handle_info({:probed, number, result}, state) do
    case state.slots[number] do
      nil -> {:noreply, state}
      slot -> {:noreply, apply_care(state, slot, Care.probed(slot, result))}
    end
  end

  def handle_info({:rss, number, rss}, state) do
    state = if state.slots[number], do: put_in(state.slots[number].rss, rss), else: state
    {:noreply, state}
  end

  def handle_info({:swept, number, known}, state) do
    {:noreply, put_in(state.swept[number], known)}
  end

  def handle_info({:probe, number}, state) do
    if slot = state.slots[number], do: Care.probe(slot)
    {:noreply, state}
  end

  def handle_info(_message, state), do: {:noreply, state}

  @impl true
  def handle_cast({:replace, owner, error}, state) do
    case by_owner(state, owner) do
      %{state: from} = slot when from in [:ready, :ejected] ->
        {:noreply, apply_care(state, slot, {:end, error})}

      _ ->
        {:noreply, state}
    end
  end

  def handle_cast({:fault, owner, error}, state) do
    case by_owner(state, owner) do
      %{state: :ready} = slot ->
        shares = shared(state)
        ejected = Enum.count(shares, &(&1.state == :ejected))
        may_eject? = slot.session == nil and 2 * (ejected + 1) <= length(shares)
        {:noreply, apply_care(state, slot, Care.fault(slot, error, may_eject?))}

      _ ->
        {:noreply, state}
    end
  end

  def handle_cast({:ended, session_id}, state) do
    case Enum.find(state.slots, fn {_, slot} -> slot.session == session_id end) do
      {_, %{state: :ready} = slot} ->
        {:noreply, apply_care(state, slot, {:drain, :session_ended})}

      _ ->
        {:noreply, state}
    end
  end

  # Transitions

  defp ready(state, slot, connection) do
    slot = Slot.move(%{slot | connection: connection}, :ready, :started)
    state = publish(put_slot(%{state | failure: nil}, slot))
    {own, waiting_for} = Map.pop(state.waiting_for, slot.number, [])
    answer(own, {:ok, connection})
    state = %{state | waiting_for: waiting_for}

    if slot.session == nil do
      answer(state.waiting, {:ok, state.pool})
      for from <- state.first, do: GenServer.reply(from, :ok)
      replaced = slot.replaces && state.slots[slot.replaces]
      state = %{state | waiting: [], first: []}
      if replaced, do: apply_care(state, replaced, {:drain, :replaced}), else: state
    else
      state
    end
  end

  defp gone(state, slot, reason) do
    error = error(reason)
    slot = Slot.move(slot, :gone, error)
    {own, waiting_for} = Map.pop(state.waiting_for, slot.number, [])
    answer(own, {:error, error})

    state = %{
      state
      | slots: Map.delete(state.slots, slot.number),
        swept: Map.delete(state.swept, slot.number),
        waiting_for: waiting_for
    }

    if expected?(reason), do: fill(state), else: state |> failed(slot, error) |> delayed()
  end

  defp expected?(reason), do: reason in [:normal, :shutdown]

  defp error({:shutdown, %Error{} = error}), do: error

  defp error(reason) when reason in [:normal, :shutdown],
    do: Error.new(:worker_crashed, "the worker was ended")

  defp error(_reason), do: Error.new(:worker_crashed, "the worker's owner has failed")

  defp failed(state, slot, error) do
    Logger.error(
      fn ->
        lines = String.split(error.details["stderr"] || "", "\n", trim: true)

        Enum.join(
          ["#{inspect(state.pool.name)}: slot #{slot.number}: #{error.message}" | lines],
          "\n    "
        )
      end,
      bridge: {state.pool.name, slot.number}
    )

    early? = Connection.now() - slot.started < @early
    never? = slot.connection == nil
    own? = never? or not from_outside?(error)
    early = if early? and own?, do: state.early + 1, else: if(early?, do: state.early, else: 0)
    if never?, do: for(from <- state.first, do: GenServer.reply(from, {:error, error}))
    first = if never?, do: [], else: state.first
    %{state | early: early, failure: error, first: first}
  end

  defp from_outside?(%{details: details}) do
    details["signal"] in @from_outside or details["exit_status"] in @outside_statuses
  end

  defp delayed(%{early: early} = state) when early < 2, do: fill(state)
  defp delayed(%{start_timer: timer} = state) when timer != nil, do: state

  defp delayed(state) do
    delay = min(@first_delay * Integer.pow(2, min(state.early - 2, 16)), @longest_delay)
    %{state | start_timer: Process.send_after(self(), :start, delay)}
  end

  defp failed_template(state, error) do
    for from <- state.first, do: GenServer.reply(from, {:error, error})
    %{state | failure: error, address: :starting, first: []}
  end

  defp too_late(nil), do: Error.new(:deadline_exceeded, "no worker has started in time")

  defp too_late(failure) do
    %{failure | message: "no worker has started in time; last failure: #{failure.message}"}
  end

  # Care

  defp tend(state) do
    now = Connection.now()

    state =
      if Enum.any?(shared(state), &(now - &1.started > @early and &1.state == :ready)),
        do: %{state | early: 0},
        else: state

    Enum.reduce(state.slots, state, fn {number, _}, state ->
      slot = state.slots[number]
      {slot, idle} = Slot.idle(slot, now)

      apply_care(
        put_slot(state, slot),
        slot,
        Care.due(slot, idle, spare(state), state.pool, state.own)
      )
    end)
  end

  # How many shared workers the pool has more than it must have.
  defp spare(state) do
    Enum.count(shared(state), &(&1.state == :ready)) - state.own[:workers].first
  end

  defp apply_care(state, slot, :nothing), do: put_slot(state, slot)
  defp apply_care(state, _slot, {:keep, slot}), do: put_slot(state, slot)

  defp apply_care(state, slot, {:eject, slot_after, delay, error}) do
    Process.send_after(self(), {:probe, slot.number}, delay)
    slot = if slot.state == :ready, do: Slot.move(slot_after, :ejected, error), else: slot_after
    publish(put_slot(state, slot))
  end

  defp apply_care(state, slot, :readmit) do
    publish(put_slot(state, Slot.move(%{slot | faults: []}, :ready, :probed)))
  end

  defp apply_care(state, slot, {:succeed, _reason}) do
    if state.address == :starting do
      state
    else
      {state, _} = start(put_slot(state, %{slot | successor?: true}), replaces: slot.number)
      state
    end
  end

  defp apply_care(state, %{state: :draining}, {:drain, _reason}), do: state

  defp apply_care(state, slot, {:drain, reason}) do
    slot =
      Slot.move(
        %{slot | drain_by: Connection.now() + state.own[:drain_timeout]},
        :draining,
        reason
      )

    state = publish(put_slot(state, slot))
    Care.drain(slot, state.pool)

    if Slot.open_calls(slot) == 0 and Sessions.count(state.pool.sessions, slot.owner) == 0,
      do: Care.stop(slot)

    state
  end

  defp apply_care(state, slot, {:end, error}) do
    slot = if slot.state == :draining, do: slot, else: Slot.move(slot, :draining, error)
    Care.stop(slot)
    fill(publish(put_slot(state, slot)))
  end

  defp sweep(state) do
    now = Connection.now()

    if now < state.sweep_at do
      state
    else
      for {number, %{connection: %Connection{}} = slot} <- state.slots do
        Care.sweep(slot, state.pool, state.swept[number])
      end

      %{state | sweep_at: now + state.own[:sweep_interval]}
    end
  end

  @impl true
  def terminate(_reason, state), do: Pool.erase(state.pool.name, self())

  @doc false
  @spec format_status(map()) :: map()
  def format_status(status), do: Map.replace(status, :message, :hidden)
end
