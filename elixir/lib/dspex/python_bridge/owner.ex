defmodule DSPex.PythonBridge.Owner do
  @moduledoc """
  The process that owns the port of one worker: starts it, hands on its frames, watches it, ends it.
  It never decodes a reply, and no caller waits for it.

  It lives as long as its worker: when one ends, so does the other, and every caller that waits gets
  the reason with the monitor's message. `DSPex.PythonBridge.Server` starts the next one.
  """

  use GenServer
  require Logger

  import DSPex.PythonBridge.Routing, only: [route: 2, sweep: 1]

  alias DSPex.PythonBridge.{
    Call,
    Connection,
    Error,
    Exits,
    Protocol,
    Python,
    Statistics,
    Stderr,
    Telemetry,
    Text,
    Tools,
    WorkerPort
  }

  # How often calls are looked at whose caller may be gone, ms.
  @sweep 100
  # Heartbeats without an answer before the worker is taken for dead.
  @missed_limit 3
  # A worker's own grace period for open calls is 2 s; ms.
  @stop_timeout 3_000

  @enforce_keys [:server, :connection, :worker, :started]
  # missed: heartbeats without an answer; nil before the worker has said anything.
  defstruct @enforce_keys ++ [:heartbeat_interval, :missed]

  @typedoc "What all workers of a bridge share: its name, its table, its counters."
  @type bridge :: %{name: term(), table: :ets.table(), counters: Statistics.t()}

  @doc """
  Starts a worker without waiting for it. The caller gets `{:started, owner, connection}` when it
  takes calls, and an exit signal when it ends. `options` is a function that returns them.
  """
  @spec start_link(bridge(), (() -> keyword())) :: GenServer.on_start()
  def start_link(bridge, options) do
    GenServer.start_link(__MODULE__, {self(), bridge, options})
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

    with {:ok, python, _from} <- Python.find(options[:python]),
         {:ok, worker} <- WorkerPort.open(python, options) do
      state = new_state(server, bridge, worker, options, started)
      schedule(state.heartbeat_interval, :heartbeat)
      prepare(state, python, options)
    else
      {:error, reason} -> {:stop, {:shutdown, not_started(reason, %{})}, context}
    end
  end

  defp new_state(server, bridge, worker, options, started) do
    connection = %Connection{
      owner: self(),
      bridge: bridge.table,
      name: bridge.name,
      port: worker.port,
      # Without concurrency flags: a worker reads on one thread, so the table is never busy enough
      # for finer locks to pay, and they cost every call 0.2 µs.
      table: :ets.new(__MODULE__, [:public]),
      ids: :atomics.new(1, signed: false),
      counters: bridge.counters,
      format: options[:format],
      max_frame: options[:max_frame],
      tool_timeout: options[:tool_timeout]
    }

    row = {:worker, :starting, worker.os_pid, started, bridge.counters, connection.table}
    :ets.insert(bridge.table, row)
    Statistics.count(bridge.counters, :starts)

    %__MODULE__{
      server: server,
      connection: connection,
      worker: worker,
      started: started,
      heartbeat_interval: options[:heartbeat_interval]
    }
  end

  # What comes before the first call of anybody who waited for the start runs in a process of its
  # own, as an ordinary caller, while this one routes.
  defp prepare(state, python, options) do
    connection = state.connection
    deadline = Connection.now() + options[:start_timeout] + options[:setup_timeout]
    {pid, monitor} = spawn_monitor(fn -> exit({:prepared, prepared(connection, options)}) end)
    result = await_prepared(state, monitor, deadline)
    Process.exit(pid, :kill)

    case result do
      {:ok, state} ->
        schedule(@sweep, :sweep)
        started(state)
        {:noreply, state}

      {:parent, reason} ->
        WorkerPort.kill(state.worker.os_pid)
        {:stop, reason, state}

      _ ->
        unless match?({:exit_status, _}, result), do: WorkerPort.kill(state.worker.os_pid)
        {:stop, {:shutdown, not_started(state, reason(result, python))}, state}
    end
  end

  defp prepared(connection, options) do
    offers = %{tools: true, logs: options[:logs], buffers: connection.format == :etf}

    with {:ok, _} <- Call.run(connection, "hello", %{offers: offers}, options[:start_timeout]),
         {:ok, _} <- Tools.register(connection, options[:tools], []) do
      set_up(options[:setup], connection)
    end
  end

  defp set_up(setup, connection) do
    Connection.put_own(connection)

    with {:error, reason} <- setup.(connection) do
      Logger.warning(
        "#{inspect(connection.name)}: the setup returned an error, and the worker runs without " <>
          "what failed: #{Exits.line(:error, reason, [])}; raise it, as Bridge.call! does, to " <>
          "start another",
        bridge: connection.name
      )
    end

    :ok
  catch
    kind, reason -> {:setup, Exits.line(kind, reason, __STACKTRACE__)}
  end

  defp await_prepared(%{worker: %{port: port}} = state, monitor, deadline) do
    receive do
      {^port, {:data, frame}} ->
        case Protocol.peek(frame) do
          {:reply, nil} ->
            {:refused, frame}

          _ ->
            route(frame, state.connection)
            await_prepared(heard(state), monitor, deadline)
        end

      :heartbeat ->
        with {:ok, state} <- beat(state), do: await_prepared(state, monitor, deadline)

      {^port, {:exit_status, status}} ->
        {:exit_status, status}

      {:EXIT, ^port, reason} ->
        {:exit, reason}

      {:DOWN, ^monitor, _, _, {:prepared, :ok}} ->
        {:ok, state}

      {:DOWN, ^monitor, _, _, result} ->
        result

      {:EXIT, pid, reason} when pid == state.server ->
        {:parent, reason}

      {:EXIT, _other, _reason} ->
        await_prepared(state, monitor, deadline)
    after
      Connection.remaining(deadline) -> :late
    end
  end

  defp reason({:prepared, {:error, error}}, _python), do: {error.message, error.details}
  defp reason({:prepared, {:setup, line}}, _python), do: {"its setup failed: #{line}", %{}}

  defp reason({:refused, frame}, _) do
    {"it refuses the format: #{Text.line(binary_part(frame, 0, min(byte_size(frame), 200)))}",
     %{}}
  end

  defp reason({exit, status}, python) when exit in [:exit, :exit_status] do
    details = if exit == :exit_status, do: %{"exit_status" => status}, else: %{}

    case Python.check(python) do
      {:error, reason} -> {reason, details}
      {:ok, _, _} -> {"it ended with status #{inspect(status)}", details}
    end
  end

  defp reason({:dead, missed}, _), do: {"it did not answer #{missed} heartbeats", %{}}
  defp reason(:late, _python), do: {"its setup did not end in time (option :setup_timeout)", %{}}
  defp reason(exit, _python), do: {"its setup ended: #{Exits.line(:exit, exit, [])}", %{}}

  defp not_started(%__MODULE__{} = state, {reason, details}) do
    not_started(reason, with_stderr(details, state))
  end

  defp not_started(reason, details) do
    message = with_last_line("the worker did not start: #{reason}", details)
    error = Error.new(:worker_crashed, message, details)
    %{error | category: :initialization, severity: :critical, recovery: :immediate_retry}
  end

  defp started(%{connection: connection} = state) do
    duration = System.monotonic_time() - state.started
    metadata = %{bridge: connection.name, os_pid: state.worker.os_pid}
    Telemetry.worker(:started, %{duration: duration}, metadata)
    send(state.server, {:started, self(), connection})
  end

  # Watching

  @impl true
  def handle_info({port, {:data, frame}}, %{worker: %{port: port}} = state) do
    route(frame, state.connection)
    {:noreply, heard(state)}
  end

  def handle_info({port, {:exit_status, status}}, %{worker: %{port: port}} = state) do
    crashed(state, "the worker ended with status #{status}", %{"exit_status" => status})
  end

  def handle_info({:EXIT, port, reason}, %{worker: %{port: port}} = state) do
    WorkerPort.kill(state.worker.os_pid)
    crashed(state, "the worker is gone: #{inspect(reason)}", %{"reason" => inspect(reason)})
  end

  def handle_info(:heartbeat, state) do
    case beat(state) do
      {:ok, state} ->
        {:noreply, state}

      {:dead, missed} ->
        WorkerPort.kill(state.worker.os_pid)

        crashed(state, "the worker did not answer #{missed} heartbeats", %{"heartbeats" => missed})
    end
  end

  def handle_info(:sweep, state) do
    sweep(state.connection)
    schedule(@sweep, :sweep)
    {:noreply, state}
  end

  def handle_info(_message, state), do: {:noreply, state}

  defp beat(%{missed: missed}) when is_integer(missed) and missed >= @missed_limit do
    {:dead, missed}
  end

  # One that a full port does not take counts as missed too: a worker that lives reads, and answers.
  defp beat(state) do
    _ = Connection.send(state.connection, "", Connection.now())
    schedule(state.heartbeat_interval, :heartbeat)
    {:ok, %{state | missed: state.missed && state.missed + 1}}
  end

  # Whatever a worker sends shows that it lives.
  defp heard(%{missed: 0} = state), do: state
  defp heard(state), do: %{state | missed: 0}

  # Ending

  defp crashed(state, message, details) do
    details = with_stderr(details, state)

    {:stop, {:shutdown, Error.new(:worker_crashed, with_last_line(message, details), details)},
     state}
  end

  defp with_stderr(details, state) do
    case Stderr.last_lines(state.worker.stderr) do
      [] -> details
      lines -> Map.put(details, "stderr", Enum.join(lines, "\n"))
    end
  end

  defp with_last_line(message, %{"stderr" => lines}) do
    last = lines |> String.split("\n") |> List.last()
    if message =~ last, do: message, else: "#{message}: #{Text.line(last)}"
  end

  defp with_last_line(message, _details), do: message

  @impl true
  def terminate(reason, %__MODULE__{connection: connection} = state) do
    :ets.delete(connection.bridge, :connection)
    unless match?({:shutdown, %Error{}}, reason), do: end_worker(state)
    uptime = System.monotonic_time() - state.started
    metadata = %{bridge: connection.name, os_pid: state.worker.os_pid, reason: reason}
    Telemetry.worker(:stopped, %{uptime: uptime}, metadata)
  rescue
    # The table went with the server.
    ArgumentError -> end_worker(state)
  end

  def terminate(_reason, _context), do: :ok

  defp end_worker(%{connection: connection} = state) do
    request =
      Protocol.encode(connection.format, [{"id", "control"}, {"command", "shutdown"}], %{})

    deadline = Connection.now() + @stop_timeout

    case Connection.send(connection, request, deadline) do
      :ok -> if await_end(connection, deadline) == :late, do: WorkerPort.kill(state.worker.os_pid)
      :busy -> WorkerPort.kill(state.worker.os_pid)
      :closed -> :ok
    end
  end

  # Calls that end within the worker's grace period still get their replies.
  defp await_end(%{port: port} = connection, deadline) do
    receive do
      {^port, {:data, frame}} ->
        route(frame, connection)
        await_end(connection, deadline)

      {^port, {:exit_status, _}} ->
        :ended

      {:EXIT, ^port, _} ->
        :ended
    after
      Connection.remaining(deadline) -> :late
    end
  end

  defp schedule(interval, message) when is_integer(interval) do
    Process.send_after(self(), message, interval)
  end

  defp schedule(_never, _message), do: :ok

  # The last message is not shown: a frame may hold anything.
  @doc false
  @spec format_status(map()) :: map()
  def format_status(status), do: Map.replace(status, :message, :hidden)
end
