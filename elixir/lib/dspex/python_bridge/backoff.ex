defmodule DSPex.PythonBridge.Backoff do
  @moduledoc """
  How long to wait before a call is repeated. Delays are in ms and never longer than 30 s.

  `random` is a function that returns a number from 0 up to but not including 1, so that a test can
  choose it.
  """

  @base 1_000
  @cap 30_000
  # The part of a delay that is added or subtracted at most.
  @jitter 0.25
  @immediate {0, 100, 200}

  @type random :: (() -> float())

  @doc "Returns the longest delay."
  @spec cap() :: pos_integer()
  def cap, do: @cap

  @doc """
  Returns the delay after attempt 1, 2, … of a call that is repeated at once.

      iex> Enum.map(1..4, &DSPex.PythonBridge.Backoff.immediate/1)
      [0, 100, 200, 200]
  """
  @spec immediate(pos_integer()) :: non_neg_integer()
  def immediate(attempt), do: elem(@immediate, min(attempt, tuple_size(@immediate)) - 1)

  @doc """
  Returns 1 s, doubled with each attempt after the first up to 30 s, ± 25 %.

      iex> Enum.map(1..6, &DSPex.PythonBridge.Backoff.exponential(&1, fn -> 0.5 end))
      [1000, 2000, 4000, 8000, 16000, 30000]
      iex> DSPex.PythonBridge.Backoff.exponential(1, fn -> 0.0 end)
      750
  """
  @spec exponential(pos_integer(), random()) :: non_neg_integer()
  def exponential(attempt, random \\ &:rand.uniform/0) do
    jittered(@base * 2 ** min(attempt - 1, 16), random)
  end

  @doc """
  Returns 1 s for each attempt, up to 30 s, ± 25 %.

      iex> Enum.map(1..3, &DSPex.PythonBridge.Backoff.linear(&1, fn -> 0.5 end))
      [1000, 2000, 3000]
  """
  @spec linear(pos_integer(), random()) :: non_neg_integer()
  def linear(attempt, random \\ &:rand.uniform/0), do: jittered(@base * attempt, random)

  @doc """
  Returns a delay between 1 s and three times the previous delay, up to 30 s; the previous delay of
  the first one is 0.

  Callers that failed together spread out faster than with `exponential/2`.

      iex> DSPex.PythonBridge.Backoff.decorrelated(2_000, fn -> 0.5 end)
      3500
  """
  @spec decorrelated(non_neg_integer(), random()) :: non_neg_integer()
  def decorrelated(previous, random \\ &:rand.uniform/0) do
    min(@cap, round(@base + random.() * max(0, 3 * previous - @base)))
  end

  defp jittered(delay, random) do
    min(@cap, round(min(@cap, delay) * (1 - @jitter + 2 * @jitter * random.())))
  end
end
