defmodule DSPex.PythonBridge.Pool.Care do
  @moduledoc """
  What a slot needs: whether it is due to end, to be replaced, or to be kept from calls for a while.
  Decides; `DSPex.PythonBridge.Pool.Server` acts. What has to ask a worker runs in a process of its
  own, and sends the server `{:care, number, answer, requests}`, with the number of requests that this
  has taken: they are no use of the worker.
  """

  alias DSPex.PythonBridge.{Call, Connection, Error, Pool}
  alias DSPex.PythonBridge.Pool.{Sessions, Slot}

  # Faults within so many ms after which a slot is ejected.
  @faults 5
  @fault_window 30_000
  # For how long, in ms: doubled each time, up to the maximum.
  @ejection 5_000
  @longest_ejection 60_000
  # Failed probes after which a worker is replaced.
  @failed_probes 3
  @probe_timeout 1_000
  @stop_timeout 5_000

  @type need ::
          :nothing
          | {:keep, Slot.t()}
          | {:succeed, atom()}
          | {:drain, atom()}
          | {:end, Error.t()}
          | {:eject, Slot.t(), pos_integer(), Error.t()}
          | :readmit

  @doc "Returns what a slot needs now. `spare`: how many workers there are more than there must be."
  @spec due(Slot.t(), non_neg_integer(), integer(), Pool.t(), keyword()) :: need()
  def due(%{state: :draining} = slot, _idle, _spare, pool, _own) do
    cond do
      Slot.open_calls(slot) > 0 and Connection.now() < slot.drain_by -> :nothing
      Connection.now() >= slot.drain_by -> stop(slot)
      Sessions.count(pool.sessions, slot.owner) == 0 -> stop(slot)
      true -> :nothing
    end
  end

  def due(%{state: :ready, session: nil} = slot, idle, spare, pool, own) do
    worn_out = Slot.worn_out(slot, own[:max_rss])
    if own[:max_rss], do: ask(slot, fn -> {:rss, rss(slot)} end)

    cond do
      worn_out && not slot.successor? -> {:succeed, worn_out}
      spare > 0 and idle >= own[:idle_timeout] and unused?(pool, slot) -> {:drain, :idle}
      true -> :nothing
    end
  end

  def due(%{state: :ready} = slot, idle, _spare, pool, own) do
    if idle >= own[:session_idle] do
      Sessions.remove(pool, slot.session, slot.owner)
      {:drain, :idle}
    else
      :nothing
    end
  end

  def due(_slot, _idle, _spare, _pool, _own), do: :nothing

  defp unused?(pool, slot), do: Sessions.count(pool.sessions, slot.owner) == 0

  @doc "Returns what a slot needs after a fault of its worker."
  @spec fault(Slot.t(), Error.t(), boolean()) :: need()
  def fault(slot, error, may_eject?) do
    now = Connection.now()
    faults = [now | Enum.filter(slot.faults, &(now - &1 < @fault_window))]
    slot = %{slot | faults: faults}
    if length(faults) >= @faults and may_eject?, do: eject(slot, error), else: {:keep, slot}
  end

  defp eject(slot, error) do
    delay = min(@ejection * Integer.pow(2, min(slot.ejections, 16)), @longest_ejection)
    {:eject, %{slot | ejections: slot.ejections + 1}, delay, error}
  end

  @doc "Asks a worker whether it answers; the answer is `{:probed, result}`."
  @spec probe(Slot.t()) :: pid()
  def probe(slot) do
    ask(slot, fn -> {:probed, Call.run(slot.connection, "ping", %{}, @probe_timeout)} end)
  end

  @doc "Returns what an ejected slot needs after a probe."
  @spec probed(Slot.t(), tuple()) :: need()
  def probed(%{state: :ejected} = slot, {:error, error}) do
    if slot.ejections >= @failed_probes, do: {:end, error}, else: eject(slot, error)
  end

  def probed(%{state: :ejected}, _answered), do: :readmit
  def probed(_slot, _result), do: :nothing

  @doc "Removes the sessions that a worker has dropped; the answer is `{:swept, known}`."
  @spec sweep(Slot.t(), Pool.t(), term()) :: pid()
  def sweep(slot, pool, known) do
    ask(slot, fn -> {:swept, Sessions.sweep(pool, slot.connection, known)} end)
  end

  @doc "Lets the durable sessions of a slot that drains go to other workers."
  @spec release_durable(Slot.t(), Pool.t()) :: term()
  def release_durable(slot, pool) do
    if pool.stored, do: spawn(fn -> Sessions.release_durable(pool, slot.connection) end)
  end

  defp rss(slot) do
    case Call.run(slot.connection, "get_stats", %{include: ["process"]}, @probe_timeout) do
      {:ok, %{"process" => %{"rss" => rss}}} -> rss
      _ -> nil
    end
  end

  defp ask(%{number: number} = slot, question) do
    server = self()
    requests = Slot.requests(slot)

    spawn(fn ->
      answer = question.()
      send(server, {:care, number, answer, Slot.requests(slot) - requests})
    end)
  end

  @doc "Ends a worker; its open calls get its grace period."
  @spec stop(Slot.t()) :: :nothing
  def stop(slot) do
    # In a process of its own: a worker that hangs takes seconds.
    spawn(fn ->
      try do
        GenServer.stop(slot.owner, :shutdown, @stop_timeout)
      catch
        :exit, _ -> Process.exit(slot.owner, :kill)
      end
    end)

    :nothing
  end
end
