defmodule DSPex.PythonBridge.Pool.Sessions do
  @moduledoc """
  Which worker has which session: a table with a row `{id, owner, connection, used, new?}` for each
  session, where `owner` is the process of the worker, `used` the time of a recent call in ms, and `new?`
  whether no call has reached the worker yet.

  Callers read and add rows themselves. A row is removed when the session has ended, when its worker
  has dropped it (it expired, or was evicted), and when the loss of its worker has been reported.

  A pool that has been stopped has no table any more, and so no sessions and no workers.
  """

  alias DSPex.PythonBridge.{Call, Connection, Functions, Pool}
  alias DSPex.PythonBridge.Cluster.Homes
  alias DSPex.PythonBridge.Pool.{Choice, Providers, Server}

  # A row is not written again for so many ms.
  @touch_after 1_000
  # A row that was used later than so many ms before a worker listed its sessions is kept although
  # the session is not in the list: its call may have been on the way.
  @margin 10_000
  # Pause before a question is asked again, and the time for its answer, ms.
  @pause 5
  @timeout 5_000

  @doc "Returns a new table, of the calling process."
  @spec new_table() :: :ets.table()
  def new_table, do: :ets.new(__MODULE__, [:public, read_concurrency: true])

  @doc """
  Returns the connection of a session's worker, and whether the session is new; chooses a worker for a
  new one. Otherwise as `DSPex.PythonBridge.Pool.Choice.choose/2`.
  """
  @spec place(Pool.t(), String.t(), integer() | :infinity) ::
          {:ok, Connection.t(), new? :: boolean()}
          | {:error, DSPex.PythonBridge.Error.t()}
          | :none
  def place(pool, id, deadline) do
    case :ets.lookup(pool.sessions, id) do
      [{_id, _owner, connection, used, new?}] ->
        if touch(pool, id, used), do: {:ok, connection, new?}, else: place(pool, id, deadline)

      [] ->
        with {:ok, connection} <- new_place(pool, id, deadline) do
          # Another process may have placed the session meanwhile.
          if put(pool, id, connection),
            do: {:ok, connection, true},
            else: place(pool, id, deadline)
        end
    end
  rescue
    ArgumentError -> :none
  end

  @doc "Notes that a call of a new session has reached its worker."
  @spec reached(Pool.t(), String.t()) :: boolean()
  def reached(pool, id) do
    :ets.update_element(pool.sessions, id, {5, false})
  rescue
    ArgumentError -> false
  end

  defp touch(pool, id, used) do
    now = Connection.now()
    now - used < @touch_after or :ets.update_element(pool.sessions, id, {4, now})
  end

  defp new_place(%{isolate: nil} = pool, _id, _deadline), do: Choice.choose(pool)
  defp new_place(pool, id, deadline), do: Server.start_for(pool.server, id, deadline)

  @doc "Adds a session; returns whether it was not there."
  @spec put(Pool.t(), String.t(), Connection.t()) :: boolean()
  def put(pool, id, connection) do
    :ets.insert_new(pool.sessions, {id, connection.owner, connection, Connection.now(), true})
  end

  @doc "Returns the connection of a session that has one."
  @spec find(Pool.t(), String.t()) :: Connection.t() | nil
  def find(pool, id) do
    case :ets.lookup(pool.sessions, id) do
      [{_id, _owner, connection, _used, _new?}] -> connection
      [] -> nil
    end
  rescue
    ArgumentError -> nil
  end

  @doc """
  Removes a session that a worker had, with its functions. Returns whether it was there: of several
  processes, one gets `true`.
  """
  @spec remove(Pool.t(), String.t(), pid()) :: boolean()
  def remove(pool, id, owner) do
    remove_row(pool, id, {id, owner, :_, :_, :_})
  end

  defp remove_row(pool, id, row, guards \\ []) do
    pattern = [{row, guards, [true]}]
    removed = :ets.select_delete(pool.sessions, pattern) == 1

    if removed do
      Functions.forget(pool.functions, id)
      Providers.forget(pool, id)
    end

    removed
  rescue
    ArgumentError -> false
  end

  @doc """
  Says what becomes of a session whose worker has ended: `:moved` to another worker, which has it from
  the store or, where the affinity is a hint, begins a new one; `:lost`, which one caller gets as an error;
  `:new` for the others, and if no call had reached the worker.
  """
  @spec bereaved(Pool.t(), String.t(), Connection.t(), integer() | :infinity) ::
          :moved | :lost | :new
  def bereaved(pool, id, dead, deadline) do
    cond do
      pool.affinity == :hint -> move(pool, id, dead)
      remove_row(pool, id, {id, dead.owner, :_, :_, true}) -> :new
      pool.stored and stored?(pool, id, deadline) -> move(pool, id, dead)
      remove(pool, id, dead.owner) -> :lost
      true -> :new
    end
  end

  # Its functions stay: they belong to the pool.
  defp move(pool, id, dead) do
    :ets.select_delete(pool.sessions, [{{id, dead.owner, :_, :_, :_}, [], [true]}])
    :moved
  rescue
    ArgumentError -> :moved
  end

  @doc "Returns whether the store has a session. Any worker knows it."
  @spec stored?(Pool.t(), String.t(), integer() | :infinity) :: boolean()
  def stored?(pool, id, deadline),
    do: durable?(pool, id, min(deadline, Connection.now() + @timeout))

  defp durable?(pool, id, deadline) do
    with {:ok, pool} <- Server.await(pool.server, deadline),
         {:ok, connection} <- Choice.choose(pool),
         {:ok, %{"durable" => durable}} <- request(connection, "get_session", %{}, id) do
      durable
    else
      {:error, %{code: :session_not_found}} -> false
      _ -> Connection.remaining(deadline) != 0 and durable_later?(pool, id, deadline)
    end
  end

  defp durable_later?(pool, id, deadline) do
    Process.sleep(@pause)
    durable?(pool, id, deadline)
  end

  @doc "Returns for how many ms a session was not used, or `nil` if no worker has it."
  @spec idle(Pool.t(), String.t()) :: {:ok, non_neg_integer()} | nil
  def idle(pool, id) do
    case :ets.lookup(pool.sessions, id) do
      [{_id, _owner, _connection, used, _new?}] -> {:ok, max(Connection.now() - used, 0)}
      [] -> nil
    end
  rescue
    ArgumentError -> nil
  end

  @doc "Lets the next call of a session go to another worker if it is durable. Returns whether it is."
  @spec let_go(Pool.t(), String.t()) :: boolean()
  def let_go(pool, id) do
    with %Connection{} = connection <- find(pool, id),
         {:ok, %{"durable" => true}} <- request(connection, "get_session", %{}, id) do
      move(pool, id, connection)
      if pool.isolate, do: Server.ended(pool.server, id)
      true
    else
      _ -> false
    end
  end

  @doc """
  Ends what a worker has of a session that goes on elsewhere. What may be durable is only let go: its end
  would remove it from the store.
  """
  @spec end_copy(atom(), String.t()) :: :ok
  def end_copy(name, id) do
    with %Pool{} = pool <- Pool.get(name), %Connection{} = connection <- find(pool, id) do
      case request(connection, "get_session", %{}, id) do
        {:ok, %{"durable" => false}} ->
          request(connection, "cleanup_session", %{}, id)
          remove(pool, id, connection.owner)

        _durable_or_not_known ->
          move(pool, id, connection)
      end

      if pool.isolate, do: Server.ended(pool.server, id)
    end

    :ok
  end

  @doc "Removes all sessions."
  @spec clear(Pool.t()) :: :ok
  def clear(pool) do
    if pool.cluster, do: Homes.clear(pool)
    for {id, owner, _, _, _} <- :ets.tab2list(pool.sessions), do: remove(pool, id, owner)
    :ok
  rescue
    ArgumentError -> :ok
  end

  @doc "Returns how many sessions a worker has."
  @spec count(:ets.table(), pid()) :: non_neg_integer()
  def count(table, owner), do: :ets.select_count(table, [{{:_, owner, :_, :_, :_}, [], [true]}])

  @doc """
  Removes the sessions that a worker does not have any more. `known` is what this function returned
  the last time, or `nil`; the worker lists its sessions only if it has dropped some since, or if rows of
  some were too young to be removed.
  """
  @spec sweep(Pool.t(), Connection.t(), term()) :: term()
  def sweep(pool, connection, known) do
    before = Connection.now() - @margin

    with {:ok, counts} when counts != known <-
           request(connection, "list_sessions", %{limit: 0}, nil),
         {:ok, %{"sessions" => sessions}} <-
           request(connection, "list_sessions", %{limit: 1_000_000}, nil) do
      live = for %{"session_id" => id, "live" => true} <- sessions, into: MapSet.new(), do: id
      rows = :ets.select(pool.sessions, [{{:"$1", connection.owner, :_, :_, :_}, [], [:"$1"]}])
      dropped = Enum.reject(rows, &MapSet.member?(live, &1))
      removed = Enum.count(dropped, &remove_unused(pool, &1, connection.owner, before))
      if removed == length(dropped), do: counts, else: :more
    else
      _ -> known
    end
  end

  defp remove_unused(pool, id, owner, before) do
    remove_row(pool, id, {id, owner, :_, :"$1", :_}, [{:<, :"$1", before}])
  end

  @doc "Lets the next call of each durable session of a worker go to another worker."
  @spec release_durable(Pool.t(), Connection.t()) :: :ok
  def release_durable(pool, connection) do
    with {:ok, %{"sessions" => sessions}} <-
           request(connection, "list_sessions", %{limit: 1_000_000}, nil) do
      for %{"session_id" => id, "durable" => true} <- sessions, do: move(pool, id, connection)
    end

    :ok
  end

  defp request(connection, command, args, id) do
    Call.run(connection, command, args, timeout: @timeout, session_id: id)
  end
end
