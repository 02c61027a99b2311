defmodule DSPex.PythonBridge.Tools do
  @moduledoc """
  Elixir functions that programs call: registered with the worker, and run on its request.

  Each call of a tool runs in its own process, so a tool may run for long and may call the bridge.
  The worker always gets one answer: the result, or one line of text for the model. Exceptions are
  logged with their stacktrace.
  """

  require Logger

  alias DSPex.PythonBridge.{
    Call,
    Connection,
    Error,
    Exits,
    OpenCall,
    Protocol,
    Statistics,
    Telemetry,
    Text
  }

  alias DSPex.Tool

  # The default session's id, which depends on the worker's mode.
  @default_sessions ["default", "anonymous"]

  @doc "Returns a new table of tools, of the calling process."
  @spec new_table() :: :ets.table()
  # Ordered, so that the tools of one session are found without reading all others.
  def new_table, do: :ets.new(__MODULE__, [:public, :ordered_set, read_concurrency: true])

  @doc "Removes the functions of a session that has ended."
  @spec forget(:ets.table(), String.t()) :: true
  def forget(table, session_id), do: :ets.match_delete(table, {{session_id, :_}, :_})

  @doc "Registers tools; see `DSPex.PythonBridge.Bridge.register_tools/3`."
  @spec register(GenServer.server() | Connection.t(), [Tool.t()], OpenCall.options()) ::
          {:ok, term()} | {:error, Error.t()}
  def register(_server, [], _options), do: {:ok, %{}}

  def register(server, tools, options) do
    declared = declared!(tools)
    {timeout, _} = OpenCall.envelope(options)
    connection = Connection.fetch!(server, OpenCall.deadline(timeout))
    reply = Call.run(connection, "register_tools", %{tools: declared}, options)

    # The worker reports the session: without an option it depends on the worker's mode.
    with {:ok, %{"session_id" => session_id}} <- reply,
         :ok <- put(connection.tools, session_id, tools),
         do: reply
  rescue
    error in Error -> {:error, error}
  end

  @doc "Returns the declarations of tools for a worker. Raises `ArgumentError` for anything else."
  @spec declared!([Tool.t()]) :: [map()]
  def declared!(tools) do
    (is_list(tools) and Enum.all?(tools, &is_struct(&1, Tool))) ||
      raise ArgumentError, "tools must be a list of DSPex.Tool structs"

    Enum.map(tools, &Map.take(&1, [:name, :description, :args]))
  end

  @doc "Adds the functions of a session's tools to a table."
  @spec put(:ets.table(), String.t(), [Tool.t()]) :: :ok | {:error, Error.t()}
  def put(table, session_id, tools) do
    for %Tool{name: name, run: run} <- tools, do: :ets.insert(table, {{session_id, name}, run})

    :ok
  rescue
    # The owner has ended, and its table with it.
    ArgumentError -> {:error, Error.new(:worker_crashed, "the worker has ended")}
  end

  @doc """
  Answers a worker's request in a new process.

  The tool runs in another new process, whose end is noticed whatever the reason. It may run
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
    kind, reason -> {:error, "internal", Exits.line(kind, reason, __STACKTRACE__)}
  end

  defp answered(
         connection,
         {:ok, %{"command" => "call_tool", "args" => %{"name" => name} = call} = request}
       ) do
    session = call["session_id"] || "default"

    metadata = %{
      bridge: connection.name,
      tool: name,
      session_id: session,
      call_id: request["call_id"]
    }

    case find(connection, session, name) do
      {:ok, function} -> observed(connection, function, call["args"] || %{}, metadata)
      :error -> {:error, "unknown_command", missing(name, session)}
      :no_worker -> :no_worker
    end
  end

  defp answered(_connection, {:ok, %{"command" => "call_tool"}}) do
    {:error, "invalid_args", "call_tool needs the name of a tool"}
  end

  defp answered(_connection, {:ok, %{"command" => command}}) do
    {:error, "unknown_command", "Unknown command: #{inspect(command)}"}
  end

  defp answered(_connection, _unreadable) do
    {:error, "invalid_frame", "the request cannot be decoded"}
  end

  defp missing(name, session) do
    "no function for the tool #{inspect(name)} of session #{inspect(session)}: " <>
      "after a restart only the tools of :tools and :setup are registered"
  end

  # A session's own tools come before those of the default session.
  defp find(connection, session, name) do
    Enum.find_value([session | @default_sessions], :error, fn session ->
      with [{_, function}] <- :ets.lookup(connection.tools, {session, name}),
           do: {:ok, function},
           else: (_ -> nil)
    end)
  rescue
    # The owner has ended, and its table with it.
    ArgumentError -> :no_worker
  end

  defp observed(connection, function, args, metadata) do
    started = Telemetry.start(:tool, metadata)

    case run(connection, function, args) do
      {:raised, kind, reason, stacktrace} ->
        crash = %{kind: kind, reason: reason, stacktrace: stacktrace}
        Telemetry.finish(started, :tool, :exception, Map.merge(metadata, crash))
        {:error, "handler_error", failed(crash, metadata)}

      answer ->
        Telemetry.finish(started, :tool, :stop, Map.put(metadata, :code, code(answer)))
        answer
    end
  end

  defp code({:ok, _}), do: :ok
  defp code({:error, code, _line}), do: String.to_existing_atom(code)
  defp code(:no_worker), do: :worker_crashed

  defp run(connection, function, args) do
    owner = Process.monitor(connection.owner)
    {tool, running} = spawn_monitor(fn -> exit({:answer, called(function, args)}) end)

    receive do
      {:DOWN, ^running, _, _, {:answer, answer}} ->
        answer

      {:DOWN, ^running, _, _, reason} ->
        {:raised, :exit, reason, []}

      {:DOWN, ^owner, _, _, _} ->
        Process.exit(tool, :kill)
        :no_worker
    after
      connection.tool_timeout ->
        Process.exit(tool, :kill)

        line =
          "the tool did not return within #{connection.tool_timeout} ms (option :tool_timeout)"

        {:error, "deadline_exceeded", line}
    end
  end

  defp called(function, args) do
    {:ok, function.(args)}
  catch
    kind, reason -> {:raised, kind, reason, __STACKTRACE__}
  end

  # Logs the exception of a tool, and returns the line for the model.
  defp failed(%{kind: kind, reason: reason, stacktrace: stacktrace}, metadata) do
    line = cause(kind, reason, stacktrace)
    trace = Exception.format_stacktrace(Exits.without_arguments(stacktrace))
    what = "#{inspect(metadata.bridge)}: the tool #{inspect(metadata.tool)} failed: #{line}"

    Logger.error(if(stacktrace == [], do: what, else: "#{what}\n#{trace}"),
      bridge: metadata.bridge,
      session_id: metadata.session_id,
      request_id: metadata.call_id,
      crash_reason: {reason, stacktrace}
    )

    line
  end

  defp cause(:exit, reason, [] = stacktrace) do
    "the tool's process ended: " <> Exits.line(:exit, reason, stacktrace)
  end

  defp cause(kind, reason, stacktrace), do: Exits.line(kind, reason, stacktrace)

  defp message(id, {:ok, result}), do: %{"id" => id, "success" => true, "result" => result}
  defp message(id, {:error, code, line}), do: failure(id, code, line)

  defp reply(connection, answer, request) do
    Connection.send(connection, encoded(connection, answer, request), :infinity)
  end

  # A result that cannot be sent is replaced by an error, so that the program gets an answer.
  defp encoded(connection, %{"id" => id} = answer, request) do
    encoded = Protocol.encode_answer(connection.format, answer)
    size = IO.iodata_length(encoded)

    if size > connection.max_frame do
      line = "a result of #{size} bytes is longer than #{connection.max_frame} bytes"
      Protocol.encode_answer(connection.format, failure(id, "reply_too_large", line))
    else
      encoded
    end
  catch
    kind, reason ->
      line = Exits.line(kind, reason, __STACKTRACE__)
      what = "the result of #{tool(request)} cannot be sent"
      Logger.error("#{inspect(connection.name)}: #{what}: #{line}", bridge: connection.name)
      Protocol.encode_answer(connection.format, failure(id, "not_encodable", line))
  end

  defp tool({:ok, %{"args" => %{"name" => name}}}), do: "the tool #{inspect(name)}"
  defp tool(_request), do: "a tool"

  defp failure(id, code, message) do
    %{"id" => id, "success" => false, "error" => Text.line(message), "code" => code}
  end
end
