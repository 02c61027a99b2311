defmodule Pools do
  @moduledoc "Starts pools with real workers for tests."

  import ExUnit.Callbacks, only: [start_supervised!: 1]
  alias DSPex.PythonBridge.{Bridge, Pool, SessionPoolV2}

  @doc "Starts a supervised pool for one test and returns its name."
  def start_pool(options \\ []) do
    name = Module.concat(SessionPoolV2, "Test#{System.unique_integer([:positive])}")

    start_supervised!(
      {SessionPoolV2,
       Keyword.merge(
         [name: name, workers: 2, fork: System.get_env("POOL_FORK") != "no"],
         Workers.options(options)
       )}
    )

    name
  end

  @doc "Returns the connection of the worker that has a session."
  def worker_of(pool, session_id), do: Pool.Sessions.find(Pool.get(pool), session_id)

  @doc "Returns the process id of the worker that has a session."
  def pid_of(pool, session_id), do: Bridge.get_status(worker_of(pool, session_id)).worker_pid

  @doc "Returns the process ids of the workers that take calls."
  def pids(pool) do
    slots = Map.get(SessionPoolV2.get_pool_status(pool), :slots, [])
    for %{state: :ready, worker_pid: pid} <- slots, do: pid
  end

  @doc "Waits until so many workers take calls."
  def wait_for_workers(pool, count) do
    Workers.wait_until(fn -> length(pids(pool)) == count end, 20_000)
  end
end
