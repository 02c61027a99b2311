defmodule DSPex.PythonBridge.RetryBudget do
  @moduledoc """
  Limits the retries of the last 10 seconds to 10 % of the calls in that time, plus 3 a second, so
  that a failing service does not get a multiple of its usual load.

  A budget is shared by any number of processes, and none of them waits.

      iex> alias DSPex.PythonBridge.RetryBudget
      iex> budget = RetryBudget.new(clock: fn -> 0 end)
      iex> Enum.count(1..100, fn _ -> RetryBudget.take(budget) end)
      30
      iex> for _ <- 1..20, do: RetryBudget.record_call(budget)
      iex> Enum.count(1..100, fn _ -> RetryBudget.take(budget) end)
      2
  """

  # Seconds.
  @window 10
  @calls_per_retry 10
  @retries_per_second 3
  # Of each second of the window: which second it is, its calls, its retries.
  @columns 3

  @enforce_keys [:seconds, :clock]
  defstruct @enforce_keys

  @opaque t :: %__MODULE__{seconds: :atomics.atomics_ref(), clock: (() -> integer())}

  @doc """
  Returns a new budget.

  `:clock` is a function that returns ms, which never decrease; by default the monotonic time.
  """
  @spec new(keyword()) :: t()
  def new(options \\ []) do
    options = Keyword.validate!(options, clock: &__MODULE__.now/0)
    %__MODULE__{seconds: :atomics.new(@window * @columns, signed: true), clock: options[:clock]}
  end

  @doc "Counts a call, which is not a retry."
  @spec record_call(t()) :: :ok
  def record_call(budget), do: :atomics.add(budget.seconds, entry(budget) + 2, 1)

  @doc "Returns whether a call may be repeated now, and counts the retry if so."
  @spec take(t()) :: boolean()
  def take(%{seconds: seconds} = budget) do
    # Counted first: of several processes that take at the same time, none may overlook another.
    entry = entry(budget)
    :atomics.add(seconds, entry + 3, 1)
    {calls, retries} = recent(seconds, :atomics.get(seconds, entry + 1))

    if @calls_per_retry * (retries - @retries_per_second * @window) <= calls do
      true
    else
      :atomics.sub(seconds, entry + 3, 1)
      false
    end
  end

  @doc false
  @spec now() :: integer()
  def now, do: System.monotonic_time(:millisecond)

  # Returns the offset of the counters of the current second, which are emptied when it begins. Two
  # processes that do so at once may lose what others have counted in between.
  defp entry(%{seconds: seconds, clock: clock}) do
    second = Integer.floor_div(clock.(), 1000)
    entry = Integer.mod(second, @window) * @columns

    if :atomics.get(seconds, entry + 1) != second do
      :atomics.put(seconds, entry + 2, 0)
      :atomics.put(seconds, entry + 3, 0)
      :atomics.put(seconds, entry + 1, second)
    end

    entry
  end

  defp recent(seconds, current) do
    for offset <- 0..(@window - 1)//1,
        entry = offset * @columns,
        :atomics.get(seconds, entry + 1) > current - @window,
        reduce: {0, 0} do
      {calls, retries} ->
        {calls + :atomics.get(seconds, entry + 2), retries + :atomics.get(seconds, entry + 3)}
    end
  end
end
