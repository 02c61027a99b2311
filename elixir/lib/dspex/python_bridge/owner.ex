defmodule DSPex.PythonBridge.Owner do
  @moduledoc """
  The process that owns the port of one worker: opens its transport, routes its frames, monitors
  it, and stops it. It never decodes a reply, and callers do not wait for it.

  Owner and worker end together. Every caller that waits for a reply monitors the owner, so it
  gets the reason at once. `DSPex.PythonBridge.Server` starts the next owner.
  """

  use GenServer

  import DSPex.PythonBridge.Routing, only: [route: 2, sweep: 1]

  alias DSPex.PythonBridge.{
    Connection,
    Error,
    Functions,
    Protocol,
    Starting,
    Statistics,
    Telemetry,
    Transport
  }

  # Time between two checks for calls whose caller has ended, ms.
  @sweep 100
  # Unanswered heartbeats after which the worker counts as dead.
  @missed_limit 3
  # More than the worker's grace period for open calls, which is 2 s; ms.
  @stop_timeout 3_000

  @enforce_keys [:server, :connection, :worker, :started]
  # starting: nil once the worker takes calls.
  # missed: unanswered heartbeats; nil until the worker has sent its first frame.
  defstruct @enforce_keys ++ [:starting, :heartbeat_interval, :missed]

  @typedoc """
  What all workers of a bridge share: the bridge's name, its ETS table, and its counters. A worker of a
  pool has a table of its own, and the workers share that of `:functions`.
  """
  @type bridge :: %{
          required(:name) => term(),
          optional(:table) => :ets.table(),
          required(:counters) => Statistics.t(),
          optional(:functions) => :ets.table()
        }

  @doc """
  Starts the owner of a new worker without waiting for the worker.

  The process `server` receives `{:started, owner, connection}` when the worker takes calls; the calling
  process gets an exit signal when the worker ends. `options` is a function that returns the options,
  so that crash reports do not show them.
  """
  @spec start_link(bridge(), (() -> keyword()), pid()) :: GenServer.on_start()
  def start_link(bridge, options, server \\ self()) do
    GenServer.start_link(__MODULE__, {server, bridge, options})
  end

  # Starting

  @impl true
  def init(context) do
    Process.flag(:trap_exit, true)
    Process.flag(:message_queue_data, :off_heap)
    {:ok, context, {:continue, :start}}
  end

  @impl true
  def handle_continue(:start, {server, bridge, hidden} = context) do
    options = hidden.()
    started = System.monotonic_time()

    case Transport.open(options) do
      {:ok, worker} ->
        state = new_state(server, bridge, worker, options, started)
        schedule(state.heartbeat_interval, :heartbeat)
        {:noreply, %{state | starting: Starting.begin(state.connection, options)}}

      {:error, line} ->
        {:stop, {:shutdown, Starting.error({:open, line}, nil)}, context}
    end
  end

  defp new_state(server, bridge, %transport{} = worker, options, started) do
    connection = %Connection{
      owner: self(),
      bridge: Map.get_lazy(bridge, :table, fn -> :ets.new(__MODULE__, [:public]) end),
      name: bridge.name,
      transport: transport,
      port: worker.port,
      # Without concurrency flags: a worker reads on one thread, so there is too little contention
      # for finer locks to pay off, and they cost every call 0.2 µs.
      table: :ets.new(__MODULE__, [:public]),
      functions: Map.get_lazy(bridge, :functions, &Functions.new_table/0),
      ids: :atomics.new(1, signed: false),
      counters: bridge.counters,
      format: options[:format],
      max_frame: options[:max_frame],
      tool_timeout: options[:tool_timeout]
    }

    row = {:worker, :starting, worker.os_pid, started, bridge.counters, connection.table}
    :ets.insert(connection.bridge, row)
    Statistics.count(bridge.counters, :starts)

    %__MODULE__{
      server: server,
      connection: connection,
      worker: worker,
      started: started,
      heartbeat_interval: options[:heartbeat_interval]
    }
  end

  # Routing

  @impl true
  def handle_info(:start_timeout, %{starting: %Starting{}} = state), do: kill(state, :timeout)

  def handle_info(:heartbeat, %{missed: missed} = state)
      when is_integer(missed) and missed >= @missed_limit do
    kill(state, {:heartbeats, missed})
  end

  def handle_info(:heartbeat, state), do: {:noreply, beat(state)}

  def handle_info(:sweep, state) do
    sweep(state.connection)
    schedule(@sweep, :sweep)
    {:noreply, state}
  end

  def handle_info({:DOWN, monitor, _, _, result}, %{starting: %{monitor: monitor}} = state) do
    with {:prepared, {:ok, hello}} <- result,
         do: {:noreply, started(state, hello)},
         else: (cause -> kill(state, cause))
  end

  def handle_info(message, %{worker: %transport{} = worker} = state) do
    case transport.received(worker, message) do
      frame when is_binary(frame) -> received(frame, state)
      {:ended, cause} -> stop(state, {:transport, cause})
      {:broken, cause} -> kill(state, {:transport, cause})
      :other -> {:noreply, state}
    end
  end

  defp received(frame, %{starting: nil} = state) do
    route(frame, state.connection)
    {:noreply, heard(state)}
  end

  defp received(frame, state) do
    if Protocol.peek(frame) in [{:reply, nil}, :unknown] do
      kill(state, {:refused, frame})
    else
      route(frame, state.connection)
      {:noreply, heard(state)}
    end
  end

  # A heartbeat that a full port does not take counts as missed too: a live worker reads and
  # answers.
  defp beat(state) do
    _ = Connection.send(state.connection, "", Connection.now())
    schedule(state.heartbeat_interval, :heartbeat)
    %{state | missed: state.missed && state.missed + 1}
  end

  # Any frame shows that the worker is alive.
  defp heard(%{missed: 0} = state), do: state
  defp heard(state), do: %{state | missed: 0}

  defp started(state, hello) do
    connection = Connection.limited(state.connection, hello)
    state = put_os_pid(%{state | connection: connection}, hello)
    duration = System.monotonic_time() - state.started
    metadata = %{bridge: connection.name, os_pid: state.worker.os_pid}
    Telemetry.worker(:started, %{duration: duration}, metadata)
    send(state.server, {:started, self(), connection})
    schedule(@sweep, :sweep)
    %{state | starting: nil}
  end

  # 0, 1 and negative numbers would mean other processes to `kill`.
  defp put_os_pid(%{worker: %{os_pid: nil}} = state, %{"pid" => pid})
       when is_integer(pid) and pid > 1 do
    :ets.update_element(state.connection.bridge, :worker, {3, pid})
    put_in(state.worker.os_pid, pid)
  end

  defp put_os_pid(state, _hello), do: state

  # Ending

  defp kill(%{worker: %transport{} = worker} = state, cause) do
    transport.kill(worker)
    stop(state, cause)
  end

  defp stop(%{worker: %transport{} = worker} = state, cause) do
    error = error(state, cause)
    # What explains the end may take a moment, in which no caller should choose this worker.
    :ets.delete(state.connection.table)
    {:stop, {:shutdown, transport.explained(worker, error)}, state}
  end

  defp error(%{starting: %Starting{} = starting} = state, cause) do
    cause = Starting.last_word(starting, state.connection, cause)
    Starting.stop(starting)
    Starting.error(cause, state.worker)
  end

  defp error(%{worker: %transport{} = worker}, {:transport, cause}) do
    {message, details} = transport.reason(worker, :running, cause)
    Error.new(:worker_crashed, message, details)
  end

  defp error(_state, {:heartbeats, missed}) do
    message = "the worker did not answer #{missed} heartbeats"
    Error.new(:worker_crashed, message, %{"heartbeats" => missed})
  end

  @impl true
  def terminate(reason, %__MODULE__{connection: connection} = state) do
    :ets.delete(connection.bridge, :connection)
    unless match?({:shutdown, %Error{}}, reason), do: end_worker(state)
    uptime = System.monotonic_time() - state.started
    metadata = %{bridge: connection.name, os_pid: state.worker.os_pid, reason: reason}
    Telemetry.worker(:stopped, %{uptime: uptime}, metadata)
  rescue
    # The server has ended, and its table with it.
    ArgumentError -> end_worker(state)
  end

  def terminate(_reason, _context), do: :ok

  defp end_worker(%{starting: %Starting{} = starting, worker: %transport{} = worker}) do
    Starting.stop(starting)
    transport.kill(worker)
  end

  defp end_worker(%{connection: connection, worker: %transport{} = worker}) do
    request =
      Protocol.encode(connection.format, [{"id", "control"}, {"command", "shutdown"}], %{})

    deadline = Connection.now() + @stop_timeout

    case Connection.send(connection, request, deadline) do
      :ok -> if await_end(worker, connection, deadline) == :late, do: transport.kill(worker)
      :busy -> transport.kill(worker)
      :closed -> :ok
    end
  end

  # Calls that finish within the worker's grace period still get their replies.
  defp await_end(%transport{} = worker, connection, deadline) do
    receive do
      message ->
        case transport.received(worker, message) do
          frame when is_binary(frame) ->
            route(frame, connection)
            await_end(worker, connection, deadline)

          :other ->
            await_end(worker, connection, deadline)

          _ended ->
            :ended
        end
    after
      Connection.remaining(deadline) -> :late
    end
  end

  defp schedule(interval, message) when is_integer(interval) do
    Process.send_after(self(), message, interval)
  end

  defp schedule(_never, _message), do: :ok

  # Hides the last message, because a frame may contain secrets.
  @doc false
  @spec format_status(map()) :: map()
  def format_status(status), do: Map.replace(status, :message, :hidden)
end
