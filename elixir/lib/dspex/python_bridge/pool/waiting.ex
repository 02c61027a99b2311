defmodule DSPex.PythonBridge.Pool.Waiting do
  @moduledoc """
  Callers that wait for a worker: for any, or for that of one slot. Each gets one answer, when the
  worker takes calls or at its deadline. Belongs to the pool's server, which gets `{:late, from}`.
  """

  alias DSPex.PythonBridge.Connection

  @type t :: %{GenServer.from() => {what :: :any | pos_integer(), reference() | nil}}

  @doc "Adds a caller."
  @spec add(t(), :any | pos_integer(), GenServer.from(), integer() | :infinity) :: t()
  def add(waiting, what, from, :infinity), do: Map.put(waiting, from, {what, nil})

  def add(waiting, what, from, deadline) do
    timer = Process.send_after(self(), {:late, from}, Connection.remaining(deadline))
    Map.put(waiting, from, {what, timer})
  end

  @doc "Answers all who wait for the same."
  @spec answer(t(), :any | pos_integer(), term()) :: t()
  def answer(waiting, what, reply) do
    {answered, waiting} = Enum.split_with(waiting, fn {_, {awaited, _}} -> awaited == what end)

    for {from, {_, timer}} <- answered do
      if timer, do: Process.cancel_timer(timer)
      GenServer.reply(from, reply)
    end

    Map.new(waiting)
  end

  @doc "Answers one whose deadline has passed, unless it has its answer."
  @spec late(t(), GenServer.from(), term()) :: t()
  def late(waiting, from, reply) do
    {found, waiting} = Map.pop(waiting, from)
    if found, do: GenServer.reply(from, reply)
    waiting
  end
end
