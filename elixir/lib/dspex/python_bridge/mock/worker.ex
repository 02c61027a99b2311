defmodule DSPex.PythonBridge.Mock.Worker do
  @moduledoc """
  A worker of a mock: the process that answers the frames of one connection.

  Runs of programs, and results that a test has set, have processes of their own. A call is answered
  once: by its process, by its deadline, or because it is cancelled.
  """

  use GenServer, restart: :temporary

  alias DSPex.PythonBridge.{Error, Exits}
  alias DSPex.PythonBridge.Mock.{Commands, Control, Frames, Rows, Runs, Script, State}

  # open: calls without a reply by id. asked: processes that wait for the host, by the id of their
  # request to it.
  @enforce_keys [:socket, :script, :state]
  defstruct @enforce_keys ++ [open: %{}, asked: %{}, requests: 0]

  @doc "Starts the worker of a connection, which then has to be given to it."
  @spec start_link({:gen_tcp.socket(), Script.t(), State.t()}) :: GenServer.on_start()
  def start_link({socket, script, state}) do
    worker = %__MODULE__{socket: socket, script: script, state: state}
    GenServer.start_link(__MODULE__, worker)
  end

  @impl true
  def init(worker) do
    Process.flag(:trap_exit, true)
    {:ok, worker}
  end

  @impl true
  def handle_info({:tcp, _socket, ""}, worker) do
    send_frame(worker, "")
    {:noreply, worker}
  end

  def handle_info({:tcp, _socket, frame}, worker) do
    case Frames.decode(frame) do
      {:ok, format, %{"id" => id, "command" => command} = message} when is_binary(command) ->
        args = message["args"]
        session_id = message["session_id"]
        in_args = if is_map(args), do: args["session_id"]
        recorded = %{command: command, args: args || %{}, session_id: session_id || in_args}
        Script.record(worker.script, recorded)
        request = Map.merge(message, %{"format" => format, "id" => id})
        received(request, worker)

      {:ok, _format, %{"id" => id, "success" => _} = answer} ->
        {{pid, ref}, asked} = Map.pop(worker.asked, id, {self(), nil})
        send(pid, {ref, answer})
        {:noreply, %{worker | asked: asked}}

      _ ->
        error = Error.new(:invalid_frame, "the mock cannot read this frame")
        send_frame(worker, Frames.reply(:etf, nil, {:error, error}))
        {:noreply, worker}
    end
  end

  def handle_info({:tcp_closed, _socket}, worker), do: {:stop, :normal, worker}
  def handle_info({:tcp_error, _socket, _reason}, worker), do: {:stop, :normal, worker}

  def handle_info({:handle, id}, worker) do
    case worker.open do
      %{^id => %{request: request}} -> handle(request, worker)
      _ -> {:noreply, worker}
    end
  end

  def handle_info({:event, id, event, data}, worker) do
    with %{^id => %{request: %{"stream" => true} = request}} <- worker.open do
      send_frame(worker, Frames.event(request["format"], id, event, data))
    end

    {:noreply, worker}
  end

  def handle_info({:ask, pid, ref, id, command, args}, worker) do
    case worker.open do
      %{^id => %{request: request}} ->
        number = worker.requests + 1
        send_frame(worker, Frames.host_call(request["format"], "w#{number}", command, args, id))
        asked = Map.put(worker.asked, "w#{number}", {pid, ref})
        {:noreply, %{worker | requests: number, asked: asked}}

      _ ->
        {:noreply, worker}
    end
  end

  def handle_info({:DOWN, monitor, _, _, reason}, worker) do
    case Enum.find(worker.open, fn {_, call} -> call[:monitor] == monitor end) do
      {id, call} -> {:noreply, ended(id, call, reason, worker)}
      nil -> {:noreply, worker}
    end
  end

  def handle_info({:deadline, id}, worker) do
    case worker.open do
      %{^id => %{request: request}} ->
        {:noreply, finish(id, {:error, late(request["timeout_ms"])}, worker)}

      _ ->
        {:noreply, worker}
    end
  end

  def handle_info(_message, worker), do: {:noreply, worker}

  defp late(ms) do
    Error.new(:deadline_exceeded, "no result within #{trunc(ms)} ms", %{"timeout_ms" => ms / 1})
  end

  defp received(
         %{"command" => command, "args" => %{"id" => id}} = request,
         %{open: open} = worker
       )
       when command in ["cancel", "pause", "resume"] and is_map_key(open, id) do
    worker =
      if command == "cancel",
        do: finish(id, {:error, Error.new(:cancelled, "the caller cancelled the call")}, worker),
        else: worker

    result = %{"id" => id, Control.done(command) => true}
    {:noreply, answered(request, {:ok, result}, worker)}
  end

  defp received(%{"id" => id, "command" => command} = request, worker) do
    timeout = request["timeout_ms"]
    inline = Commands.inline?(command)

    cond do
      is_map_key(worker.open, id) ->
        error = Error.new(:duplicate_id, "a call with id #{inspect(id)} is open already")
        {:noreply, answered(request, {:error, error}, worker)}

      not inline and is_number(timeout) and timeout <= 0 ->
        {:noreply, answered(request, {:error, late(timeout)}, worker)}

      true ->
        if not inline and is_number(timeout),
          do: Process.send_after(self(), {:deadline, id}, trunc(timeout))

        delayed(request, %{worker | open: Map.put(worker.open, id, %{request: request})}, inline)
    end
  end

  # A run takes what it needs from the session before it waits.
  defp delayed(%{"command" => "execute_" <> _} = request, worker, _inline),
    do: handle(request, worker)

  defp delayed(%{"command" => command} = request, worker, _inline)
       when command in ["evaluate", "optimize"],
       do: handle(request, worker)

  defp delayed(request, worker, true), do: handle(request, worker)

  defp delayed(request, worker, _inline) do
    case Script.delay(worker.script, request["command"]) do
      0 ->
        handle(request, worker)

      ms ->
        Process.send_after(self(), {:handle, request["id"]}, ms)
        {:noreply, worker}
    end
  end

  defp handle(%{"id" => id, "command" => command, "args" => args} = request, worker) do
    if Script.result?(worker.script, command) do
      {:noreply, start(id, worker, fn -> scripted!(worker.script, command, args) end)}
    else
      case Commands.answer(command, args, request["session_id"], worker.state) do
        {:error, error, state} ->
          {:noreply, finish(id, {:error, error}, %{worker | state: state})}

        {:run, run, state} ->
          {:noreply, start_run(id, run, command, %{worker | state: state})}

        {:ok, result, state} ->
          {:noreply, unless_injected(id, command, result, state, worker)}
      end
    end
  end

  defp handle(request, worker), do: handle(Map.put(request, "args", %{}), worker)

  defp unless_injected(id, command, result, changed, worker) do
    Script.raise_error!(worker.script, command)
    worker = finish(id, {:ok, result}, %{worker | state: changed})
    if command == "shutdown", do: :gen_tcp.shutdown(worker.socket, :write)
    worker
  rescue
    error in Error -> finish(id, {:error, error}, worker)
  end

  defp scripted!(script, command, args) do
    with {:error, error} <- Commands.check(command, args), do: raise(error)
    Script.raise_error!(script, command)
    {:ok, result} = Script.result(script, command, args || %{})
    Frames.plain(result)
  end

  defp start_run(id, run, command, worker) do
    {mock, script} = {self(), worker.script}

    host = %{
      emit: fn event, data -> send(mock, {:event, id, event, data}) end,
      ask: fn command, args -> ask(mock, id, command, args) end
    }

    worker = start(id, worker, fn -> work(run, command, script, host) end)
    put_in(worker.open[id][:run], run)
  end

  defp work(%{work: _} = run, command, script, host), do: Rows.run!(run, command, script, host)

  defp work(run, command, script, host) do
    {Runs.run!(run, command, script, host), &State.count_run(&1, run.call, run.program)}
  end

  defp ask(mock, id, command, args) do
    ref = make_ref()
    send(mock, {:ask, self(), ref, id, command, args})

    receive do
      {^ref, %{"success" => true, "result" => result}} -> {:ok, result}
      {^ref, answer} -> {:error, answer["error"] || "the host sent no answer"}
    end
  end

  # Starts the process of a call.
  defp start(id, worker, function) do
    {pid, monitor} = spawn_monitor(fn -> exit({:answer, outcome(function)}) end)
    call = Map.merge(worker.open[id], %{pid: pid, monitor: monitor})
    %{worker | open: Map.put(worker.open, id, call)}
  end

  defp outcome(function) do
    {:ok, function.()}
  rescue
    error in Error -> {:error, error}
  catch
    kind, reason ->
      {:error, Error.new(:handler_error, Exits.line(kind, reason, __STACKTRACE__))}
  end

  defp ended(id, %{run: _}, {:answer, {:ok, {result, change}}}, worker),
    do: finish(id, {:ok, result}, %{worker | state: change.(worker.state)})

  defp ended(id, _call, {:answer, answer}, worker), do: finish(id, answer, worker)

  defp ended(id, _call, reason, worker) do
    error = Error.new(:handler_error, Exits.line(:exit, reason, []))
    finish(id, {:error, error}, worker)
  end

  # Answers an open call, and ends its process.
  defp finish(id, answer, worker) do
    {call, open} = Map.pop!(worker.open, id)
    if call[:pid], do: Process.exit(call.pid, :kill)
    if call[:monitor], do: Process.demonitor(call.monitor, [:flush])
    answered(call.request, answer, %{worker | open: open})
  end

  defp answered(request, answer, worker) do
    send_frame(worker, Frames.reply(request["format"], request["id"], answer))
    worker
  end

  defp send_frame(worker, frame), do: :gen_tcp.send(worker.socket, frame)

  @impl true
  def terminate(_reason, worker) do
    for {_, %{pid: pid}} <- worker.open, do: Process.exit(pid, :kill)
  end
end
