defmodule DSPex.PythonBridge.Pool.CrashLoop do
  @moduledoc """
  Slows down a pool whose workers do not start, or end soon after their start, again and again.

  What counts in a row: starts that fail, until one succeeds; and workers that end within 10 s of their
  start, unless they were killed from outside, until there was none for 10 s. After the first one
  another worker is started at once, after the next in 0.1 s, doubled each time up to 5 s. After five the
  pool does not grow.
  """

  alias DSPex.PythonBridge.Error

  @early 10_000
  @first_delay 100
  @longest_delay 5_000
  @no_growth 5
  # Failed starts in a row after which the template is suspected to hang.
  @suspicious 2

  # last: the time of the last end that counts, in ms.
  defstruct failed_starts: 0, early_ends: 0, last: nil

  @type t :: %__MODULE__{}

  @doc "Notes that a worker takes calls."
  @spec started(t()) :: t()
  def started(loop), do: %{loop | failed_starts: 0}

  @doc "Notes that a worker could not start."
  @spec not_started(t()) :: t()
  def not_started(loop), do: %{loop | failed_starts: loop.failed_starts + 1}

  @doc "Notes that a worker which has taken calls has ended, at an age in ms."
  @spec ended(t(), integer(), Error.t(), now :: integer()) :: t()
  def ended(loop, age, error, now) do
    if age >= @early or from_outside?(error),
      do: loop,
      else: %{calm(loop, now) | early_ends: calm(loop, now).early_ends + 1, last: now}
  end

  defp from_outside?(%{details: details}) do
    details["signal"] in ["SIGKILL", "SIGTERM"] or details["exit_status"] in [137, 143]
  end

  @doc "Forgets early ends after some time without one."
  @spec calm(t(), now :: integer()) :: t()
  def calm(%{last: last} = loop, now) when last != nil and now - last >= @early do
    %{loop | early_ends: 0, last: nil}
  end

  def calm(loop, _now), do: loop

  @doc "Returns the delay in ms before the next start."
  @spec delay(t()) :: non_neg_integer()
  def delay(loop) do
    case count(loop) do
      count when count < 2 -> 0
      count -> min(@first_delay * Integer.pow(2, min(count - 2, 16)), @longest_delay)
    end
  end

  @doc "Returns whether more workers than necessary may be started."
  @spec may_grow?(t()) :: boolean()
  def may_grow?(loop), do: count(loop) < @no_growth

  defp count(loop), do: loop.failed_starts + loop.early_ends

  @doc "Returns whether the template may be the reason: with every second failed start in a row."
  @spec suspicious?(t()) :: boolean()
  def suspicious?(%{failed_starts: failed}), do: failed > 0 and rem(failed, @suspicious) == 0
end
