defmodule DSPex.PythonBridge.Call do
  @moduledoc """
  One call, in the process that makes it: encodes and sends the request, waits, decodes the reply.
  The owner of the port is not asked; it hands the reply on as it came.
  """

  alias DSPex.PythonBridge.{Connection, Error, Protocol, Statistics, Telemetry}

  # Milliseconds that a caller waits beyond its timeout, for the worker to say so itself.
  @slack 250
  @default_timeout 30_000
  # Between two attempts to find a worker for a request that could not be sent.
  @pause 2

  @type options :: timeout() | keyword()

  @doc """
  Runs a call; see `DSPex.PythonBridge.Bridge.call/4`.
  """
  @spec run(GenServer.server() | Connection.t(), Protocol.command(), map() | keyword(), options()) ::
          {:ok, term()} | {:ok, term(), map()} | {:error, Error.t()}
  def run(server, command, args, options) do
    {timeout, envelope} = envelope(options)
    deadline = deadline(timeout)
    args = if is_list(args), do: Map.new(args), else: args
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
    run(connection, server, command, args, envelope, deadline)
  rescue
    error in Error -> counted({:error, error}, connection)
  end

  defp run(connection, server, command, args, envelope, deadline) do
    id = Connection.next_id(connection)
    Statistics.count(connection.counters, :calls)
    request = request(connection, id, command, args, envelope)
    reply_to = :erlang.monitor(:process, connection.owner, alias: :reply_demonitor)

    case open(connection, id, reply_to, request, deadline) do
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

  @doc false
  @spec request(Connection.t(), Protocol.id(), Protocol.command(), map(), list()) :: iodata()
  def request(connection, id, command, args, envelope) do
    head = [{"id", id}, {"command", to_string(command)} | envelope]
    request = Protocol.encode(connection.format, head, args)
    size = IO.iodata_length(request)

    if size > connection.max_frame do
      raise Error.new(
              :frame_too_large,
              "a request of #{size} bytes is longer than the limit of #{connection.max_frame} bytes",
              %{"length" => size, "limit" => connection.max_frame}
            )
    end

    request
  end

  @doc false
  @spec open(Connection.t(), integer(), reference(), iodata(), integer() | :infinity, term()) ::
          :ok | :busy | :closed
  def open(connection, id, reply_to, request, deadline, flow \\ nil) do
    :ets.insert(connection.table, {id, :open, reply_to, self(), flow})
    Connection.send(connection, request, deadline)
  rescue
    # The table went with its owner.
    ArgumentError -> :closed
  end

  defp await(connection, id, reply_to, deadline) do
    receive do
      {^reply_to, frame} -> result(Protocol.decode_message(frame))
      {:DOWN, ^reply_to, _, _, reason} -> {:error, crashed(reason)}
    after
      patience(deadline) ->
        abandon(connection, id, reply_to)
        {:error, late("no reply in time")}
    end
  end

  @doc false
  @spec result({:ok, term()} | :error) ::
          {:ok, term()} | {:ok, term(), map()} | {:error, Error.t()}
  def result({:ok, %{"success" => true, "result" => result, "timing" => timing}}) do
    {:ok, result, timing}
  end

  def result({:ok, %{"success" => true, "result" => result}}), do: {:ok, result}
  def result({:ok, %{"success" => false} = reply}), do: {:error, Error.from_reply(reply)}
  def result(_), do: {:error, Error.new(:invalid_frame, "the reply does not decode")}

  @doc false
  @spec crashed(term()) :: Error.t()
  def crashed({:shutdown, %Error{} = error}), do: error
  def crashed(_reason), do: Error.new(:worker_crashed, "the bridge was stopped during the call")

  @doc "See `DSPex.PythonBridge.Bridge.cast/3`."
  @spec cast(GenServer.server() | Connection.t(), Protocol.command(), map() | keyword()) ::
          :ok | {:error, Error.t()}
  def cast(server, command, args) do
    connection = Connection.fetch!(server)
    # A string: the owner knows by it that nobody waits for the reply.
    id = "cast-#{Connection.next_id(connection)}"
    request = request(connection, id, command, Map.new(args), [])
    Statistics.count(connection.counters, :casts)

    case Connection.send(connection, request, deadline(@default_timeout)) do
      :ok -> :ok
      :busy -> {:error, late("the worker does not read; nothing was sent")}
      :closed -> {:error, Error.new(:worker_crashed, "the worker is gone")}
    end
  rescue
    error in Error -> {:error, error}
  end

  @doc "Ends an open call: nobody waits for its reply, and the worker is told."
  @spec abandon(Connection.t(), integer(), reference()) :: :ok
  def abandon(connection, id, reply_to) do
    forget(connection, id, reply_to)
    Statistics.count(connection.counters, :abandoned)
    _ = notify(connection, "cancel", id)
    :ok
  end

  @doc "Sends `cancel`, `pause` or `resume` for a call, if the port takes it at once."
  @spec notify(Connection.t(), String.t(), integer()) :: boolean()
  def notify(connection, command, id) do
    head = [{"id", "control"}, {"command", command}]
    request = Protocol.encode(connection.format, head, %{"id" => id})
    Connection.send(connection, request, Connection.now()) == :ok
  end

  @doc "Lets a stream's events go on. `flow` is its counters, see the owner."
  @spec resume(Connection.t(), integer(), :atomics.atomics_ref()) :: boolean()
  def resume(connection, id, flow) do
    notify(connection, "resume", id) and :atomics.put(flow, 2, 0) == :ok
  end

  @doc false
  @spec forget(Connection.t(), integer(), reference()) :: :ok
  def forget(connection, id, reply_to) do
    :erlang.demonitor(reply_to, [:flush])

    try do
      :ets.delete(connection.table, id)
    rescue
      ArgumentError -> true
    end

    flush(reply_to)
  end

  defp flush(reply_to) do
    receive do
      {^reply_to, _frame} -> flush(reply_to)
    after
      0 -> :ok
    end
  end

  @doc false
  @spec late(String.t()) :: Error.t()
  def late(message), do: Error.new(:deadline_exceeded, message)

  @doc false
  @spec patience(integer() | :infinity) :: timeout()
  def patience(:infinity), do: :infinity
  def patience(deadline), do: Connection.remaining(deadline) + @slack

  @doc false
  @spec counted(result, Connection.t()) :: result when result: tuple()
  def counted({:error, error} = result, connection) do
    Statistics.count(connection.counters, error.code)
    result
  end

  def counted(result, connection) do
    Statistics.count(connection.counters, :replies)
    result
  end

  @doc false
  @spec deadline(timeout()) :: integer() | :infinity
  def deadline(:infinity), do: :infinity
  def deadline(timeout), do: Connection.now() + timeout

  @doc false
  @spec envelope(options()) :: {timeout(), [{String.t(), term()}]}
  def envelope(:infinity), do: {:infinity, []}

  def envelope(timeout) when is_integer(timeout) and timeout >= 0,
    do: {timeout, [{"timeout_ms", timeout}]}

  def envelope(options) when is_list(options) do
    {timeout, options} = Keyword.pop(options, :timeout, @default_timeout)
    {timeout, head} = envelope(timeout)

    further =
      for {key, value} <- options, value != nil do
        key in [:session_id, :timing, :traceparent] ||
          raise ArgumentError, "unknown option #{inspect(key)}"

        {Atom.to_string(key), value}
      end

    {timeout, head ++ further}
  end
end
