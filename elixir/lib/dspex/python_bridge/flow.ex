defmodule DSPex.PythonBridge.Flow do
  @moduledoc """
  Flow control for one stream: counts the events that the consumer has not read yet, and asks the
  worker to pause and to resume.

  Two processes use the same flow. The owner of the port calls `arrived/3` and, at intervals,
  `resume/3`; the consumer calls `taken/3`. A request that the port does not take at once is
  tried again at the next opportunity.
  """

  alias DSPex.PythonBridge.{Connection, OpenCall}

  # Unread events above which the worker is asked to pause, and below which it may resume.
  @pause_above 256
  @resume_below 128

  # Slots of the atomics.
  @unread 1
  @state 2

  # States of the worker, as this end knows them.
  @sending 0
  @paused 1
  @resuming 2

  @type t :: :atomics.atomics_ref()

  @doc "Returns the flow of a new stream."
  @spec new() :: t()
  def new, do: :atomics.new(2, [])

  @doc """
  Counts an event that was sent to the consumer, and pauses the worker if there are too many.
  """
  @spec arrived(t(), Connection.t(), integer()) :: :ok
  def arrived(flow, connection, id) do
    # Only the owner makes the state `@paused`, and only after it has sent the request, so no
    # `resume` can reach the worker before its `pause`.
    if :atomics.add_get(flow, @unread, 1) > @pause_above and
         :atomics.get(flow, @state) == @sending and
         OpenCall.notify(connection, "pause", id) do
      :atomics.put(flow, @state, @paused)
    end

    :ok
  end

  @doc "Counts an event that the consumer has read, and resumes the worker if few are left."
  @spec taken(t(), Connection.t(), integer()) :: :ok
  def taken(flow, connection, id) do
    :atomics.sub(flow, @unread, 1)
    resume(flow, connection, id)
  end

  @doc """
  Resumes a paused worker if few events are left.

  Called at intervals too, because the consumer may read its last event just before the owner
  marks the flow as paused.
  """
  @spec resume(t(), Connection.t(), integer()) :: :ok
  def resume(flow, connection, id) do
    # Both processes may try: the exchange lets only one of them send.
    if :atomics.get(flow, @state) == @paused and :atomics.get(flow, @unread) < @resume_below and
         :atomics.compare_exchange(flow, @state, @paused, @resuming) == :ok do
      state = if OpenCall.notify(connection, "resume", id), do: @sending, else: @paused
      :atomics.put(flow, @state, state)
    end

    :ok
  end
end
