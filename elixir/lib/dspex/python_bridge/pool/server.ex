defmodule DSPex.PythonBridge.Pool.Server do
  @moduledoc """
  The process that keeps the slots of a pool: starts and replaces workers, adds and removes some with
  the load, and ends those that are worn out. Calls do not go through it; a caller asks it only while no
  worker takes calls.

  When a worker ends, another one is started at once, unless `DSPex.PythonBridge.Pool.CrashLoop` says
  later.
  """

  use GenServer

  alias DSPex.PythonBridge.{Connection, Error, Pool, Telemetry}
  alias DSPex.PythonBridge.Pool.{Care, Roster, Slot, Template, Waiting}

  @tick 1_000

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

  @doc "Starts a successor of a worker, which ends when its sessions have ended."
  @spec succeed(pid(), pid()) :: :ok
  def succeed(server, owner), do: GenServer.cast(server, {:succeed, owner})

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

  @impl true
  def init(context) do
    Process.flag(:trap_exit, true)
    Telemetry.load()
    # Workers of an earlier server, which has failed: their states are not known any more.
    for {_, owner, _, _} <- DynamicSupervisor.which_children(context.supervisor), is_pid(owner) do
      Process.exit(owner, :kill)
    end

    pool = %{context.pool | server: self()}
    Pool.put(pool)
    Process.send_after(self(), :tick, @tick)
    address = if context.template, do: Template.subscribe(context.template), else: :own
    state = struct!(Roster, %{context | pool: pool})
    {:ok, %{state | address: address, sweep_at: Connection.now()}, {:continue, :fill}}
  end

  @impl true
  def handle_continue(:fill, state), do: {:noreply, Roster.fill(state)}

  # Questions

  @impl true
  def handle_call({:await, deadline}, from, state) do
    if Roster.ready?(state),
      do: {:reply, {:ok, state.pool}, state},
      else: {:noreply, Roster.wait(state, :any, from, deadline)}
  end

  def handle_call({:start_for, session_id, deadline}, from, state) do
    case Roster.of_session(state, session_id) do
      %{state: :ready} = slot ->
        {:reply, {:ok, slot.connection}, state}

      %{} = slot ->
        {:noreply, Roster.wait(state, slot.number, from, deadline)}

      nil ->
        case Roster.start_for(state, session_id, from, deadline) do
          {:ok, state} -> {:noreply, state}
          {:error, error} -> {:reply, {:error, error}, state}
        end
    end
  end

  def handle_call(:first, from, state) do
    cond do
      Roster.ready?(state) -> {:reply, :ok, state}
      state.failure -> {:reply, {:error, state.failure}, state}
      true -> {:noreply, %{state | first: [from | state.first]}}
    end
  end

  def handle_call({:described, about}, _from, state) do
    pool = Map.merge(state.pool, about)
    Pool.put(pool)
    {:reply, :ok, %{state | pool: pool}}
  end

  def handle_call(:slots, _from, state) do
    {:reply, {Map.values(state.slots), state.failure}, state}
  end

  @impl true
  def handle_cast({:replace, owner, error}, state) do
    case Roster.by_owner(state, owner) do
      %{state: from} = slot when from in [:ready, :ejected] ->
        {:noreply, Roster.act(state, slot, {:end, error})}

      slot ->
        {:noreply, Roster.replace_soon(state, slot)}
    end
  end

  def handle_cast({:succeed, owner}, state) do
    case Roster.by_owner(state, owner) do
      %{state: :ready, session: nil, successor?: false} = slot ->
        {:noreply, Roster.act(state, slot, {:succeed, :uncertain})}

      slot ->
        {:noreply, Roster.replace_soon(state, slot)}
    end
  end

  def handle_cast({:fault, owner, error}, state) do
    case Roster.by_owner(state, owner) do
      %{state: :ready} = slot -> {:noreply, Roster.fault(state, slot, error)}
      _ -> {:noreply, state}
    end
  end

  def handle_cast({:ended, session_id}, state) do
    case Roster.of_session(state, session_id) do
      nil -> {:noreply, state}
      slot -> {:noreply, Roster.act(state, slot, {:drain, :session_ended})}
    end
  end

  def handle_cast(:renew, %{template: nil} = state), do: {:noreply, Roster.renewed(state)}

  def handle_cast(:renew, state) do
    Template.renew(state.template)
    {:noreply, %{state | renewing?: true}}
  end

  # Events

  @impl true
  def handle_info({:started, owner, connection}, state) do
    case Roster.by_owner(state, owner) do
      %{state: :starting} = slot -> {:noreply, Roster.ready(state, slot, connection)}
      _ -> {:noreply, state}
    end
  end

  def handle_info({:DOWN, _, :process, owner, reason}, state) do
    case Roster.by_owner(state, owner) do
      nil -> {:noreply, state}
      slot -> {:noreply, Roster.gone(state, slot, reason)}
    end
  end

  def handle_info({:template, address}, state), do: {:noreply, Roster.template(state, address)}
  def handle_info(:grow, state), do: {:noreply, Roster.grow(state)}
  def handle_info(:start, state), do: {:noreply, Roster.fill(%{state | start_timer: nil})}

  def handle_info({:late, from}, state) do
    reply = {:error, too_late(state.failure)}
    {:noreply, %{state | waiting: Waiting.late(state.waiting, from, reply)}}
  end

  def handle_info(:tick, state) do
    Process.send_after(self(), :tick, @tick)
    Roster.may_grow(state)
    {:noreply, state |> Roster.tend() |> Roster.sweep() |> Roster.fill()}
  end

  # Answers to questions of `Care`
  def handle_info({:care, number, answer, requests}, state) do
    case state.slots[number] do
      nil -> {:noreply, state}
      slot -> {:noreply, Roster.answered(state, Slot.without(slot, requests), answer)}
    end
  end

  def handle_info({:probe, number}, state) do
    with %{state: :ejected} = slot <- state.slots[number], do: Care.probe(slot)
    {:noreply, state}
  end

  def handle_info(_message, state), do: {:noreply, state}

  defp too_late(nil), do: Error.new(:deadline_exceeded, "no worker has started in time")

  defp too_late(failure) do
    %{failure | message: "no worker has started in time; last failure: #{failure.message}"}
  end

  @impl true
  def terminate(_reason, state), do: Pool.erase(state.pool.name, self())

  @doc false
  @spec format_status(map()) :: map()
  def format_status(status), do: Map.replace(status, :message, :hidden)
end
