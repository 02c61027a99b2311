defmodule DSPex.PythonBridge.HostCalls do
  @moduledoc """
  Runs the application's functions (`DSPex.PythonBridge.Functions`) on a worker's request.

  Each call of a function runs in its own process, so it may run for long and may call the bridge. The
  worker always gets one answer: the result, or one line of text, which is for the model if a tool has
  failed. Exceptions are logged with their stacktrace.
  """

  require Logger

  alias DSPex.PythonBridge.{
    Connection,
    Error,
    Exits,
    Functions,
    Protocol,
    Statistics,
    Telemetry,
    Text
  }

  # By the command of a request.
  @kinds %{
    "call_tool" => :tool,
    "call_model" => :model,
    "call_metric" => :metric,
    "call_reward" => :reward,
    "call_embedder" => :embedder
  }

  @doc """
  Answers a worker's request in a new process.

  The function runs in another new process, whose end is noticed whatever the reason. It may run
  longer than the call that needs it, but not longer than the worker.
  """
  @spec answer(Connection.t(), String.t(), binary()) :: :ok
  def answer(connection, id, frame) do
    spawn(fn ->
      request = Protocol.decode_message(frame)
      answer = guarded(connection, request)
      if answer != :no_worker, do: reply(connection, message(id, answer), request)
    end)

    Statistics.count(connection.counters, :tool_calls)
  end

  defp guarded(connection, request) do
    answered(connection, request)
  catch
    kind, reason -> failure("internal", Exits.line(kind, reason, __STACKTRACE__))
  end

  defp answered(connection, {:ok, %{"command" => command, "args" => %{"name" => name}} = request})
       when is_map_key(@kinds, command) do
    about = %{
      bridge: connection.name,
      kind: @kinds[command],
      name: name,
      session_id: request["args"]["session_id"] || "default",
      call_id: request["call_id"]
    }

    case Functions.find(connection.functions, about.session_id, about.kind, name) do
      {:ok, function} ->
        observed(connection, fn -> called(about.kind, function, connection, request) end, about)

      :error ->
        failure("unknown_command", missing(about))

      :no_worker ->
        :no_worker
    end
  end

  defp answered(_connection, {:ok, %{"command" => command}}) when is_map_key(@kinds, command) do
    failure("invalid_args", "#{command} needs the name of a #{@kinds[command]}")
  end

  defp answered(_connection, {:ok, %{"command" => command}}) do
    failure("unknown_command", "Unknown command: #{inspect(command)}")
  end

  defp answered(_connection, _unreadable) do
    failure("invalid_frame", "the request cannot be decoded")
  end

  defp missing(about) do
    "no function for the #{about.kind} #{inspect(about.name)} of session " <>
      "#{inspect(about.session_id)}: after a restart only those of the options and of :setup are " <>
      "registered"
  end

  defp observed(connection, run, about) do
    {event, metadata} = metadata(about)
    started = Telemetry.start(event, metadata)

    case run(connection, run, about.kind) do
      {:raised, kind, reason, stacktrace} ->
        crash = %{kind: kind, reason: reason, stacktrace: stacktrace}
        Telemetry.finish(started, event, :exception, Map.merge(metadata, crash))
        {code, details} = code_of(about.kind, reason)
        failure(code, failed(crash, about), details)

      answer ->
        Telemetry.finish(started, event, :stop, Map.put(metadata, :code, code(answer)))
        answer
    end
  end

  defp metadata(%{kind: :tool} = about) do
    {name, metadata} = about |> Map.delete(:kind) |> Map.pop!(:name)
    {:tool, Map.put(metadata, :tool, name)}
  end

  defp metadata(about), do: {:function, about}

  # An error that the application raises on purpose keeps its code; what a tool raises is for a model.
  defp code_of(kind, %Error{} = error) when kind != :tool,
    do: {to_string(error.code), error.details}

  defp code_of(_kind, _reason), do: {"handler_error", %{}}

  defp code({:ok, _}), do: :ok
  defp code({:error, code, _line, _details}), do: String.to_existing_atom(code)
  defp code(:no_worker), do: :worker_crashed

  defp run(connection, run, kind) do
    owner = Process.monitor(connection.owner)
    {pid, running} = spawn_monitor(fn -> exit({:answer, guarded(run)}) end)

    receive do
      {:DOWN, ^running, _, _, {:answer, answer}} ->
        answer

      {:DOWN, ^running, _, _, reason} ->
        {:raised, :exit, reason, []}

      {:DOWN, ^owner, _, _, _} ->
        Process.exit(pid, :kill)
        :no_worker
    after
      connection.tool_timeout ->
        Process.exit(pid, :kill)
        limit = "#{connection.tool_timeout} ms (option :tool_timeout)"
        failure("deadline_exceeded", "the #{kind} did not return within #{limit}")
    end
  end

  defp guarded(run) do
    run.()
  catch
    :throw, :call_has_ended -> failure("cancelled", "the call that needs the reply has ended")
    kind, reason -> {:raised, kind, reason, __STACKTRACE__}
  end

  # In the function's own process.

  defp called(:tool, function, _connection, request) do
    {:ok, function.(request["args"]["args"] || %{})}
  end

  defp called(:model, function, connection, %{"args" => args} = request) do
    args = Map.delete(args, "name")
    wants_pieces = args["stream"] == true

    emit = fn piece ->
      (is_binary(piece) and String.valid?(piece)) ||
        raise ArgumentError, "a piece of a model's reply must be a text in UTF-8"

      if wants_pieces, do: emit(connection, request, piece), else: :ok
    end

    result =
      cond do
        is_function(function, 1) -> function.(args)
        is_function(function, 2) -> function.(args, emit)
        wants_pieces and function_exported?(function, :stream, 2) -> function.stream(args, emit)
        true -> function.complete(args)
      end

    outcome(result)
  end

  defp called(_kind, function, _connection, request) do
    request["args"] |> Map.delete("name") |> function.() |> outcome()
  end

  defp outcome({:ok, result}), do: {:ok, result}
  defp outcome({:error, reason}) when is_exception(reason), do: raise(reason)
  defp outcome({:error, reason}) when is_binary(reason), do: raise(reason)
  defp outcome({:error, reason}), do: raise(Exits.line(:error, reason, []))
  defp outcome(result), do: {:ok, result}

  defp emit(connection, %{"id" => id} = request, text) do
    if ended?(connection, request["call_id"]), do: throw(:call_has_ended)
    event = %{"id" => id, "event" => "chunk", "data" => %{"text" => text}}
    Connection.send(connection, Protocol.encode_answer(connection.format, event), :infinity)
    :ok
  end

  defp ended?(_connection, nil), do: false
  # Of a cast, which has no entry in the table.
  defp ended?(_connection, id) when is_binary(id), do: false

  defp ended?(connection, id) do
    not :ets.member(connection.table, id)
  rescue
    # The owner has ended, and its table with it.
    ArgumentError -> true
  end

  # Logs the exception of a function, and returns the line for the worker.
  defp failed(%{kind: kind, reason: reason, stacktrace: stacktrace}, about) do
    line = cause(kind, reason, stacktrace, about)
    trace = Exception.format_stacktrace(Exits.without_arguments(stacktrace))
    what = "#{inspect(about.bridge)}: the #{about.kind} #{inspect(about.name)} failed: #{line}"

    Logger.error(if(stacktrace == [], do: what, else: "#{what}\n#{trace}"),
      bridge: about.bridge,
      session_id: about.session_id,
      request_id: about.call_id,
      crash_reason: {reason, stacktrace}
    )

    line
  end

  defp cause(:exit, reason, [] = stacktrace, about) do
    "the #{about.kind}'s process ended: " <> Exits.line(:exit, reason, stacktrace)
  end

  defp cause(kind, reason, stacktrace, _about), do: Exits.line(kind, reason, stacktrace)

  defp failure(code, line, details \\ %{}), do: {:error, code, line, details}

  defp message(id, {:ok, result}), do: %{"id" => id, "success" => true, "result" => result}
  defp message(id, {:error, code, line, details}), do: refusal(id, code, line, details)

  defp refusal(id, code, message, details \\ %{}) do
    refusal = %{"id" => id, "success" => false, "error" => Text.line(message), "code" => code}
    if details == %{}, do: refusal, else: Map.put(refusal, "details", details)
  end

  defp reply(connection, answer, request) do
    Connection.send(connection, encoded(connection, answer, request), :infinity)
  end

  # A result that cannot be sent is replaced by an error, so that the program gets an answer.
  defp encoded(connection, %{"id" => id} = answer, request) do
    encoded = Protocol.encode_answer(connection.format, answer)
    size = IO.iodata_length(encoded)

    if size > connection.max_frame do
      line = "a result of #{size} bytes is longer than #{connection.max_frame} bytes"
      Protocol.encode_answer(connection.format, refusal(id, "reply_too_large", line))
    else
      encoded
    end
  catch
    kind, reason ->
      line = Exits.line(kind, reason, __STACKTRACE__)
      what = "the result of #{function(request)} cannot be sent"
      Logger.error("#{inspect(connection.name)}: #{what}: #{line}", bridge: connection.name)
      Protocol.encode_answer(connection.format, refusal(id, "not_encodable", line))
  end

  defp function({:ok, %{"command" => command, "args" => %{"name" => name}}}),
    do: "the #{@kinds[command] || :tool} #{inspect(name)}"

  defp function(_request), do: "a function"
end
