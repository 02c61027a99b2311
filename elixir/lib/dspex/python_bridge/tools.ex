defmodule DSPex.PythonBridge.Tools do
  @moduledoc """
  Elixir functions that programs call: declared to the worker, and run when it asks.

  Each call of a tool runs in a process of its own, so a tool may take its time and may call the
  bridge. What it raises becomes one line that the model is told.
  """

  alias DSPex.PythonBridge.{Call, Connection, Error, OpenCall, Protocol, Statistics}
  alias DSPex.Tool

  # Characters of an error's line.
  @line_limit 500

  @doc "Declares tools; see `DSPex.PythonBridge.Bridge.register_tools/3`."
  @spec register(GenServer.server() | Connection.t(), [Tool.t()], OpenCall.options()) ::
          {:ok, term()} | {:error, Error.t()}
  def register(_server, [], _options), do: {:ok, %{}}

  def register(server, tools, options) do
    connection = Connection.fetch!(server)
    declared = Enum.map(tools, &Map.take(&1, [:name, :description, :args]))
    reply = Call.run(connection, "register_tools", %{tools: declared}, options)

    # The worker says which session it was: without one it depends on the worker's mode.
    with {:ok, %{"session_id" => session_id}} <- reply do
      for %Tool{name: name, run: run} <- tools do
        :ets.insert(connection.table, {{:tool, session_id, name}, run})
      end

      reply
    end
  rescue
    error in Error -> {:error, error}
    # The table went with its owner.
    ArgumentError -> {:error, Error.new(:worker_crashed, "the worker is gone")}
  end

  @doc """
  Answers a worker's request from a process of its own. The tool runs in another one, so that its
  end is seen whatever ends it. It may outlive the call that it was for, but not the bridge.
  """
  @spec answer(Connection.t(), String.t(), binary()) :: :ok
  def answer(connection, id, frame) do
    spawn(fn ->
      answer = answered(connection, Protocol.decode_message(frame))
      if answer != :nobody, do: reply(connection, message(id, answer))
    end)

    Statistics.count(connection.counters, :tool_calls)
  end

  defp answered(
         connection,
         {:ok, %{"command" => "call_tool", "args" => %{"name" => name} = call}}
       ) do
    case :ets.lookup(connection.table, {:tool, call["session_id"] || "default", name}) do
      [{_, function}] -> run(connection, function, call["args"] || %{})
      [] -> {:error, "unknown_command", "no tool #{inspect(name)}"}
    end
  rescue
    # The table went with its owner.
    ArgumentError -> :nobody
  end

  defp answered(_connection, {:ok, %{"command" => "call_tool"}}) do
    {:error, "invalid_args", "call_tool needs the name of a tool"}
  end

  defp answered(_connection, {:ok, %{"command" => command}}) do
    {:error, "unknown_command", "Unknown command: #{command}"}
  end

  defp answered(_connection, _unreadable) do
    {:error, "invalid_frame", "the request does not decode"}
  end

  defp run(connection, function, args) do
    owner = Process.monitor(connection.owner)
    {tool, running} = spawn_monitor(fn -> exit({:answer, called(function, args)}) end)

    receive do
      {:DOWN, ^running, _, _, {:answer, answer}} ->
        answer

      {:DOWN, ^running, _, _, reason} ->
        {:error, "handler_error", "the tool's process ended: #{inspect(reason)}"}

      {:DOWN, ^owner, _, _, _} ->
        Process.exit(tool, :kill)
        :nobody
    end
  end

  defp called(function, args) do
    {:ok, function.(args)}
  rescue
    error -> {:error, "handler_error", Exception.message(error)}
  catch
    kind, reason -> {:error, "handler_error", "#{kind}: #{inspect(reason)}"}
  end

  defp message(id, {:ok, result}), do: %{"id" => id, "success" => true, "result" => result}
  defp message(id, {:error, code, line}), do: failure(id, code, line)

  defp reply(connection, answer) do
    Connection.send(connection, encoded(connection, answer), :infinity)
  end

  # What cannot be sent becomes an error that can: the program must not wait for nothing.
  defp encoded(connection, %{"id" => id} = answer) do
    encoded = Protocol.encode_answer(connection.format, answer)
    size = IO.iodata_length(encoded)

    if size > connection.max_frame do
      line = "a result of #{size} bytes is longer than #{connection.max_frame} bytes"
      Protocol.encode_answer(connection.format, failure(id, "reply_too_large", line))
    else
      encoded
    end
  rescue
    error ->
      answer = failure(id, "not_encodable", Exception.message(error))
      Protocol.encode_answer(connection.format, answer)
  end

  defp failure(id, code, message) do
    line = message |> String.split("\n") |> hd() |> String.slice(0, @line_limit)
    %{"id" => id, "success" => false, "error" => line, "code" => code}
  end
end
