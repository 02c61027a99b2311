defmodule DSPex.PythonBridge.OpenCall do
  @moduledoc """
  The life of a call in the process that made it: options, request, wait, and result. Shared by
  `DSPex.PythonBridge.Call` and `DSPex.PythonBridge.EventStream`.

  A call is open while it has a row in the connection's table. The process that takes the row ends
  the call: the owner of the port when the reply arrives, or the caller when it stops waiting.
  """

  alias DSPex.PythonBridge.{Connection, Error, Flow, Protocol, Statistics}

  # How long a caller waits after its timeout for the worker's own reply, ms.
  @slack 250
  @default_timeout 30_000
  # Pause between two attempts to find a worker for a request that could not be sent, ms.
  @pause 2
  # 49 days, in ms: the maximum of `receive`, less some seconds by which processes wait longer than a
  # deadline. Longer timeouts are shortened to this.
  @longest_timeout 4_294_960_000
  @envelope_options [:session_id, :timing, :traceparent]

  @typedoc """
  A timeout in ms, or a keyword list of `:timeout`, `:session_id`, `:timing` and `:traceparent`.
  """
  @type options :: timeout() | keyword()

  @doc """
  Returns the timeout and the request's other envelope keys. Raises `ArgumentError` for unknown
  options.
  """
  @spec envelope(options()) :: {timeout(), [{String.t(), term()}]}
  def envelope(:infinity), do: {:infinity, []}

  def envelope(timeout) when is_integer(timeout) and timeout >= 0 do
    {timeout, [{"timeout_ms", timeout}]}
  end

  def envelope(options) do
    Keyword.keyword?(options) ||
      raise ArgumentError,
            "a timeout must be a non-negative integer in ms, or :infinity; options must be a " <>
              "keyword list"

    {timeout, options} = Keyword.pop(options, :timeout, @default_timeout)
    {timeout, head} = envelope(timeout)

    further =
      for {key, value} <- options, value != nil do
        key in @envelope_options || raise ArgumentError, "unknown option #{inspect(key)}"

        option?(key, value) ||
          raise ArgumentError, "the option #{inspect(key)} must be a #{kind(key)}"

        {Atom.to_string(key), value}
      end

    {timeout, head ++ further}
  end

  defp option?(:timing, value), do: is_boolean(value)
  defp option?(_key, value), do: is_binary(value) or (is_atom(value) and not is_boolean(value))

  defp kind(:timing), do: "boolean"
  defp kind(_key), do: "string"

  @doc "Returns the time at which a timeout has passed, in monotonic ms."
  @spec deadline(timeout()) :: integer() | :infinity
  def deadline(:infinity), do: :infinity
  def deadline(timeout), do: Connection.now() + min(timeout, @longest_timeout)

  @doc "Returns how many ms to wait for the reply."
  @spec patience(integer() | :infinity) :: timeout()
  def patience(:infinity), do: :infinity
  def patience(deadline), do: Connection.remaining(deadline) + @slack

  @doc """
  Returns the args of a call as a map. A struct is returned unchanged; the encoder decides whether
  it can be sent. Raises `ArgumentError` for anything but a map or a keyword list.
  """
  @spec args(map() | keyword()) :: map()
  def args(args) when is_map(args), do: args

  def args(args) when is_list(args) do
    Map.new(args)
  rescue
    ArgumentError -> refuse_args(args)
  end

  def args(args), do: refuse_args(args)

  @spec refuse_args(term()) :: no_return()
  defp refuse_args(args) do
    raise ArgumentError,
          "args must be a map or a keyword list, not #{inspect(args, limit: 5)}; after a " <>
            "server as the first argument, no other may be left out"
  end

  @doc """
  Runs a function with the connection of a server's worker.

  A function that returns `:closed` has not sent its request because the worker has ended. It runs
  again with the next worker, if one starts before the deadline.
  """
  @spec on_worker(GenServer.server() | Connection.t(), integer() | :infinity, fun) ::
          result | {:error, Error.t()}
        when fun: (Connection.t() -> result | :closed), result: term()
  def on_worker(server, deadline, run) do
    connection = Connection.fetch!(server, deadline)

    with :closed <- run.(connection) do
      if is_struct(server) or Connection.remaining(deadline) == 0 do
        counted({:error, Error.new(:worker_crashed, "the worker has ended")}, connection)
      else
        Process.sleep(@pause)
        on_worker(server, deadline, run)
      end
    end
  rescue
    error in Error -> {:error, error}
  end

  @doc """
  Returns the encoded request. Raises `DSPex.PythonBridge.Error` for a request that cannot be
  sent.
  """
  @spec request(Connection.t(), Protocol.id(), Protocol.command(), map(), list()) :: iodata()
  def request(connection, id, command, args, envelope) do
    head = [{"id", id}, {"command", to_string(command)} | envelope]
    request = Protocol.encode(connection.format, head, args)
    size = IO.iodata_length(request)

    if size > connection.max_frame do
      raise Error.new(
              :frame_too_large,
              "a request of #{size} bytes exceeds the limit of #{connection.max_frame} bytes",
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
    # The owner has ended, and its table with it.
    ArgumentError -> :closed
  end

  @doc "Ends a call on this side, and cancels it in the worker if it is still open."
  @spec abandon(Connection.t(), integer(), reference()) :: :ok
  def abandon(connection, id, reply_to) do
    if forget(connection, id, reply_to) == :open do
      Statistics.count(connection.counters, :abandoned)
      notify(connection, "cancel", id)
    end

    :ok
  end

  @doc "Sends `cancel`, `pause` or `resume` for a call. Returns whether the port took it at once."
  @spec notify(Connection.t(), String.t(), integer()) :: boolean()
  def notify(connection, command, id) do
    head = [{"id", "control"}, {"command", command}]
    request = Protocol.encode(connection.format, head, %{"id" => id})
    Connection.send(connection, request, Connection.now()) == :ok
  end

  @doc "Ends a call on this side. Returns `:open` if no reply had arrived, else `:ended`."
  @spec forget(Connection.t(), integer(), reference()) :: :open | :ended
  def forget(connection, id, reply_to) do
    :erlang.demonitor(reply_to, [:flush])
    flush(reply_to)
    if :ets.take(connection.table, id) == [], do: :ended, else: :open
  rescue
    # The owner has ended, and its table with it.
    ArgumentError -> :ended
  end

  defp flush(reply_to) do
    receive do
      {^reply_to, _frame} -> flush(reply_to)
    after
      0 -> :ok
    end
  end

  @doc "Returns the result of `DSPex.PythonBridge.Bridge.call/4` for a decoded reply."
  @spec result({:ok, term()} | :error) ::
          {:ok, term()} | {:ok, term(), map()} | {:error, Error.t()}
  def result({:ok, %{"success" => true, "result" => result, "timing" => timing}}) do
    {:ok, result, timing}
  end

  def result({:ok, %{"success" => true, "result" => result}}), do: {:ok, result}
  def result({:ok, %{"success" => false} = reply}), do: {:error, Error.from_reply(reply)}
  def result(_), do: {:error, Error.new(:invalid_frame, "the reply cannot be decoded")}

  @doc "Returns the error of a call whose owner has ended with the given reason."
  @spec crashed(term()) :: Error.t()
  def crashed({:shutdown, %Error{} = error}), do: error
  def crashed(_reason), do: Error.new(:worker_crashed, "the bridge was stopped during the call")

  @doc "Returns the error of a call that got no reply in time."
  @spec late(String.t()) :: Error.t()
  def late(message), do: Error.new(:deadline_exceeded, message)

  @doc "Counts a result and returns it."
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
