defmodule DSPex.PythonBridge.Telemetry do
  @moduledoc """
  Events for `:telemetry`, where the application has it. A worker's start looks once whether it is
  there; without it nothing is measured.

  | event | measurements | metadata |
  |---|---|---|
  | `[:dspex_bridge, :call, :start]` | `system_time`, `monotonic_time` | `command`, `session_id` |
  | `[:dspex_bridge, :call, :stop]` | `duration`, `monotonic_time` | and `code`: `:ok` or the error's |
  | `[:dspex_bridge, :call, :exception]` | `duration`, `monotonic_time` | and `kind`, `reason`, `stacktrace` |
  | `[:dspex_bridge, :worker, :started]` | `duration` until it answered | `name`, `os_pid` |
  | `[:dspex_bridge, :worker, :stopped]` | `uptime` | `name`, `os_pid`, `reason` |

  Times are in native units. Handlers run in the process that calls, or owns the port.
  """

  @compile {:no_warn_undefined, [:telemetry]}

  @doc "Whether the application has `:telemetry`."
  @spec available?() :: boolean()
  def available?, do: Code.ensure_loaded?(:telemetry)

  @doc "Runs a call between its start event and its stop event."
  @spec call(term(), list(), (() -> result)) :: result when result: tuple()
  def call(command, envelope, run) do
    {_, session_id} = List.keyfind(envelope, "session_id", 0, {nil, nil})
    metadata = %{command: command, session_id: session_id}

    :telemetry.span([:dspex_bridge, :call], metadata, fn ->
      result = run.()
      {result, Map.put(metadata, :code, code(result))}
    end)
  end

  @doc "An event of the worker's life."
  @spec worker(boolean(), :started | :stopped, map(), map()) :: :ok
  def worker(false, _event, _measurements, _metadata), do: :ok

  def worker(true, event, measurements, metadata) do
    :telemetry.execute([:dspex_bridge, :worker, event], measurements, metadata)
  end

  defp code({:error, error}), do: error.code
  defp code(_ok), do: :ok
end
