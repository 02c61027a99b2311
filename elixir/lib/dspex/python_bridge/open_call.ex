defmodule DSPex.PythonBridge.OpenCall do
  @moduledoc """
  An open call, seen from the process that made it: what `DSPex.PythonBridge.Call` and
  `DSPex.PythonBridge.EventStream` share, from the options to the end.

  A call is open while it has a row in the connection's table. Whoever takes the row ends it: the
  owner when the reply comes, the caller when it waits no longer.
  """

  alias DSPex.PythonBridge.{Connection, Error, Flow, Protocol, Statistics}

  # Milliseconds that a caller waits beyond its timeout, for the worker to say so itself.
  @slack 250
  @default_timeout 30_000
  # Between two attempts to find a worker for a request that could not be sent.
  @pause 2
  # What `receive` can wait for, less the slack: 49 days. Longer timeouts count as this.
  @longest_timeout 4_294_967_000
  @envelope_options [:session_id, :timing, :traceparent]

  @typedoc "A timeout in ms, or `:timeout`, `:session_id`, `:timing` and `:traceparent`."
  @type options :: timeout() | keyword()

  @doc "The timeout and the further keys of the envelope. Raises ArgumentError for unknown options."
  @spec envelope(options()) :: {timeout(), [{String.t(), term()}]}
  def envelope(:infinity), do: {:infinity, []}

  def envelope(timeout) when is_integer(timeout) and timeout >= 0 do
    {timeout, [{"timeout_ms", timeout}]}
  end

  def envelope(options) do
    Keyword.keyword?(options) ||
      raise ArgumentError,
            "a timeout is a whole number of ms from 0, or :infinity; options are a keyword list"

    {timeout, options} = Keyword.pop(options, :timeout, @default_timeout)
    {timeout, head} = envelope(timeout)

    further =
      for {key, value} <- options, value != nil do
        key in @envelope_options || raise ArgumentError, "unknown option #{inspect(key)}"

        option?(key, value) ||
          raise ArgumentError, "the option #{inspect(key)} is no #{kind(key)}"

        {Atom.to_string(key), value}
      end

    {timeout, head ++ further}
  end

  defp option?(:timing, value), do: is_boolean(value)
  defp option?(_key, value), do: is_binary(value) or (is_atom(value) and not is_boolean(value))

  defp kind(:timing), do: "boolean"
  defp kind(_key), do: "string"

  @doc "The moment when a timeout is over, in monotonic ms."
  @spec deadline(timeout()) :: integer() | :infinity
  def deadline(:infinity), do: :infinity
  def deadline(timeout), do: Connection.now() + min(timeout, @longest_timeout)

  @doc "How many ms the reply is waited for."
  @spec patience(integer() | :infinity) :: timeout()
  def patience(:infinity), do: :infinity
  def patience(deadline), do: Connection.remaining(deadline) + @slack

  @doc """
  The args of a call as a map. A struct stays one, for the encoder to judge. Raises ArgumentError for
  a list that is none of pairs.
  """
  @spec args(map() | keyword()) :: map()
  def args(args) when is_map(args), do: args

  def args(args) do
    Map.new(args)
  rescue
    ArgumentError -> reraise ArgumentError, "args are a map or a keyword list", __STACKTRACE__
  end

  @doc """
  Runs a function with the connection of a server's worker; what returns `:closed` has sent nothing,
  and is run again with the next worker, if there is one by the deadline.
  """
  @spec on_worker(GenServer.server() | Connection.t(), integer() | :infinity, fun) ::
          result | {:error, Error.t()}
        when fun: (Connection.t() -> result | :closed), result: term()
  def on_worker(server, deadline, run) do
    connection = Connection.fetch!(server, deadline)

    with :closed <- run.(connection) do
      if is_struct(server) or Connection.remaining(deadline) == 0 do
        counted({:error, Error.new(:worker_crashed, "the worker is gone")}, connection)
      else
        Process.sleep(@pause)
        on_worker(server, deadline, run)
      end
    end
  rescue
    error in Error -> {:error, error}
  end

  @doc "The encoded request. Raises `DSPex.PythonBridge.Error` for what cannot be sent."
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

  @doc "Opens a call, with the flow of its events if it is a stream, and sends its request."
  @spec open(
          Connection.t(),
          integer(),
          reference(),
          iodata(),
          integer() | :infinity,
          Flow.t() | nil
        ) :: :ok | :busy | :closed
  def open(connection, id, reply_to, request, deadline, flow \\ nil) do
    :ets.insert(connection.table, {id, :open, reply_to, self(), flow})
    Connection.send(connection, request, deadline)
  rescue
    # The table went with its owner.
    ArgumentError -> :closed
  end

  @doc "Ends a call that may be open: nobody waits for its reply, and the worker is told."
  @spec abandon(Connection.t(), integer(), reference()) :: :ok
  def abandon(connection, id, reply_to) do
    if forget(connection, id, reply_to) == :open do
      Statistics.count(connection.counters, :abandoned)
      notify(connection, "cancel", id)
    end

    :ok
  end

  @doc "Sends `cancel`, `pause` or `resume` for a call, if the port takes it at once."
  @spec notify(Connection.t(), String.t(), integer()) :: boolean()
  def notify(connection, command, id) do
    head = [{"id", "control"}, {"command", command}]
    request = Protocol.encode(connection.format, head, %{"id" => id})
    Connection.send(connection, request, Connection.now()) == :ok
  end

  @doc "Ends a call on this side; says whether it was open still, without a reply on its way."
  @spec forget(Connection.t(), integer(), reference()) :: :open | :ended
  def forget(connection, id, reply_to) do
    :erlang.demonitor(reply_to, [:flush])
    flush(reply_to)
    if :ets.take(connection.table, id) == [], do: :ended, else: :open
  rescue
    # The table went with its owner.
    ArgumentError -> :ended
  end

  defp flush(reply_to) do
    receive do
      {^reply_to, _frame} -> flush(reply_to)
    after
      0 -> :ok
    end
  end

  @doc "What `DSPex.PythonBridge.Bridge.call/4` returns for a decoded reply."
  @spec result({:ok, term()} | :error) ::
          {:ok, term()} | {:ok, term(), map()} | {:error, Error.t()}
  def result({:ok, %{"success" => true, "result" => result, "timing" => timing}}) do
    {:ok, result, timing}
  end

  def result({:ok, %{"success" => true, "result" => result}}), do: {:ok, result}
  def result({:ok, %{"success" => false} = reply}), do: {:error, Error.from_reply(reply)}
  def result(_), do: {:error, Error.new(:invalid_frame, "the reply does not decode")}

  @doc "The error for an owner that ended with a reason."
  @spec crashed(term()) :: Error.t()
  def crashed({:shutdown, %Error{} = error}), do: error
  def crashed(_reason), do: Error.new(:worker_crashed, "the bridge was stopped during the call")

  @doc "The error of a call that nobody answers in time."
  @spec late(String.t()) :: Error.t()
  def late(message), do: Error.new(:deadline_exceeded, message)

  @doc "The result, counted."
  @spec counted(result, Connection.t()) :: result when result: tuple()
  def counted({:error, error} = result, connection) do
    Statistics.count(connection.counters, error.code)
    result
  end

  def counted(result, connection) do
    Statistics.count(connection.counters, :replies)
    result
  end
end
