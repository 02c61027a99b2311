defmodule DSPex.PythonBridge.Connection do
  @moduledoc """
  The data that a caller needs to send requests to a worker itself: the port and its
  transport, the table of open calls, and the counters. The owner of the port creates one connection for each worker; callers
  read it from the bridge's table (`DSPex.PythonBridge.Server`).

  The connection's own table holds `{id, :open, reply_to, caller, flow}` for each open call; `flow` is
  `nil`, or the `DSPex.PythonBridge.Flow` of a stream. The table is deleted when its owner ends, so no
  request can be sent to a worker that has ended.

  `functions` is the table of `DSPex.PythonBridge.Functions`.
  """

  alias DSPex.PythonBridge.{Error, Statistics}

  @enforce_keys [
    :owner,
    :bridge,
    :name,
    :transport,
    :port,
    :table,
    :functions,
    :ids,
    :counters,
    :format,
    :max_frame,
    :tool_timeout
  ]
  defstruct @enforce_keys

  @type t :: %__MODULE__{
          owner: pid(),
          bridge: :ets.table(),
          name: term(),
          transport: module(),
          port: port(),
          table: :ets.table(),
          functions: :ets.table(),
          ids: :atomics.atomics_ref(),
          counters: Statistics.t(),
          format: DSPex.PythonBridge.Protocol.format(),
          max_frame: pos_integer(),
          tool_timeout: timeout()
        }

  # How long to wait for a name without a process, ms: a supervisor restarts a bridge in less
  # time.
  @restart_gap 200
  # Pause between two checks of something that another process is about to change, ms.
  @pause 2
  # How much later than the deadline the server may answer, ms.
  @slack 100

  @doc """
  Returns the connection of a server: a name, a pid, `{:via, …}`, `{:global, …}`, or a connection
  itself.

  Waits until `deadline` (monotonic ms, or `:infinity`) for a worker that is starting. Waits for a
  name without a process only as long as a supervisor needs to restart the bridge.

  Raises `DSPex.PythonBridge.Error` with `:worker_crashed` if there is no such bridge, or with the
  error of the last worker if no other has started in time, and with `:deadline_exceeded` if
  the first worker has not started in time.
  """
  @spec fetch!(GenServer.server() | t(), integer() | :infinity) :: t()
  def fetch!(server, deadline \\ :infinity)
  def fetch!(%__MODULE__{} = connection, _deadline), do: connection

  def fetch!(server, deadline) do
    lookup(server) || find(server, deadline, now() + @restart_gap)
  end

  defp lookup(name) when is_atom(name) do
    :ets.lookup_element(name, :connection, 2)
  rescue
    ArgumentError -> nil
  end

  defp lookup(_), do: nil

  @doc """
  Lets the calling process use this connection under the bridge's name, before the bridge takes
  calls from others. For the process that runs the setup.
  """
  @spec put_own(t()) :: :ok
  def put_own(connection) do
    Process.put(__MODULE__, connection)
    :ok
  end

  defp own(server) do
    case Process.get(__MODULE__) do
      %__MODULE__{name: ^server} = connection -> connection
      _ -> nil
    end
  end

  defp find(server, deadline, gap_end) do
    case lookup(server) || own(server) || ask(server, {:connection, deadline}, deadline) do
      %__MODULE__{} = connection ->
        connection

      {:ok, connection} ->
        connection

      {:error, error} ->
        raise error

      absent ->
        # A supervisor restarts a process that has just ended, so the wait begins again.
        gap_end = if absent == :ended, do: now() + @restart_gap, else: gap_end

        if is_pid(server) or now() >= gap_end or remaining(deadline) == 0 do
          raise not_running(server)
        end

        Process.sleep(@pause)
        find(server, deadline, gap_end)
    end
  end

  @doc """
  Calls the server process, which answers before `deadline`. Returns `nil` if there is no such
  process, and `:ended` if it ends before it answers.
  """
  @spec ask(GenServer.server(), term(), integer() | :infinity) :: term()
  def ask(server, question, deadline) do
    case GenServer.whereis(server) do
      nil ->
        nil

      pid when is_pid(pid) and node(pid) == node() ->
        GenServer.call(pid, question, patience(deadline))

      _ ->
        raise ArgumentError,
              "#{inspect(server)} is on another node; call the bridge from that node"
    end
  catch
    # The server is still waiting for its first worker.
    :exit, {:timeout, _} ->
      raise Error.new(:deadline_exceeded, "the worker did not start in time")

    :exit, {_reason, {GenServer, :call, _}} ->
      :ended
  end

  defp patience(:infinity), do: :infinity
  defp patience(deadline), do: remaining(deadline) + @slack

  defp not_running(server) do
    error =
      Error.new(
        :worker_crashed,
        "no bridge is running as #{inspect(server)}: add {DSPex.PythonBridge.Bridge, []} to a " <>
          "supervisor, or call DSPex.PythonBridge.Bridge.start_link/1"
      )

    %{error | category: :initialization}
  end

  @doc "Counts the open calls in the table of a worker. Returns 0 if the worker has ended."
  @spec open_calls(:ets.table() | nil) :: non_neg_integer()
  def open_calls(nil), do: 0

  def open_calls(table) do
    case :ets.info(table, :size) do
      :undefined -> 0
      size -> size
    end
  end

  @doc "Returns a new id for a request."
  @spec next_id(t()) :: pos_integer()
  def next_id(connection), do: :atomics.add_get(connection.ids, 1, 1)

  @doc """
  Sends a request to the worker.

  Waits until `deadline` while the port is busy because the worker does not read, then returns
  `:busy`. Returns `:closed` if the worker has ended. In both cases nothing was sent.
  """
  @spec send(t(), iodata(), integer() | :infinity) :: :ok | :busy | :closed
  def send(connection, request, deadline) do
    with :busy <- connection.transport.send(connection.port, request) do
      if remaining(deadline) == 0 do
        :busy
      else
        Process.sleep(@pause)
        send(connection, request, deadline)
      end
    end
  end

  @doc """
  Returns the connection with the limit of a worker that takes only shorter frames, as its reply to
  `hello` says.
  """
  @spec limited(t(), term()) :: t()
  def limited(connection, %{"max_frame" => limit}) when is_integer(limit) do
    %{connection | max_frame: min(connection.max_frame, limit)}
  end

  def limited(connection, _hello), do: connection

  @doc "Returns the monotonic time in ms, the unit of deadlines."
  @spec now() :: integer()
  def now, do: System.monotonic_time(:millisecond)

  @doc "Returns the ms until a deadline; 0 if it has passed."
  @spec remaining(integer() | :infinity) :: timeout()
  def remaining(:infinity), do: :infinity
  def remaining(deadline), do: max(deadline - now(), 0)
end
