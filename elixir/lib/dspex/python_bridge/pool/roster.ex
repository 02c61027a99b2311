defmodule DSPex.PythonBridge.Pool.Roster do
  @moduledoc """
  The slots of a pool, and what happens to them: the state of `DSPex.PythonBridge.Pool.Server`, in
  whose process all of this runs.
  """

  require Logger

  alias DSPex.PythonBridge.{Connection, Error, Pool}
  alias DSPex.PythonBridge.Pool.{Care, CrashLoop, Launch, Slot, Template, Waiting}

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

  @type t :: %__MODULE__{}

  # Slots

  @doc "Returns the slots that serve all sessions."
  @spec shared(t()) :: [Slot.t()]
  def shared(state), do: for({_, %{session: nil} = slot} <- state.slots, do: slot)

  @doc "Returns whether a worker takes calls of all sessions."
  @spec ready?(t()) :: boolean()
  def ready?(state), do: Enum.any?(shared(state), &(&1.state == :ready))

  @doc "Returns the slot of an owner, or `nil`."
  @spec by_owner(t(), pid()) :: Slot.t() | nil
  def by_owner(state, owner) do
    Enum.find_value(state.slots, fn {_, slot} -> if slot.owner == owner, do: slot end)
  end

  @doc "Returns the slot that serves only the given session, or `nil`."
  @spec of_session(t(), String.t()) :: Slot.t() | nil
  def of_session(state, session_id) do
    Enum.find_value(state.slots, fn {_, slot} ->
      if slot.session == session_id and slot.state != :draining, do: slot
    end)
  end

  @doc "Replaces a slot."
  @spec put(t(), Slot.t()) :: t()
  def put(state, slot), do: put_in(state.slots[slot.number], slot)

  # What callers see
  defp publish(state) do
    ready = for %{state: :ready} = slot <- shared(state), do: slot.connection
    pool = %{state.pool | slots: List.to_tuple(ready)}
    if pool != state.pool, do: Pool.put(pool)
    %{state | pool: pool}
  end

  # Starting

  @doc "Starts as many workers as the pool must have."
  @spec fill(t()) :: t()
  def fill(%{start_timer: timer} = state) when timer != nil, do: state
  def fill(%{address: :starting} = state), do: state

  def fill(state) do
    missing = state.own[:workers].first - Enum.count(shared(state), &(&1.state != :draining))
    Enum.reduce(1..missing//1, state, fn _, state -> elem(start(state, []), 0) end)
  end

  defp start(state, fields) do
    slot = Launch.start(state, state.next, fields)
    {put(%{state | next: state.next + 1}, slot), slot}
  end

  @doc "Starts one more worker, if the pool may have more and none is starting."
  @spec grow(t()) :: t()
  def grow(%{address: :starting} = state), do: state

  def grow(state) do
    slots = Enum.reject(shared(state), &(&1.state == :draining))
    starting? = Enum.any?(slots, &(&1.state == :starting))

    if length(slots) < state.own[:workers].last and not starting? and
         CrashLoop.may_grow?(state.loop),
       do: elem(start(state, []), 0),
       else: state
  end

  @doc "Lets the next caller that finds no free thread ask for one more worker."
  @spec may_grow(t()) :: :ok
  def may_grow(state), do: :atomics.put(state.pool.wants_more, 1, 0)

  @doc "Starts a worker for one session, and lets a caller wait for it."
  @spec start_for(t(), String.t(), GenServer.from(), integer() | :infinity) ::
          {:ok, t()} | {:error, Error.t()}
  def start_for(%{address: :starting} = state, session_id, from, deadline) do
    {:ok, wait(state, {:session, session_id}, from, deadline)}
  end

  def start_for(state, session_id, from, deadline) do
    with {:ok, state, slot} <- start_own(state, session_id) do
      {:ok, wait(state, slot.number, from, deadline)}
    end
  end

  defp start_own(state, session_id) do
    count = Enum.count(state.slots, fn {_, slot} -> slot.session != nil end)

    cond do
      count >= state.own[:max_sessions] ->
        line = "there are #{count} sessions with a worker of their own (option :max_sessions)"
        {:error, Error.new(:overloaded, line, %{"retry_after" => 1})}

      not CrashLoop.may_grow?(state.loop) ->
        {:error, state.failure}

      true ->
        {state, slot} = start(state, session: session_id)
        {:ok, state, slot}
    end
  end

  @doc "Lets a caller wait for a worker, see `DSPex.PythonBridge.Pool.Waiting`."
  @spec wait(t(), Waiting.what(), GenServer.from(), integer() | :infinity) :: t()
  def wait(state, what, from, deadline) do
    %{state | waiting: Waiting.add(state.waiting, what, from, deadline)}
  end

  defp answer(state, what, reply) do
    %{state | waiting: Waiting.answer(state.waiting, what, reply)}
  end

  @doc "Notes the address of the template, and starts what has waited for it."
  @spec template(t(), :starting | String.t() | {:failed, Error.t()}) :: t()
  def template(state, {:failed, error}) do
    for from <- state.first, do: GenServer.reply(from, {:error, error})
    %{state | failure: error, first: []}
  end

  def template(state, :starting), do: %{state | address: :starting}

  def template(state, address) do
    state = fill(%{state | address: address})
    state = if state.renewing?, do: renewed(state), else: state
    Enum.reduce(Waiting.sessions(state.waiting), state, &start_waiting/2)
  end

  defp start_waiting(session_id, state) do
    case start_own(state, session_id) do
      {:ok, state, slot} ->
        %{state | waiting: Waiting.move(state.waiting, {:session, session_id}, slot.number)}

      {:error, error} ->
        answer(state, {:session, session_id}, {:error, error})
    end
  end

  @doc "Gives each worker a successor."
  @spec renewed(t()) :: t()
  def renewed(state) do
    slots = for %{state: :ready, successor?: false} = slot <- shared(state), do: slot
    Enum.reduce(slots, %{state | renewing?: false}, &act(&2, &1, {:succeed, :renewed}))
  end

  # Workers that take calls, and that have ended

  @doc "Notes that the worker of a slot takes calls."
  @spec ready(t(), Slot.t(), Connection.t()) :: t()
  def ready(state, slot, connection) do
    slot = Slot.move(%{slot | connection: connection}, :ready, :started)
    state = %{state | failure: nil, loop: CrashLoop.started(state.loop)}
    state = publish(put(state, slot))
    may_grow(state)
    state = answer(state, slot.number, {:ok, connection})
    if slot.session, do: state, else: shared_ready(state, state.slots[slot.replaces])
  end

  defp shared_ready(state, replaced) do
    for from <- state.first, do: GenServer.reply(from, :ok)
    state = answer(%{state | first: []}, :any, {:ok, state.pool})
    if replaced, do: act(state, replaced, {:drain, :replaced}), else: state
  end

  @doc "Notes that the worker of a slot has ended, and starts another one."
  @spec gone(t(), Slot.t(), term()) :: t()
  def gone(state, slot, reason) do
    error = error(reason)
    slot = Slot.move(slot, :gone, error)
    {slots, swept} = {Map.delete(state.slots, slot.number), Map.delete(state.swept, slot.number)}
    state = answer(%{state | slots: slots, swept: swept}, slot.number, {:error, error})
    state = if slot.replaces, do: no_successor(state, state.slots[slot.replaces]), else: state

    if reason in [:normal, :shutdown],
      do: fill(state),
      else: state |> failed(slot, error) |> delayed()
  end

  defp no_successor(state, nil), do: state
  defp no_successor(state, slot), do: put(state, again(slot))

  @doc "Lets a slot that takes no calls yet, or does not do so at the moment, have a successor once it does."
  @spec replace_soon(t(), Slot.t() | nil) :: t()
  def replace_soon(state, %{state: from} = slot) when from in [:starting, :ejected],
    do: put(state, again(slot))

  def replace_soon(state, _slot), do: state

  # So that it is due to be replaced at the next look.
  defp again(slot), do: %{slot | successor?: false, limits: Map.put(slot.limits, :max_age, 0)}

  defp error({:shutdown, %Error{} = error}), do: error

  defp error(reason) when reason in [:normal, :shutdown] do
    Error.new(:worker_crashed, "the worker was ended")
  end

  defp error(_reason), do: Error.new(:worker_crashed, "the worker's owner has failed")

  defp failed(state, %{connection: nil} = slot, error) do
    log(state, slot, error)
    for from <- state.first, do: GenServer.reply(from, {:error, error})
    loop = CrashLoop.not_started(state.loop)

    if state.template && CrashLoop.suspicious?(loop),
      do: Template.replace(state.template, slot.address)

    %{state | failure: error, loop: loop, first: []}
  end

  defp failed(state, slot, error) do
    log(state, slot, error)
    now = Connection.now()

    # Nobody reports how a worker has ended whose template has ended before.
    loop =
      if slot.address == state.address,
        do: CrashLoop.ended(state.loop, now - slot.started, error, now),
        else: state.loop

    %{state | failure: error, loop: loop}
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

  # Care

  @doc "Gives each slot what it needs now."
  @spec tend(t()) :: t()
  def tend(state) do
    now = Connection.now()
    state = %{state | loop: CrashLoop.calm(state.loop, now)}

    Enum.reduce(Map.keys(state.slots), state, fn number, state ->
      {slot, idle} = Slot.idle(state.slots[number], now)
      act(put(state, slot), slot, Care.due(slot, idle, spare(state), state.pool, state.own))
    end)
  end

  # How many shared workers the pool has more than it must have.
  defp spare(state) do
    Enum.count(shared(state), &(&1.state == :ready)) - state.own[:workers].first
  end

  @doc "Notes a fault of a worker. Never more than half of the workers are ejected."
  @spec fault(t(), Slot.t(), Error.t()) :: t()
  def fault(state, slot, error) do
    slots = shared(state)
    ejected = Enum.count(slots, &(&1.state == :ejected))
    may_eject? = slot.session == nil and 2 * (ejected + 1) <= length(slots)
    act(state, slot, Care.fault(slot, error, may_eject?))
  end

  @doc "Notes what `DSPex.PythonBridge.Pool.Care` has found out about a slot."
  @spec answered(t(), Slot.t(), tuple()) :: t()
  def answered(state, slot, {:rss, rss}), do: put(state, %{slot | rss: rss})

  def answered(state, slot, {:swept, known}) do
    put_in(put(state, slot).swept[slot.number], known)
  end

  def answered(state, slot, {:probed, result}), do: act(state, slot, Care.probed(slot, result))

  @doc "Gives a slot what it needs."
  @spec act(t(), Slot.t(), Care.need()) :: t()
  def act(state, slot, :nothing), do: put(state, slot)
  def act(state, _slot, {:keep, slot}), do: put(state, slot)

  def act(state, _slot, {:eject, slot, delay, error}) do
    Process.send_after(self(), {:probe, slot.number}, delay)
    slot = if slot.state == :ready, do: Slot.move(slot, :ejected, error), else: slot
    publish(put(state, slot))
  end

  def act(state, slot, :readmit) do
    publish(put(state, Slot.move(%{slot | faults: []}, :ready, :probed)))
  end

  # Its successor first.
  def act(%{address: :starting} = state, slot, {:succeed, _reason}), do: put(state, again(slot))

  def act(state, slot, {:succeed, _reason}) do
    {state, _} = start(put(state, %{slot | successor?: true}), replaces: slot.number)
    state
  end

  def act(state, %{state: from} = slot, {:drain, reason}) when from in [:ready, :ejected] do
    drain_by = Connection.now() + state.own[:drain_timeout]
    slot = Slot.move(%{slot | drain_by: drain_by}, :draining, reason)
    Care.release_durable(slot, state.pool)
    publish(put(state, slot))
  end

  def act(state, _slot, {:drain, _reason}), do: state

  def act(state, slot, {:end, error}) do
    slot = if slot.state == :draining, do: slot, else: Slot.move(slot, :draining, error)
    Care.stop(slot)
    fill(publish(put(state, slot)))
  end

  @doc "Removes the sessions that workers have dropped, if it is time for that."
  @spec sweep(t()) :: t()
  def sweep(state) do
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
end
