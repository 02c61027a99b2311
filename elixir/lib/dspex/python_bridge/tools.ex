defmodule DSPex.PythonBridge.Tools do
  @moduledoc """
  Elixir functions that programs call: declared to the worker, and run when it asks.

  Each call of a tool runs in a process of its own, so a tool may take its time and may call the
  bridge. What it raises becomes one line that the model is told.
  """

  alias DSPex.PythonBridge.{Call, Connection, Protocol, Statistics}
  alias DSPex.Tool

  # Characters of an error's line.
  @line_limit 500

  @doc "Declares tools; see `DSPex.PythonBridge.Bridge.register_tools/3`."
  @spec register(GenServer.server() | Connection.t(), [Tool.t()], Call.options()) ::
          {:ok, term()} | {:error, DSPex.PythonBridge.Error.t()}
  def register(_server, [], _options), do: {:ok, %{}}

  def register(server, tools, options) do
    connection = Connection.fetch!(server)
    session_id = Keyword.get(options, :session_id) || "default"

    for %Tool{name: name, run: run} <- tools do
      :ets.insert(connection.table, {{:tool, session_id, name}, run})
    end

    declared = Enum.map(tools, &Map.take(&1, [:name, :description, :args]))
    Call.run(connection, "register_tools", %{tools: declared}, options)
  rescue
    error in DSPex.PythonBridge.Error -> {:error, error}
  end

  @doc "Answers a worker's request from a process of its own."
  @spec answer(Connection.t(), binary()) :: :ok
  def answer(connection, frame) do
    {:ok, _pid} = Task.start(fn -> run(connection, Protocol.decode_message(frame)) end)
    Statistics.count(connection.counters, :tool_calls)
  end

  defp run(connection, {:ok, %{"id" => id, "command" => "call_tool", "args" => args}}) do
    answer =
      case call(connection.table, args) do
        {:ok, result} -> %{"id" => id, "success" => true, "result" => result}
        {:error, code, line} -> failure(id, code, line)
      end

    reply(connection, answer)
  end

  defp run(connection, {:ok, %{"id" => id, "command" => command}}) do
    reply(connection, failure(id, "unknown_command", "Unknown command: #{command}"))
  end

  defp run(_connection, _unreadable), do: :ok

  defp call(table, %{"name" => name, "args" => args} = call) do
    case :ets.lookup(table, {:tool, call["session_id"] || "default", name}) do
      [{_, function}] -> {:ok, function.(args)}
      [] -> {:error, "unknown_command", "no tool #{inspect(name)}"}
    end
  rescue
    error -> {:error, "handler_error", Exception.message(error)}
  catch
    kind, reason -> {:error, "handler_error", "#{kind}: #{inspect(reason)}"}
  end

  defp reply(connection, answer) do
    encoded =
      try do
        Protocol.encode_answer(connection.format, answer)
      rescue
        error ->
          answer = failure(answer["id"], "not_encodable", Exception.message(error))
          Protocol.encode_answer(connection.format, answer)
      end

    Connection.send(connection, encoded, :infinity)
  end

  defp failure(id, code, message) do
    line = message |> String.split("\n") |> hd() |> String.slice(0, @line_limit)
    %{"id" => id, "success" => false, "error" => line, "code" => code}
  end
end
