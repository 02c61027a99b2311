defmodule DSPex.PythonBridge.Pool.CrashLoop do
  @moduledoc """
  Slows down a pool whose workers end soon after their start, again and again.

  A worker that ends within 10 s of its start counts, unless it was killed from outside. The first one
  in a row is replaced at once, the next after 0.1 s, doubled each time up to 5 s. After five the pool
  does not grow.
  """

  alias DSPex.PythonBridge.Error

  @early 10_000
  @first_delay 100
  @longest_delay 5_000
  @no_growth 5
  # Failed starts in a row after which the template is suspected to hang.
  @suspicious 2

  # early: ends in a row. failed_starts: of workers that never took calls, in a row.
  defstruct early: 0, failed_starts: 0

  @type t :: %__MODULE__{early: non_neg_integer(), failed_starts: non_neg_integer()}

  @doc "Notes that a worker takes calls."
  @spec started(t()) :: t()
  def started(loop), do: %{loop | failed_starts: 0}

  @doc "Notes that a worker has failed at an age in ms. `started?`: whether it ever took calls."
  @spec failed(t(), integer(), boolean(), Error.t()) :: t()
  def failed(loop, age, started?, error) do
    loop = if started?, do: loop, else: %{loop | failed_starts: loop.failed_starts + 1}

    cond do
      age >= @early -> %{loop | early: 0}
      started? and from_outside?(error) -> loop
      true -> %{loop | early: loop.early + 1}
    end
  end

  defp from_outside?(%{details: details}) do
    details["signal"] in ["SIGKILL", "SIGTERM"] or details["exit_status"] in [137, 143]
  end

  @doc "Returns the delay in ms before the next start."
  @spec delay(t()) :: non_neg_integer()
  def delay(%{early: early}) when early < 2, do: 0

  def delay(%{early: early}) do
    min(@first_delay * Integer.pow(2, min(early - 2, 16)), @longest_delay)
  end

  @doc "Returns whether more workers than necessary may be started."
  @spec may_grow?(t()) :: boolean()
  def may_grow?(loop), do: loop.early < @no_growth

  @doc "Returns whether the template may be the reason: with every second failed start in a row."
  @spec suspicious?(t()) :: boolean()
  def suspicious?(%{failed_starts: failed}), do: failed > 0 and rem(failed, @suspicious) == 0
end
