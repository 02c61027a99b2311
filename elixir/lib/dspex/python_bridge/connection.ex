defmodule DSPex.PythonBridge.Connection do
  @moduledoc """
  What a caller needs to talk to a worker by itself: the port, the table of open calls, the
  counters. The owner of the port makes one for each worker; callers find it in the table of the
  bridge (`DSPex.PythonBridge.Server`).

  Its own table holds

    * `{id, :open, reply_to, caller, flow}` for each open call; `flow` is `nil`, or the counters of
      a stream
    * `{{:tool, session_id, name}, function}` for each tool

  That table goes with its owner, so nothing can be sent to a worker that is gone.
  """

  alias DSPex.PythonBridge.{Error, Statistics}

  @enforce_keys [
    :owner,
    :bridge,
    :name,
    :port,
    :table,
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
          port: port(),
          table: :ets.table(),
          ids: :atomics.atomics_ref(),
          counters: Statistics.t(),
          format: DSPex.PythonBridge.Protocol.format(),
          max_frame: pos_integer(),
          tool_timeout: timeout()
        }

  # How long a name may be without a process: a supervisor restarts a bridge within this time.
  @restart_gap 200
  # Between two looks at something that another process is about to change.
  @pause 2
  # How much longer than its deadline the server may take to answer, ms.
  @slack 100

  @doc """
  Returns the connection of a server: a name, a pid, `{:via, …}`, `{:global, …}`, or a connection
  itself.

  A worker that starts is waited for, and a name without a process for as long as a supervisor may
  take to restart it, but neither beyond `deadline` (monotonic ms, or `:infinity`). Raises
  `DSPex.PythonBridge.Error`: `:worker_crashed` when there is no bridge, or with what ended the last
  worker where no other started in time; `:deadline_exceeded` where the first takes too long.
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

  @doc "Makes this process, a setup, reach its worker by the bridge's name, which takes no calls yet."
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

      found ->
        # A process that ended has a successor to come, which may take its own time.
        gap_end = if found == :ended, do: now() + @restart_gap, else: gap_end

        if is_pid(server) or now() >= gap_end or remaining(deadline) == 0 do
          raise not_running(server)
        end

        Process.sleep(@pause)
        find(server, deadline, gap_end)
    end
  end

  @doc """
  Asks the server itself, which answers by `deadline`. Returns `nil` where there is none, `:ended`
  where it ends.
  """
  @spec ask(GenServer.server(), term(), integer() | :infinity) :: term()
  def ask(server, question, deadline) do
    case GenServer.whereis(server) do
      nil ->
        nil

      pid when is_pid(pid) and node(pid) == node() ->
        GenServer.call(pid, question, patience(deadline))

      _ ->
        raise ArgumentError, "#{inspect(server)} is on another node: call the bridge there"
    end
  catch
    # Its first worker starts still.
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
        "no bridge runs as #{inspect(server)}: put {DSPex.PythonBridge.Bridge, []} under a " <>
          "supervisor, or call DSPex.PythonBridge.Bridge.start_link/1"
      )

    %{error | category: :initialization}
  end

  @doc "How many calls are open in the table of a worker, which may be gone."
  @spec open_calls(:ets.table() | nil) :: non_neg_integer()
  def open_calls(nil), do: 0

  def open_calls(table) do
    :ets.select_count(table, [{{:_, :open, :_, :_, :_}, [], [true]}])
  rescue
    ArgumentError -> 0
  end

  @doc "A new id for a request."
  @spec next_id(t()) :: pos_integer()
  def next_id(connection), do: :atomics.add_get(connection.ids, 1, 1)

  @doc """
  Hands a request to the port. Never waits beyond `deadline`: a port whose worker does not read is
  `:busy` then. `:closed` when the worker is gone; in both cases nothing was sent.
  """
  @spec send(t(), iodata(), integer() | :infinity) :: :ok | :busy | :closed
  def send(connection, request, deadline) do
    if Port.command(connection.port, request, [:nosuspend]) do
      :ok
    else
      if remaining(deadline) == 0 do
        :busy
      else
        Process.sleep(@pause)
        send(connection, request, deadline)
      end
    end
  rescue
    ArgumentError -> :closed
  end

  @doc "Monotonic time in ms, the unit of deadlines."
  @spec now() :: integer()
  def now, do: System.monotonic_time(:millisecond)

  @doc "Milliseconds until a deadline, 0 when it is over."
  @spec remaining(integer() | :infinity) :: timeout()
  def remaining(:infinity), do: :infinity
  def remaining(deadline), do: max(deadline - now(), 0)
end
