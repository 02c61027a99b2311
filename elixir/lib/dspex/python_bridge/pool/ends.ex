defmodule DSPex.PythonBridge.Pool.Ends do
  @moduledoc """
  How workers have ended, as their template reports it, and the processes that ask. A report may come
  before or after the question. Belongs to `DSPex.PythonBridge.Pool.Template`, which gets
  `{:ends, message}` for `timeout/2`.
  """

  alias DSPex.PythonBridge.{Error, Stderr}

  # How long a report is waited for, and how long it is kept, ms.
  @patience 100
  @kept 10_000

  # By process id of the worker.
  defstruct reports: %{}, asking: %{}

  @type t :: %__MODULE__{}

  @doc "Answers a caller with the report of a worker's end; with `nil` if there is none in time."
  @spec ask(t(), pos_integer(), GenServer.from()) :: t()
  def ask(%{reports: reports} = ends, os_pid, from) when is_map_key(reports, os_pid) do
    GenServer.reply(from, reports[os_pid])
    ends
  end

  def ask(ends, os_pid, from) do
    Process.send_after(self(), {:ends, {:no_report, os_pid}}, @patience)
    put_in(ends.asking[os_pid], from)
  end

  @doc "Keeps a report for a while, and answers who has asked for it."
  @spec reported(t(), pos_integer(), map()) :: t()
  def reported(ends, os_pid, report) do
    Process.send_after(self(), {:ends, {:forget, os_pid}}, @kept)
    answer(put_in(ends.reports[os_pid], report), os_pid, report)
  end

  @doc "Notes that a time is over."
  @spec timeout(t(), {:no_report | :forget, pos_integer()}) :: t()
  def timeout(ends, {:no_report, os_pid}), do: answer(ends, os_pid, nil)

  def timeout(ends, {:forget, os_pid}),
    do: %{ends | reports: Map.delete(ends.reports, os_pid)}

  defp answer(ends, os_pid, report) do
    {from, asking} = Map.pop(ends.asking, os_pid)
    if from, do: GenServer.reply(from, report)
    %{ends | asking: asking}
  end

  @doc "Adds a report, if there is one, to the error of a worker that has ended."
  @spec explained(Error.t(), map() | nil) :: Error.t()
  def explained(error, nil), do: error

  def explained(error, report) do
    how =
      if report["signal"],
        do: "was ended by #{report["signal"]}",
        else: "ended with status #{report["exit_status"]}"

    details =
      for key <- ["exit_status", "signal"], report[key] != nil, into: error.details do
        {key, report[key]}
      end

    message = if error.details == %{}, do: "the worker #{how}", else: error.message
    Stderr.with_lines(%{error | message: message, details: details}, lines(report["stderr"]))
  end

  defp lines(text) when is_binary(text), do: String.split(text, "\n", trim: true)
  defp lines(_none), do: []
end
