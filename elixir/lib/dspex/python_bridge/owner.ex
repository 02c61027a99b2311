defmodule DSPex.PythonBridge.Owner do
  @moduledoc """
  The process that owns the port: starts the worker, hands each frame to whom it belongs, watches
  the worker and the callers, ends the worker. It never decodes a reply, and no caller waits for it.

  It lives as long as its worker: when one ends, so does the other, and every caller that waits
  gets the reason with the monitor's message. A supervisor starts both anew.
  """

  use GenServer
  require Logger

  alias DSPex.PythonBridge.{
    Call,
    Connection,
    Error,
    OpenCall,
    Protocol,
    Python,
    Statistics,
    Telemetry,
    Tools,
    WorkerPort
  }

  # How often calls are looked at whose caller may be gone, ms.
  @sweep 100
  # Heartbeats without an answer before the worker is taken for dead.
  @missed_limit 3
  # A worker's own grace period for open calls is 2 s; ms.
  @stop_timeout 3_000
  # Events that a stream's consumer may be behind before the worker is asked to hold them back, and
  # from where on it may go on.
  @pause_above 256
  @resume_below 128

  @enforce_keys [:connection, :name, :os_pid, :started]
  # missed: heartbeats without an answer; nil before the worker has said anything.
  defstruct [:connection, :name, :os_pid, :started, :heartbeat_interval, :missed]

  @doc false
  @spec start_link(keyword()) :: GenServer.on_start()
  def start_link(options) do
    name = options[:name]
    GenServer.start_link(__MODULE__, options, if(name, do: [name: name], else: []))
  end

  @doc "How many events a consumer may have left when the worker goes on."
  @spec resume_below() :: pos_integer()
  def resume_below, do: @resume_below

  # Starting

  @impl true
  def init(options) do
    Process.flag(:trap_exit, true)
    Process.flag(:message_queue_data, :off_heap)
    started = System.monotonic_time()

    with {:ok, python, _from} <- Python.find(options[:python]),
         {:ok, port, os_pid} <- WorkerPort.open(python, options),
         state = new_state(port, os_pid, options, started),
         schedule(state.heartbeat_interval, :heartbeat),
         {:ok, state} <- prepare(state, python, options) do
      schedule(@sweep, :sweep)
      started(state)
      {:ok, state}
    else
      {:error, reason} -> {:stop, {:shutdown, not_started(reason)}}
    end
  end

  defp new_state(port, os_pid, options, started) do
    connection = %Connection{
      owner: self(),
      port: port,
      table: new_table(options[:name]),
      ids: :atomics.new(1, signed: false),
      counters: Statistics.for_name(options[:name]),
      format: options[:format],
      max_frame: options[:max_frame],
      telemetry: Telemetry.available?()
    }

    :ets.insert(connection.table, {:worker, :starting, os_pid, started, connection.counters})
    Statistics.count(connection.counters, :starts)

    %__MODULE__{
      connection: connection,
      name: options[:name],
      os_pid: os_pid,
      started: started,
      heartbeat_interval: options[:heartbeat_interval]
    }
  end

  # Without concurrency flags: a worker reads on one thread, so the table is never busy enough for
  # finer locks to pay, and they cost every call 0.2 µs.
  defp new_table(name) when is_atom(name) and name != nil do
    # By the name, an old connection would reach the table of the worker that came after its own.
    name |> :ets.new([:named_table, :public]) |> :ets.whereis()
  end

  defp new_table(_), do: :ets.new(__MODULE__, [:public])

  # What comes before the first call of anybody who waited for the start runs in a process of its
  # own, as an ordinary caller, while this one routes.
  defp prepare(state, python, options) do
    connection = state.connection
    {pid, monitor} = spawn_monitor(fn -> exit({:prepared, prepared(connection, options)}) end)
    {:links, links} = Process.info(self(), :links)
    result = await_prepared(state, monitor, Enum.filter(links, &is_pid/1))
    Process.exit(pid, :kill)

    case result do
      {:ok, state} ->
        {:ok, state}

      {:exit_status, _} ->
        {:error, reason(result, python)}

      {:parent, reason} ->
        WorkerPort.kill(state.os_pid)
        exit(reason)

      _ ->
        WorkerPort.kill(state.os_pid)
        {:error, reason(result, python)}
    end
  end

  defp prepared(connection, options) do
    offers = %{tools: true, logs: options[:logs], buffers: connection.format == :etf}

    with {:ok, _} <- Call.run(connection, "hello", %{offers: offers}, options[:start_timeout]),
         {:ok, _} <- Tools.register(connection, options[:tools], []) do
      options[:setup].(connection)
      :ok
    end
  end

  defp await_prepared(%{connection: %{port: port}} = state, monitor, parents) do
    receive do
      {^port, {:data, frame}} ->
        case Protocol.peek(frame) do
          {:reply, nil} ->
            {:refused, frame}

          _ ->
            route(frame, state.connection)
            await_prepared(heard(state), monitor, parents)
        end

      :heartbeat ->
        with {:ok, state} <- beat(state), do: await_prepared(state, monitor, parents)

      {^port, {:exit_status, status}} ->
        {:exit_status, status}

      {:EXIT, ^port, reason} ->
        {:exit, reason}

      {:DOWN, ^monitor, _, _, {:prepared, :ok}} ->
        {:ok, state}

      {:DOWN, ^monitor, _, _, result} ->
        result

      {:EXIT, pid, reason} ->
        if pid in parents, do: {:parent, reason}, else: await_prepared(state, monitor, parents)
    end
  end

  defp reason({:prepared, {:error, error}}, _python), do: error
  defp reason({:refused, frame}, _), do: "it refuses the format: #{String.slice(frame, 0, 200)}"

  defp reason({exit, status}, python) when exit in [:exit, :exit_status] do
    case Python.check(python) do
      {:error, reason} -> reason
      {:ok, _, _} -> "it ended with #{exit} #{inspect(status)}; its stderr says why"
    end
  end

  defp reason({:dead, missed}, _), do: "it did not answer #{missed} heartbeats"
  defp reason(setup, _python), do: "its setup failed: #{Exception.format_exit(setup)}"

  defp not_started(%Error{} = error), do: not_started(error.message, error.details)
  defp not_started(reason), do: not_started(reason, %{})

  defp not_started(reason, details) do
    error = Error.new(:worker_crashed, "the worker did not start: #{reason}", details)
    %{error | category: :initialization, severity: :critical, recovery: :immediate_retry}
  end

  defp started(state) do
    :ets.insert(state.connection.table, {:connection, state.connection})
    put_status(state, :running)
    duration = System.monotonic_time() - state.started
    metadata = %{name: state.name, os_pid: state.os_pid}
    Telemetry.worker(state.connection.telemetry, :started, %{duration: duration}, metadata)
  end

  defp put_status(state, status) do
    :ets.update_element(state.connection.table, :worker, {2, status})
  end

  # Routing

  @impl true
  def handle_info({port, {:data, frame}}, %{connection: %{port: port}} = state) do
    route(frame, state.connection)
    {:noreply, heard(state)}
  end

  def handle_info({port, {:exit_status, status}}, %{connection: %{port: port}} = state) do
    crashed(state, "the worker ended with status #{status}", %{"exit_status" => status})
  end

  def handle_info({:EXIT, port, reason}, %{connection: %{port: port}} = state) do
    WorkerPort.kill(state.os_pid)
    crashed(state, "the worker is gone: #{inspect(reason)}", %{"reason" => inspect(reason)})
  end

  def handle_info(:heartbeat, state) do
    case beat(state) do
      {:ok, state} ->
        {:noreply, state}

      {:dead, missed} ->
        WorkerPort.kill(state.os_pid)

        crashed(state, "the worker did not answer #{missed} heartbeats", %{"heartbeats" => missed})
    end
  end

  def handle_info(:sweep, state) do
    for entry <- :ets.match_object(state.connection.table, {:_, :open, :_, :_, :_}) do
      sweep(entry, state.connection)
    end

    schedule(@sweep, :sweep)
    {:noreply, state}
  end

  def handle_info(_message, state), do: {:noreply, state}

  @impl true
  def handle_call(:connection, _from, state), do: {:reply, state.connection, state}

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

  defp route(frame, connection) do
    case Protocol.peek(frame) do
      {:reply, id} when is_integer(id) ->
        reply(:ets.take(connection.table, id), frame, connection)

      {:event, id} ->
        event(:ets.lookup(connection.table, id), frame, connection)

      {:request, id} ->
        Tools.answer(connection, id, frame)

      {:log, _id} ->
        log(Protocol.decode_message(frame))

      :heartbeat ->
        :ok

      {:reply, _id} ->
        unclaimed(frame)

      :unknown ->
        Logger.warning("a frame of no known kind: #{inspect(frame, limit: 40)}")
    end
  end

  defp reply([{_id, :open, reply_to, _caller, _flow}], frame, _connection) do
    send(reply_to, {reply_to, frame})
  end

  defp reply([], _frame, connection), do: Statistics.count(connection.counters, :late_replies)

  defp event([{id, :open, reply_to, _caller, flow}], frame, connection) when flow != nil do
    send(reply_to, {reply_to, frame})
    Statistics.count(connection.counters, :events)

    # Slot 1 is how many events wait; slot 2 is 1 when the worker was asked to hold back, 2 while it
    # is asked to go on. Only this process makes a 0 a 1, after the request is sent, so that no
    # resume can overtake its pause.
    if :atomics.add_get(flow, 1, 1) > @pause_above and :atomics.get(flow, 2) == 0 and
         OpenCall.notify(connection, "pause", id) do
      :atomics.put(flow, 2, 1)
    end
  end

  defp event(_, _frame, _connection), do: :ok

  # Replies to casts and to this client's own notes; without an id, what the worker could not read.
  defp unclaimed(frame) do
    with {:error, _, error} <- Protocol.decode_response(frame) do
      Logger.warning("the worker: #{error.code}: #{error.message}")
    end
  end

  defp log({:ok, %{"data" => %{"message" => message} = data}}) do
    Logger.log(level(data["level"]), fn ->
      {message,
       python_logger: data["logger"], request_id: data["request_id"], python_error: data["error"]}
    end)
  end

  defp log(_), do: :ok

  defp level("DEBUG"), do: :debug
  defp level("INFO"), do: :info
  defp level("WARNING"), do: :warning
  defp level(_), do: :error

  # Looking after callers

  defp sweep({id, :open, _reply_to, caller, flow}, connection) do
    cond do
      not Process.alive?(caller) ->
        :ets.delete(connection.table, id)
        Statistics.count(connection.counters, :abandoned)
        OpenCall.notify(connection, "cancel", id)

      # The consumer may have come to its end just before the flag was set.
      flow != nil and :atomics.get(flow, 2) == 1 and :atomics.get(flow, 1) < @resume_below ->
        OpenCall.resume(connection, id, flow)

      true ->
        :ok
    end
  end

  # Ending

  defp crashed(state, message, details) do
    Logger.error("#{inspect(state.name || self())}: #{message}")
    {:stop, {:shutdown, Error.new(:worker_crashed, message, details)}, state}
  end

  @impl true
  def terminate(reason, %{connection: connection} = state) do
    :ets.delete(connection.table, :connection)
    unless match?({:shutdown, %Error{}}, reason), do: end_worker(state)
    uptime = System.monotonic_time() - state.started
    metadata = %{name: state.name, os_pid: state.os_pid, reason: reason}
    Telemetry.worker(connection.telemetry, :stopped, %{uptime: uptime}, metadata)
  end

  defp end_worker(%{connection: connection} = state) do
    put_status(state, :stopping)

    request =
      Protocol.encode(connection.format, [{"id", "control"}, {"command", "shutdown"}], %{})

    deadline = Connection.now() + @stop_timeout

    case Connection.send(connection, request, deadline) do
      :ok -> if await_end(connection, deadline) == :late, do: WorkerPort.kill(state.os_pid)
      :busy -> WorkerPort.kill(state.os_pid)
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
end
