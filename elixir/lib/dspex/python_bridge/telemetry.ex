defmodule DSPex.PythonBridge.Telemetry do
  @moduledoc """
  Emits `:telemetry` events, if the application has that package; otherwise nothing is measured.

  | event | measurements | metadata |
  |---|---|---|
  | `[:dspex_bridge, :call, :start]` | `system_time`, `monotonic_time` | `bridge`, `command`, `session_id` |
  | `[:dspex_bridge, :call, :stop]` | `duration`, `monotonic_time` | also `code`: `:ok` or the error's |
  | `[:dspex_bridge, :call, :exception]` | `duration`, `monotonic_time` | also `kind`, `reason`, `stacktrace` |
  | `[:dspex_bridge, :cast, …]` | as for a call | as for a call; `code` is `:ok` if the request was sent |
  | `[:dspex_bridge, :stream, :start]` | `system_time`, `monotonic_time` | as for a call |
  | `[:dspex_bridge, :stream, :stop]` | `duration`, `monotonic_time`, `events` | also `code`: `:ok`, the error's, or `:halted` if the consumer stopped early |
  | `[:dspex_bridge, :tool, :start]` | `system_time`, `monotonic_time` | `bridge`, `tool`, `session_id`, `call_id` |
  | `[:dspex_bridge, :tool, :stop]` | `duration`, `monotonic_time` | also `code`: `:ok` or the error's |
  | `[:dspex_bridge, :tool, :exception]` | `duration`, `monotonic_time` | also `kind`, `reason`, `stacktrace` |
  | `[:dspex_bridge, :function, …]` | as for a tool | `bridge`, `kind` (`:model`, `:metric`, `:reward`, `:embedder`), `name`, `session_id`, `call_id` |
  | `[:dspex_bridge, :worker, :started]` | `duration` until the worker took calls | `bridge`, `os_pid` |
  | `[:dspex_bridge, :worker, :stopped]` | `uptime` | `bridge`, `os_pid`, `reason` |
  | `[:dspex_bridge, :worker, :start_failed]` | `failures` in a row, `delay` in ms until the next start | `bridge`, `error` |
  | `[:dspex_bridge, :breaker, :open]`, `:half_open`, `:closed` | | `pool`, `key`, `from`: the state before |

  | `[:dspex_bridge, :pool, :checkout]` | `open_calls` of the worker | `pool`, `slot`, `command`, `session_id`: a call has got a worker |
  | `[:dspex_bridge, :pool, :retry]` | `attempt`, `delay` in ms | `pool`, `slot` that failed, `command`, `code`: the call is repeated |
  | `[:dspex_bridge, :pool, :slot]` | `age` in ms | `pool`, `slot`, `from`, `to`: states of `DSPex.PythonBridge.Pool.Slot`, `:ejected` among them; `reason`: an error or an atom |
  | `[:dspex_bridge, :pool, :template]` | `age` in ms | `pool`, `event`: `:ready` with `forks`, or `:ended` with `status` |

  | `[:dspex_bridge, :cluster, :node]` | | `pool`, `node`, `event`: `:joined`, `:left` (its pool was stopped), `:lost` or `:hung` |
  | `[:dspex_bridge, :cluster, :call]` | `duration` | `pool`, `node`, `command`, `session_id`, `outcome`: the other node has `:answered`, or `:passed_on` the call; `:lost`, `:late` or `:not_sent` if not. The events of the call itself are on that node |

  `bridge` is the bridge's name, or its pid if it has no name; for a worker of a pool it is `{pool, slot}`. Times are in native units. Handlers
  run in the process that makes the call, that runs the function, or that owns the port.
  """

  alias DSPex.PythonBridge.Connection

  @compile {:no_warn_undefined, [:telemetry]}

  @doc "Loads `:telemetry` and returns whether the application has it."
  @spec load() :: boolean()
  def load, do: Code.ensure_loaded?(:telemetry)

  @doc "Returns whether `:telemetry` is loaded. A bridge loads it when it starts."
  @spec available?() :: boolean()
  def available?, do: :erlang.function_exported(:telemetry, :span, 3)

  @doc "Runs a call or cast between its start event and its stop event."
  @spec span(:call | :cast, GenServer.server() | Connection.t(), term(), list(), (() -> result)) ::
          result
        when result: term()
  def span(kind, server, command, envelope, run) do
    if available?() do
      metadata = metadata(server, command, envelope)

      :telemetry.span([:dspex_bridge, kind], metadata, fn ->
        result = run.()
        {result, Map.put(metadata, :code, code(result))}
      end)
    else
      run.()
    end
  end

  @doc "Returns the metadata of the events of a call."
  @spec metadata(GenServer.server() | Connection.t(), term(), list()) :: map()
  def metadata(server, command, envelope) do
    {_, session_id} = List.keyfind(envelope, "session_id", 0, {nil, nil})
    %{bridge: bridge(server), command: command, session_id: session_id}
  end

  defp bridge(%Connection{name: name}), do: name

  defp bridge(pid) when is_pid(pid) do
    case node(pid) == node() && Process.info(pid, :registered_name) do
      {:registered_name, name} when is_atom(name) -> name
      _ -> pid
    end
  end

  defp bridge({name, node}) when node == node(), do: name
  defp bridge(server), do: server

  @doc """
  Emits the start event of a stream, a tool or another function. Returns the start time, or `nil` without telemetry.
  """
  @spec start(:stream | :tool | :function, map()) :: integer() | nil
  def start(kind, metadata) do
    if available?() do
      started = System.monotonic_time()
      measured = %{system_time: System.system_time(), monotonic_time: started}
      :telemetry.execute([:dspex_bridge, kind, :start], measured, metadata)
      started
    end
  end

  @doc "Emits the last event of a stream, a tool or another function: `:stop` or `:exception`."
  @spec finish(integer() | nil, :stream | :tool | :function, :stop | :exception, map(), map()) ::
          :ok
  def finish(started, kind, event, metadata, measured \\ %{})
  def finish(nil, _kind, _event, _metadata, _measured), do: :ok

  def finish(started, kind, event, metadata, measured) do
    now = System.monotonic_time()
    measured = Map.merge(measured, %{duration: now - started, monotonic_time: now})
    :telemetry.execute([:dspex_bridge, kind, event], measured, metadata)
  end

  @doc "Emits an event of a pool: of a slot, of its template, or of a repeated call."
  @spec pool(:slot | :template | :retry, map(), map()) :: :ok
  def pool(event, measurements, metadata) do
    if available?(), do: :telemetry.execute([:dspex_bridge, :pool, event], measurements, metadata)
    :ok
  end

  @doc "Emits the event of a node that has joined a cluster or is left out of it."
  @spec cluster(map()) :: :ok
  def cluster(metadata) do
    if available?(), do: :telemetry.execute([:dspex_bridge, :cluster, :node], %{}, metadata)
    :ok
  end

  @doc "Runs a call on another node, and emits its event with the answer of that node."
  @spec forwarded(map(), node(), (() -> answer)) :: answer when answer: term()
  def forwarded(request, node, run) do
    if available?() do
      started = System.monotonic_time()
      answer = run.()
      measured = %{duration: System.monotonic_time() - started}
      metadata = Map.take(request, [:command, :session_id])
      about = %{pool: request.pool.name, node: node, outcome: outcome(answer)}
      :telemetry.execute([:dspex_bridge, :cluster, :call], measured, Map.merge(metadata, about))
      answer
    else
      run.()
    end
  end

  defp outcome({:ok, {:done, _result, _home}}), do: :answered
  defp outcome({:ok, _elsewhere_or_later}), do: :passed_on
  defp outcome(lost_or_late), do: lost_or_late

  @doc "Emits the event that a call of a pool has got a worker."
  @spec checkout(Connection.t(), term(), String.t() | nil) :: :ok
  def checkout(%{name: {pool, slot}} = connection, command, session_id) do
    if available?() do
      measurements = %{open_calls: Connection.open_calls(connection.table)}
      metadata = %{pool: pool, slot: slot, command: command, session_id: session_id}
      :telemetry.execute([:dspex_bridge, :pool, :checkout], measurements, metadata)
    end

    :ok
  end

  @doc "Emits an event of the worker's life cycle."
  @spec worker(:started | :stopped | :start_failed, map(), map()) :: :ok
  def worker(event, measurements, metadata) do
    if available?() do
      :telemetry.execute([:dspex_bridge, :worker, event], measurements, metadata)
    end

    :ok
  end

  @doc "Emits the event of a state that a circuit breaker has entered."
  @spec breaker(:open | :half_open | :closed, map()) :: :ok
  def breaker(state, metadata) do
    if available?(), do: :telemetry.execute([:dspex_bridge, :breaker, state], %{}, metadata)
    :ok
  end

  defp code({:error, error}), do: error.code
  defp code(:closed), do: :worker_crashed
  defp code(_ok), do: :ok
end
