defmodule DSPex.PythonBridge.Call do
  @moduledoc """
  Runs one call in the process that makes it: encodes and sends the request, waits, and decodes
  the reply. The owner of the port only forwards the reply's bytes.
  """

  alias DSPex.PythonBridge.{Connection, Error, OpenCall, Protocol, Statistics, Telemetry}
  import OpenCall, only: [abandon: 3, counted: 2, forget: 3, late: 1, on_worker: 3, request: 5]

  # How long a cast waits for a worker, and for a port that is busy, ms.
  @cast_timeout 30_000

  @type server :: GenServer.server() | Connection.t()

  @doc """
  Runs a call; see `DSPex.PythonBridge.Bridge.call/4`.
  """
  @spec run(server(), Protocol.command(), map() | keyword(), OpenCall.options()) ::
          {:ok, term()} | {:ok, term(), map()} | {:error, Error.t()}
  def run(server, command, args, options) do
    {timeout, envelope} = OpenCall.envelope(options)
    deadline = OpenCall.deadline(timeout)
    args = OpenCall.args(args)

    Telemetry.span(:call, server, command, envelope, fn ->
      on_worker(server, deadline, &attempt(&1, command, args, envelope, deadline))
    end)
  end

  @doc """
  Sends one request to one worker and waits for its reply. Returns `:closed` if nothing was sent because
  the worker has ended.
  """
  @spec attempt(Connection.t(), Protocol.command(), map(), list(), integer() | :infinity) ::
          {:ok, term()} | {:ok, term(), map()} | {:error, Error.t()} | :closed
  def attempt(connection, command, args, envelope, deadline) do
    id = Connection.next_id(connection)
    request = request(connection, id, command, args, envelope)
    reply_to = :erlang.monitor(:process, connection.owner, alias: :reply_demonitor)

    case OpenCall.open(connection, id, reply_to, request, deadline) do
      :ok ->
        Statistics.count(connection.counters, :calls)
        connection |> await(id, reply_to, deadline) |> counted(connection)

      :busy ->
        forget(connection, id, reply_to)
        Statistics.count(connection.counters, :calls)

        counted(
          {:error, late("the worker does not read its input; the call was not sent")},
          connection
        )

      :closed ->
        forget(connection, id, reply_to)
        :closed
    end
  rescue
    error in Error ->
      Statistics.count(connection.counters, :calls)
      counted({:error, error}, connection)
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

  @doc "Sends a cast; see `DSPex.PythonBridge.Bridge.cast/3`."
  @spec cast(server(), Protocol.command(), map() | keyword()) :: :ok | {:error, Error.t()}
  def cast(server, command, args) do
    deadline = OpenCall.deadline(@cast_timeout)
    args = OpenCall.args(args)

    Telemetry.span(:cast, server, command, [], fn ->
      on_worker(server, deadline, &send_cast(&1, command, args, deadline))
    end)
  end

  defp send_cast(connection, command, args, deadline) do
    # A string id tells the owner that no process waits for the reply.
    id = "cast-#{Connection.next_id(connection)}"
    request = request(connection, id, command, args, [])

    case Connection.send(connection, request, deadline) do
      :ok -> Statistics.count(connection.counters, :casts)
      :busy -> {:error, late("the worker does not read its input; nothing was sent")}
      :closed -> :closed
    end
  rescue
    error in Error -> {:error, error}
  end
end
