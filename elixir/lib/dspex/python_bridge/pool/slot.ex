defmodule DSPex.PythonBridge.Pool.Slot do
  @moduledoc """
  The life of one slot of a pool: one worker, from its start to its end.

  | state | the slot |
  |---|---|
  | `:starting` | waits for its worker, and gives it the state that all workers share |
  | `:ready` | takes calls |
  | `:ejected` | takes only the calls of its sessions, because its worker does not answer; a probe decides what comes next |
  | `:draining` | takes only the calls of its sessions, and ends when it has none |
  | `:gone` | has ended; its number is not used again |
  """

  alias DSPex.PythonBridge.{Connection, Error, Telemetry}

  @transitions %{
    starting: [:ready, :gone],
    ready: [:ejected, :draining, :gone],
    ejected: [:ready, :draining, :gone],
    draining: [:gone]
  }

  # Of the limits of a worker's life, so that slots that started together do not end together.
  @jitter 0.1

  @enforce_keys [:pool, :number, :owner, :started]
  # session: the only one that the worker serves. address: of the template. replaces: the number of the slot that drains when this one is ready. faults: ms of recent ones.
  # idle: since when, in ms, and at how many requests. drain_by: ms.
  defstruct @enforce_keys ++
              [
                :address,
                :connection,
                :session,
                :replaces,
                :idle,
                :drain_by,
                :rss,
                state: :starting,
                successor?: false,
                faults: [],
                ejections: 0,
                limits: %{}
              ]

  @type state :: :starting | :ready | :ejected | :draining | :gone
  @type t :: %__MODULE__{number: pos_integer(), state: state()}

  @doc "Returns the states that may follow a state."
  @spec transitions() :: %{state() => [state()]}
  def transitions, do: @transitions

  @doc "Moves a slot to another state and reports it. `reason` is an error or an atom."
  @spec move(t(), state(), Error.t() | atom()) :: t()
  def move(%{state: from} = slot, to, reason) do
    to in Map.get(@transitions, from, []) ||
      raise ArgumentError, "a slot cannot go from #{from} to #{to}"

    metadata = %{pool: slot.pool, slot: slot.number, from: from, to: to, reason: reason}
    Telemetry.pool(:slot, %{age: Connection.now() - slot.started}, metadata)
    %{slot | state: to}
  end

  @doc "Returns the limits of one worker: each option, changed at random by up to 10 %."
  @spec limits(keyword()) :: %{optional(atom()) => pos_integer()}
  def limits(options) do
    for key <- [:max_requests, :max_age], limit = options[key], into: %{} do
      {key, max(1, round(limit * (1 - @jitter + 2 * @jitter * :rand.uniform())))}
    end
  end

  @doc "Returns which limit of its life the slot has reached, or `nil`."
  @spec worn_out(t(), pos_integer() | nil) :: :max_requests | :max_age | :max_rss | nil
  def worn_out(%{limits: limits} = slot, max_rss) do
    cond do
      requests(slot) >= limits[:max_requests] -> :max_requests
      Connection.now() - slot.started >= limits[:max_age] -> :max_age
      is_integer(slot.rss) and slot.rss >= max_rss -> :max_rss
      true -> nil
    end
  end

  @doc "Returns how many requests the worker has got."
  @spec requests(t()) :: non_neg_integer()
  def requests(%{connection: nil}), do: 0
  def requests(%{connection: connection}), do: :atomics.get(connection.ids, 1)

  @doc "Returns how many calls of the slot have no reply yet."
  @spec open_calls(t()) :: non_neg_integer()
  def open_calls(%{connection: nil}), do: 0
  def open_calls(%{connection: connection}), do: Connection.open_calls(connection.table)

  @doc "Notes whether the slot has been used, and returns it with the ms for which it has not."
  @spec idle(t(), integer()) :: {t(), non_neg_integer()}
  def idle(slot, now) do
    requests = requests(slot)

    case slot.idle do
      {since, ^requests} ->
        if open_calls(slot) == 0, do: {slot, now - since}, else: {used(slot, now, requests), 0}

      _ ->
        {used(slot, now, requests), 0}
    end
  end

  defp used(slot, now, requests), do: %{slot | idle: {now, requests}}

  @doc "Forgets requests of the pool itself, which are no use of the worker."
  @spec without(t(), non_neg_integer()) :: t()
  def without(%{idle: {since, requests}} = slot, own), do: %{slot | idle: {since, requests + own}}
  def without(slot, _own), do: slot
end
