defmodule DSPex.PythonBridge.Call do
  @moduledoc """
  One call, in the process that makes it: encodes and sends the request, waits, decodes the reply.
  The owner of the port is not asked; it hands the reply on as it came.
  """

  alias DSPex.PythonBridge.{Connection, Error, OpenCall, Protocol, Statistics, Telemetry}
  import OpenCall, only: [abandon: 3, counted: 2, forget: 3, late: 1, request: 5]

  # How long a cast waits for a port that takes nothing, ms.
  @cast_timeout 30_000
  # Between two attempts to find a worker for a request that could not be sent.
  @pause 2

  @doc """
  Runs a call; see `DSPex.PythonBridge.Bridge.call/4`.
  """
  @spec run(
          GenServer.server() | Connection.t(),
          Protocol.command(),
          map() | keyword(),
          OpenCall.options()
        ) ::
          {:ok, term()} | {:ok, term(), map()} | {:error, Error.t()}
  def run(server, command, args, options) do
    {timeout, envelope} = OpenCall.envelope(options)
    deadline = OpenCall.deadline(timeout)
    args = Map.new(args)
    connection = Connection.fetch!(server, deadline)

    if connection.telemetry do
      Telemetry.call(command, envelope, fn ->
        attempt(connection, server, command, args, envelope, deadline)
      end)
    else
      attempt(connection, server, command, args, envelope, deadline)
    end
  rescue
    error in Error -> {:error, error}
  end

  defp attempt(connection, server, command, args, envelope, deadline) do
    Statistics.count(connection.counters, :calls)
    run(connection, server, command, args, envelope, deadline)
  rescue
    error in Error -> counted({:error, error}, connection)
  end

  defp run(connection, server, command, args, envelope, deadline) do
    id = Connection.next_id(connection)
    request = request(connection, id, command, args, envelope)
    reply_to = :erlang.monitor(:process, connection.owner, alias: :reply_demonitor)

    case OpenCall.open(connection, id, reply_to, request, deadline) do
      :ok ->
        connection |> await(id, reply_to, deadline) |> counted(connection)

      :busy ->
        forget(connection, id, reply_to)
        counted({:error, late("the worker does not read; the call was not sent")}, connection)

      :closed ->
        forget(connection, id, reply_to)
        elsewhere(connection, server, command, args, envelope, deadline)
    end
  end

  # Nothing was sent, so it may go to the worker that comes next, if one comes in time.
  defp elsewhere(old, server, command, args, envelope, deadline) do
    if is_struct(server) or is_pid(server) or Connection.remaining(deadline) == 0 do
      counted({:error, Error.new(:worker_crashed, "the worker is gone")}, old)
    else
      Process.sleep(@pause)
      connection = Connection.fetch!(server, deadline)
      run(connection, server, command, args, envelope, deadline)
    end
  end

  defp await(connection, id, reply_to, deadline) do
    receive do
      {^reply_to, frame} -> OpenCall.result(Protocol.decode_message(frame))
      {:DOWN, ^reply_to, _, _, reason} -> {:error, OpenCall.crashed(reason)}
    after
      OpenCall.patience(deadline) ->
        abandon(connection, id, reply_to)
        {:error, late("no reply in time")}
    end
  end

  @doc "See `DSPex.PythonBridge.Bridge.cast/3`."
  @spec cast(GenServer.server() | Connection.t(), Protocol.command(), map() | keyword()) ::
          :ok | {:error, Error.t()}
  def cast(server, command, args) do
    connection = Connection.fetch!(server)
    # A string: the owner knows by it that nobody waits for the reply.
    id = "cast-#{Connection.next_id(connection)}"
    request = request(connection, id, command, Map.new(args), [])
    Statistics.count(connection.counters, :casts)

    case Connection.send(connection, request, OpenCall.deadline(@cast_timeout)) do
      :ok -> :ok
      :busy -> {:error, late("the worker does not read; nothing was sent")}
      :closed -> {:error, Error.new(:worker_crashed, "the worker is gone")}
    end
  rescue
    error in Error -> {:error, error}
  end
end
