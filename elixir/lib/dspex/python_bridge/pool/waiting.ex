defmodule DSPex.PythonBridge.Pool.Waiting do
  @moduledoc """
  Callers that wait for a worker: for any, for that of one slot, or for one that will be started for a
  session. Each gets one answer, when the worker takes calls or at its deadline. Belongs to the pool's server, which gets `{:late, from}`.
  """

  alias DSPex.PythonBridge.Connection

  @type what :: :any | pos_integer() | {:session, String.t()}
  @type t :: %{GenServer.from() => {what(), reference() | nil}}

  @doc "Adds a caller."
  @spec add(t(), what(), GenServer.from(), integer() | :infinity) :: t()
  def add(waiting, what, from, :infinity), do: Map.put(waiting, from, {what, nil})

  def add(waiting, what, from, deadline) do
    timer = Process.send_after(self(), {:late, from}, Connection.remaining(deadline))
    Map.put(waiting, from, {what, timer})
  end

  @doc "Answers all who wait for the same."
  @spec answer(t(), what(), term()) :: t()
  def answer(waiting, what, reply) do
    {answered, waiting} = Enum.split_with(waiting, fn {_, {awaited, _}} -> awaited == what end)

    for {from, {_, timer}} <- answered do
      if timer, do: Process.cancel_timer(timer)
      GenServer.reply(from, reply)
    end

    Map.new(waiting)
  end

  @doc "Lets all who wait for the one wait for the other."
  @spec move(t(), what(), what()) :: t()
  def move(waiting, from, to) do
    Map.new(waiting, fn
      {caller, {^from, timer}} -> {caller, {to, timer}}
      other -> other
    end)
  end

  @doc "Returns the sessions for which a worker will be started."
  @spec sessions(t()) :: [String.t()]
  def sessions(waiting) do
    Enum.uniq(for {_, {{:session, session_id}, _}} <- waiting, do: session_id)
  end

  @doc "Answers one whose deadline has passed, unless it has its answer."
  @spec late(t(), GenServer.from(), term()) :: t()
  def late(waiting, from, reply) do
    {found, waiting} = Map.pop(waiting, from)
    if found, do: GenServer.reply(from, reply)
    waiting
  end
end
