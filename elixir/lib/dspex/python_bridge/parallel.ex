defmodule DSPex.PythonBridge.Parallel do
  @moduledoc """
  Runs a function for several elements at the same time. Unlike the tasks of Elixir, the processes are not
  linked to the caller, which may trap exits and would get messages about their ends.
  """

  @doc """
  Runs a function for each element in a process of its own, and returns the results in the order of the
  elements. If a function does not return, the caller exits for the same reason.
  """
  @spec map(Enumerable.t(element), (element -> result)) :: [result]
        when element: term(), result: term()
  def map(elements, function),
    do: elements |> Enum.map(&start(&1, function)) |> Enum.map(&result/1)

  defp start(element, function) do
    {_pid, monitor} = spawn_monitor(fn -> exit({__MODULE__, function.(element)}) end)
    monitor
  end

  defp result(monitor) do
    receive do
      {:DOWN, ^monitor, _, _, {__MODULE__, result}} -> result
      {:DOWN, ^monitor, _, _, reason} -> exit(reason)
    end
  end
end
