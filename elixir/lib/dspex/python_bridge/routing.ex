defmodule DSPex.PythonBridge.Routing do
  @moduledoc """
  Sends each frame of a worker to the process it is for, and cleans up after callers that have
  ended. Runs in the owner of the port, and decodes no replies.
  """

  require Logger

  alias DSPex.PythonBridge.{Connection, Flow, HostCalls, OpenCall, Protocol, Statistics, Text}

  @doc "Routes one frame."
  @spec route(binary(), Connection.t()) :: term()
  def route(frame, connection) do
    case Protocol.peek(frame) do
      {:reply, id} when is_integer(id) ->
        reply(:ets.take(connection.table, id), frame, connection)

      {:event, id} ->
        event(:ets.lookup(connection.table, id), frame, connection)

      {:request, id} ->
        HostCalls.answer(connection, id, frame)

      {:log, _id} ->
        log(Protocol.decode_message(frame), connection)

      :heartbeat ->
        :ok

      {:reply, _id} ->
        unclaimed(frame, connection)

      :unknown ->
        Logger.warning("unknown kind of frame from the worker: #{inspect(frame, limit: 40)}",
          bridge: connection.name
        )
    end
  end

  defp reply([{_id, :open, reply_to, _caller, _flow}], frame, _connection) do
    send(reply_to, {reply_to, frame})
  end

  defp reply([], _frame, connection), do: Statistics.count(connection.counters, :late_replies)

  defp event([{id, :open, reply_to, _caller, flow}], frame, connection) when flow != nil do
    send(reply_to, {reply_to, frame})
    Statistics.count(connection.counters, :events)
    Flow.arrived(flow, connection, id)
  end

  defp event(_, _frame, _connection), do: :ok

  # Replies to casts and to this client's control requests. A reply without an id is for a frame
  # that the worker could not read.
  defp unclaimed(frame, connection) do
    with {:error, _, error} <- Protocol.decode_response(frame) do
      Logger.warning(
        "#{inspect(connection.name)}: #{error.code}: #{Text.line(error.message)}",
        bridge: connection.name
      )
    end
  end

  # Logs the first line of the message; the rest and tracebacks go into the metadata.
  defp log({:ok, %{"data" => %{"message" => message} = data}}, connection) do
    Logger.log(level(data["level"]), fn ->
      {one_line(to_string(message), data["error"]),
       bridge: connection.name,
       session_id: data["session_id"],
       request_id: data["request_id"],
       command: data["command"],
       python_logger: data["logger"],
       python_message: message,
       python_error: data["error"]}
    end)
  end

  defp log(_, _), do: :ok

  defp one_line(message, traceback) when is_binary(traceback) do
    raised = Text.raised(traceback)
    line = Text.line(message)
    if line =~ raised, do: line, else: "#{line} (#{raised})"
  end

  defp one_line(message, _traceback), do: Text.line(message)

  defp level("DEBUG"), do: :debug
  defp level("INFO"), do: :info
  defp level("WARNING"), do: :warning
  defp level(_), do: :error

  @doc "Cancels the calls whose callers have ended, and resumes streams that have caught up."
  @spec sweep(Connection.t()) :: :ok
  def sweep(connection) do
    for entry <- :ets.match_object(connection.table, {:_, :open, :_, :_, :_}) do
      sweep(entry, connection)
    end

    :ok
  end

  defp sweep({id, :open, _reply_to, caller, flow}, connection) do
    cond do
      not Process.alive?(caller) ->
        :ets.delete(connection.table, id)
        Statistics.count(connection.counters, :abandoned)
        OpenCall.notify(connection, "cancel", id)

      flow != nil ->
        Flow.resume(flow, connection, id)

      true ->
        :ok
    end
  end
end
