defmodule DSPex.PythonBridge.Pool.Server do
  @moduledoc """
  The process that keeps the slots of a pool: starts and replaces workers, adds and removes some with
  the load, and ends those that are worn out. Calls do not go through it; a caller asks it only while no
  worker takes calls.

  When a worker ends, another one is started at once, unless `DSPex.PythonBridge.Pool.CrashLoop` says
  later.
  """

  use GenServer
  require Logger

  alias DSPex.PythonBridge.{Connection, Error, Pool, Telemetry}
  alias DSPex.PythonBridge.Pool.{Care, CrashLoop, Launch, Slot, Template, Waiting}

  @tick 1_000

  # options: a function, because they may hold API keys. address: of the template, `:starting` while it
  # has none; `:own` without a template. first: those who wait for the first start, also if it fails.
  # swept: see `Sessions.sweep/3`.
  @enforce_keys [:pool, :own, :options, :supervisor, :template]
  defstruct @enforce_keys ++
              [
                :address,
                :failure,
                :start_timer,
                :sweep_at,
                slots: %{},
                next: 1,
                loop: %CrashLoop{},
                renewing?: false,
                waiting: %{},
                first: [],
                swept: %{}
              ]

  @doc false
  @spec start_link(map()) :: GenServer.on_start()
  def start_link(context), do: GenServer.start_link(__MODULE__, context)

  @doc "Waits until a worker takes calls. Returns the pool, or why there is no worker."
  @spec await(pid(), integer() | :infinity) :: {:ok, Pool.t()} | {:error, Error.t()}
  def await(server, deadline), do: ask(server, {:await, deadline}, deadline)

  @doc "Starts a worker for one session, and waits until it takes calls."
  @spec start_for(pid(), String.t(), integer() | :infinity) ::
          {:ok, Connection.t()} | {:error, Error.t()}
  def start_for(server, session_id, deadline) do
    ask(server, {:start_for, session_id, deadline}, deadline)
  end

  defp ask(server, question, deadline) do
    patience = if deadline == :infinity, do: :infinity, else: Connection.remaining(deadline) + 100
    GenServer.call(server, question, patience)
  catch
    :exit, {:timeout, _} -> {:error, too_late(nil)}
    :exit, _ -> {:error, Error.new(:worker_crashed, "the pool was stopped during the call")}
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

  @doc "Starts a new template, and replaces each worker by one that it has forked."
  @spec renew(pid()) :: :ok
  def renew(server), do: GenServer.cast(server, :renew)

  @doc "Returns all slots, and why the last worker that failed has failed."
  @spec slots(pid()) :: {[Slot.t()], Error.t() | nil}
  def slots(server), do: GenServer.call(server, :slots)

  # Starting

  @impl true
  def init(context) do
    Process.flag(:trap_exit, true)
    Telemetry.load()
    # Workers of an earlier server, which has failed: their states are not known any more.
    for {_, owner, _, _} <- DynamicSupervisor.which_children(context.supervisor), is_pid(owner) do
      Process.exit(owner, :kill)
    end

    state = struct!(__MODULE__, %{context | pool: %{context.pool | server: self()}})
    Pool.put(state.pool)
    Process.send_after(self(), :tick, @tick)
    address = if state.template, do: Template.subscribe(state.template), else: :own
    {:ok, %{state | address: address, sweep_at: Connection.now()}, {:continue, :fill}}
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

  defp start(state, fields) do
    slot = Launch.start(state, state.next, fields)
    {put_slot(%{state | next: state.next + 1}, slot), slot}
  end

  defp put_slot(state, slot), do: put_in(state.slots[slot.number], slot)

  defp by_owner(state, owner) do
    Enum.find_value(state.slots, fn {_, slot} -> if slot.owner == owner, do: slot end)
  end

  defp of_session(state, session_id) do
    Enum.find_value(state.slots, fn {_, slot} ->
      if slot.session == session_id and slot.state != :draining, do: slot
    end)
  end

  # What callers see
  defp publish(state) do
    ready = for %{state: :ready} = slot <- shared(state), do: slot.connection
    pool = %{state.pool | slots: List.to_tuple(ready)}
    if pool != state.pool, do: Pool.put(pool)
    %{state | pool: pool}
  end

  # Questions

  @impl true
  def handle_call({:await, deadline}, from, state) do
    if ready?(state) do
      {:reply, {:ok, state.pool}, state}
    else
      {:noreply, wait(state, :any, from, deadline)}
    end
  end

  def handle_call({:start_for, session_id, deadline}, from, state) do
    case of_session(state, session_id) do
      %{state: :ready} = slot ->
        {:reply, {:ok, slot.connection}, state}

      %{} = slot ->
        {:noreply, wait(state, slot.number, from, deadline)}

      nil ->
        with {:ok, state, slot} <- start_own(state, session_id),
             do: {:noreply, wait(state, slot.number, from, deadline)},
             else: ({:error, error} -> {:reply, {:error, error}, state})
    end
  end

  def handle_call(:first, from, state) do
    cond do
      ready?(state) -> {:reply, :ok, state}
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

  defp ready?(state), do: Enum.any?(shared(state), &(&1.state == :ready))

  defp wait(state, what, from, deadline) do
    %{state | waiting: Waiting.add(state.waiting, what, from, deadline)}
  end

  defp start_own(state, session_id) do
    count = Enum.count(state.slots, fn {_, slot} -> slot.session != nil end)

    cond do
      count >= state.own[:max_sessions] ->
        line = "there are #{count} sessions with a worker of their own (option :max_sessions)"
        {:error, Error.new(:overloaded, line, %{"retry_after" => 1})}

      not CrashLoop.may_grow?(state.loop) ->
        {:error, state.failure}

      state.address == :starting ->
        {:error, Error.new(:overloaded, "the template is starting", %{"retry_after" => 0.5})}

      true ->
        {state, slot} = start(state, session: session_id)
        {:ok, state, slot}
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

  def handle_info({:template, {:failed, error}}, state) do
    for from <- state.first, do: GenServer.reply(from, {:error, error})
    {:noreply, %{state | failure: error, first: []}}
  end

  def handle_info({:template, address}, state) do
    state = %{state | address: address}

    {:noreply,
     fill(if(state.renewing? and address != :starting, do: renewed(state), else: state))}
  end

  def handle_info(:grow, state) do
    slots = shared(state)
    count = Enum.count(slots, &(&1.state != :draining))
    starting? = Enum.any?(slots, &(&1.state == :starting))

    if count < state.own[:workers].last and not starting? and state.address != :starting and
         CrashLoop.may_grow?(state.loop) do
      {:noreply, elem(start(state, []), 0)}
    else
      {:noreply, state}
    end
  end

  def handle_info(:start, state), do: {:noreply, fill(%{state | start_timer: nil})}

  def handle_info({:late, from}, state) do
    {:noreply,
     %{state | waiting: Waiting.late(state.waiting, from, {:error, too_late(state.failure)})}}
  end

  def handle_info(:tick, state) do
    Process.send_after(self(), :tick, @tick)
    may_grow(state)
    {:noreply, state |> sweep() |> tend() |> fill()}
  end

  # Answers to questions of `Care`.
  def handle_info({:care, number, answer}, state) do
    case state.slots[number] do
      nil -> {:noreply, state}
      slot -> {:noreply, answered(state, slot, answer)}
    end
  end

  def handle_info({:probe, number}, state) do
    with %{state: :ejected} = slot <- state.slots[number], do: Care.probe(slot)
    {:noreply, state}
  end

  def handle_info(_message, state), do: {:noreply, state}

  defp answered(state, slot, {:rss, rss}), do: put_slot(state, %{slot | rss: rss})
  defp answered(state, slot, {:swept, known}), do: put_in(state.swept[slot.number], known)
  defp answered(state, slot, {:probed, result}), do: act(state, slot, Care.probed(slot, result))

  @impl true
  def handle_cast({:replace, owner, error}, state) do
    case by_owner(state, owner) do
      %{state: from} = slot when from in [:ready, :ejected] ->
        {:noreply, act(state, slot, {:end, error})}

      _ ->
        {:noreply, state}
    end
  end

  def handle_cast({:fault, owner, error}, state) do
    case by_owner(state, owner) do
      %{state: :ready} = slot ->
        {:noreply, act(state, slot, Care.fault(slot, error, may_eject?(state, slot)))}

      _ ->
        {:noreply, state}
    end
  end

  def handle_cast({:ended, session_id}, state) do
    case of_session(state, session_id) do
      %{state: :ready} = slot -> {:noreply, act(state, slot, {:drain, :session_ended})}
      _ -> {:noreply, state}
    end
  end

  def handle_cast(:renew, state) do
    if state.template do
      Template.renew(state.template)
      {:noreply, %{state | renewing?: true}}
    else
      {:noreply, renewed(state)}
    end
  end

  defp renewed(state) do
    slots = for %{state: :ready, successor?: false} = slot <- shared(state), do: slot
    Enum.reduce(slots, %{state | renewing?: false}, &act(&2, &1, {:succeed, :renewed}))
  end

  # Never more than half of the workers.
  defp may_eject?(_state, %{session: session}) when session != nil, do: false

  defp may_eject?(state, _slot) do
    slots = shared(state)
    2 * (Enum.count(slots, &(&1.state == :ejected)) + 1) <= length(slots)
  end

  # Transitions

  defp ready(state, slot, connection) do
    slot = Slot.move(%{slot | connection: connection}, :ready, :started)
    state = publish(put_slot(%{state | failure: nil, loop: CrashLoop.started(state.loop)}, slot))
    may_grow(state)
    state = %{state | waiting: Waiting.answer(state.waiting, slot.number, {:ok, connection})}
    if slot.session, do: state, else: shared_ready(state, state.slots[slot.replaces])
  end

  defp shared_ready(state, replaced) do
    for from <- state.first, do: GenServer.reply(from, :ok)
    state = %{state | first: [], waiting: Waiting.answer(state.waiting, :any, {:ok, state.pool})}
    if replaced, do: act(state, replaced, {:drain, :replaced}), else: state
  end

  # Lets the next caller that finds no free thread ask for a further worker.
  defp may_grow(state), do: :atomics.put(state.pool.wants_more, 1, 0)

  defp gone(state, slot, reason) do
    error = error(reason)
    slot = Slot.move(slot, :gone, error)

    state = %{
      state
      | slots: Map.delete(state.slots, slot.number),
        swept: Map.delete(state.swept, slot.number),
        waiting: Waiting.answer(state.waiting, slot.number, {:error, error})
    }

    state = if slot.replaces, do: no_successor(state, state.slots[slot.replaces]), else: state

    if reason in [:normal, :shutdown],
      do: fill(state),
      else: state |> failed(slot, error) |> delayed()
  end

  defp no_successor(state, nil), do: state
  defp no_successor(state, slot), do: put_slot(state, %{slot | successor?: false})

  defp error({:shutdown, %Error{} = error}), do: error

  defp error(reason) when reason in [:normal, :shutdown],
    do: Error.new(:worker_crashed, "the worker was ended")

  defp error(_reason), do: Error.new(:worker_crashed, "the worker's owner has failed")

  defp failed(state, slot, error) do
    log(state, slot, error)
    started? = slot.connection != nil
    loop = CrashLoop.failed(state.loop, Connection.now() - slot.started, started?, error)
    state = %{state | failure: error, loop: loop}
    if started?, do: state, else: failed_start(state, error)
  end

  defp failed_start(state, error) do
    for from <- state.first, do: GenServer.reply(from, {:error, error})
    if state.template && CrashLoop.suspicious?(state.loop), do: Template.replace(state.template)
    %{state | first: []}
  end

  defp log(state, slot, error) do
    Logger.error(
      fn ->
        lines = String.split(error.details["stderr"] || "", "\n", trim: true)
        line = "#{inspect(state.pool.name)}: slot #{slot.number}: #{error.message}"
        Enum.join([line | lines], "\n    ")
      end,
      bridge: {state.pool.name, slot.number}
    )
  end

  defp delayed(%{start_timer: timer} = state) when timer != nil, do: state

  defp delayed(state) do
    case CrashLoop.delay(state.loop) do
      0 -> fill(state)
      delay -> %{state | start_timer: Process.send_after(self(), :start, delay)}
    end
  end

  defp too_late(nil), do: Error.new(:deadline_exceeded, "no worker has started in time")

  defp too_late(failure) do
    %{failure | message: "no worker has started in time; last failure: #{failure.message}"}
  end

  # Care

  defp tend(state) do
    now = Connection.now()

    Enum.reduce(Map.keys(state.slots), state, fn number, state ->
      {slot, idle} = Slot.idle(state.slots[number], now)
      act(put_slot(state, slot), slot, Care.due(slot, idle, spare(state), state.pool, state.own))
    end)
  end

  # How many shared workers the pool has more than it must have.
  defp spare(state) do
    Enum.count(shared(state), &(&1.state == :ready)) - state.own[:workers].first
  end

  defp act(state, slot, :nothing), do: put_slot(state, slot)
  defp act(state, _slot, {:keep, slot}), do: put_slot(state, slot)

  defp act(state, _slot, {:eject, slot, delay, error}) do
    Process.send_after(self(), {:probe, slot.number}, delay)
    slot = if slot.state == :ready, do: Slot.move(slot, :ejected, error), else: slot
    publish(put_slot(state, slot))
  end

  defp act(state, slot, :readmit) do
    publish(put_slot(state, Slot.move(%{slot | faults: []}, :ready, :probed)))
  end

  # Its successor first.
  defp act(%{address: :starting} = state, _slot, {:succeed, _reason}), do: state

  defp act(state, slot, {:succeed, _reason}) do
    {state, _} = start(put_slot(state, %{slot | successor?: true}), replaces: slot.number)
    state
  end

  defp act(state, %{state: from} = slot, {:drain, reason}) when from in [:ready, :ejected] do
    drain_by = Connection.now() + state.own[:drain_timeout]
    slot = Slot.move(%{slot | drain_by: drain_by}, :draining, reason)
    Care.release_durable(slot, state.pool)
    publish(put_slot(state, slot))
  end

  defp act(state, _slot, {:drain, _reason}), do: state

  defp act(state, slot, {:end, error}) do
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
