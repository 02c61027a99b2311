defmodule DSPex.PythonBridge.Cluster.Homes do
  @moduledoc """
  On which node a session is: its home. Usually that is its owner, the first node of `Ring.owners/2`, and
  a durable session always goes there. One whose state is only in a worker stays where it is while that
  node takes part, also if a node that has joined is its owner: then the owner passes its calls on.

  A node that has joined, or comes back after the others have left it out, does not know of such sessions.
  So after each of these events the owner of a session asks the other nodes once, at the next call of the
  session, whether they have it. If several do, because they could not see each other, the one that was
  used last stays, and the others are ended.

  The table holds `{id, home, generation, used}`: `home` is the incarnation of the pool where the session was
  when this node last called it, `generation` that of the `View` when this node has asked the others, and
  `used` the time of a recent call, in ms. So a caller notices that a session it knew is gone with its node.
  """

  alias DSPex.PythonBridge.{Connection, Pool}
  alias DSPex.PythonBridge.Cluster.{Remote, View}
  alias DSPex.PythonBridge.Pool.{Request, Sessions}

  # How long the others' answers are waited for, ms.
  @patience 1_000
  # A row is not written again for so many ms, and is removed when it was not used for as long as idle
  # sessions live by default.
  @touch_after 1_000
  @idle 3_600_000

  @doc "Returns a new table, of the calling process."
  @spec new_table() :: :ets.table()
  def new_table,
    do: :ets.new(__MODULE__, [:public, read_concurrency: true, write_concurrency: true])

  @doc "Returns the home of a session when this node last called it, or `nil`."
  @spec known(Pool.t(), String.t()) :: reference() | nil
  def known(pool, id) do
    case :ets.lookup(pool.cluster.homes, id) do
      [{_id, home, _generation, _used}] -> home
      [] -> nil
    end
  rescue
    # The pool has been stopped.
    ArgumentError -> nil
  end

  @doc "Notes the home of a session that a call has found."
  @spec found(Pool.t(), String.t(), reference()) :: true
  def found(pool, id, home) do
    case :ets.lookup(pool.cluster.homes, id) do
      [{_id, ^home, _generation, used}] -> touch(pool, id, used)
      _ -> put(pool, id, home, nil)
    end
  rescue
    ArgumentError -> true
  end

  @doc "Forgets a home that is gone. Of several processes, one gets `true`."
  @spec forget(Pool.t(), String.t(), reference()) :: boolean()
  def forget(pool, id, home) do
    :ets.select_delete(pool.cluster.homes, [{{id, home, :_, :_}, [], [true]}]) == 1
  rescue
    ArgumentError -> false
  end

  @doc "Forgets the home of a session that has ended."
  @spec ended(Pool.t(), String.t()) :: true
  def ended(pool, id) do
    :ets.delete(pool.cluster.homes, id)
  rescue
    ArgumentError -> true
  end

  @doc "Forgets the homes of all sessions."
  @spec clear(Pool.t()) :: true
  def clear(pool) do
    :ets.delete_all_objects(pool.cluster.homes)
  rescue
    ArgumentError -> true
  end

  defp put(pool, id, home, generation) do
    :ets.insert(pool.cluster.homes, {id, home, generation, Connection.now()})
  end

  defp touch(pool, id, used) do
    now = Connection.now()
    now - used < @touch_after or :ets.update_element(pool.cluster.homes, id, {4, now})
  end

  @doc """
  Returns the home of a session that this node owns; `:lost` if the caller knows another one, `known`,
  which is gone with the state of the session; or `:later` while a node that takes part does not answer.
  """
  @spec place(Request.t(), View.t(), reference() | nil) :: {:ok, reference()} | :lost | :later
  def place(%{pool: pool, session_id: id} = request, view, known) do
    generation = view.generation

    case :ets.lookup(pool.cluster.homes, id) do
      [{_id, home, ^generation, used}] ->
        if takes_part?(view, pool, home) do
          touch(pool, id, used)
          if known in [nil, home] or kept?(request), do: {:ok, home}, else: :lost
        else
          ask(request, view, known)
        end

      _ ->
        ask(request, view, known)
    end
  rescue
    # The pool has been stopped.
    ArgumentError -> {:ok, pool.cluster.incarnation}
  end

  defp takes_part?(view, pool, home),
    do: home == pool.cluster.incarnation or View.node_of(view, home) != nil

  # A node that hangs may have the session.
  defp ask(%{pool: pool, session_id: id} = request, view, known) do
    question = {__MODULE__, :idle, [pool.name, id]}
    deadline = min(request.deadline, Connection.now() + @patience)
    answers = Remote.call_all(view.links, question, deadline)

    if List.keymember?(answers, :late, 1),
      do: :later,
      else: choose(request, view, known, used_last(pool, view, id, answers))
  end

  defp choose(%{pool: pool, session_id: id} = request, view, known, homes) do
    own = pool.cluster.incarnation
    home = List.first(homes, own)

    # What a node that takes part does not have any more has ended there.
    if known in [nil, home] or (homes == [] and takes_part?(view, pool, known)) or kept?(request) do
      for other <- Enum.drop(homes, 1), do: end_copy(pool, view, id, other)
      put(pool, id, home, view.generation)
      {:ok, home}
    else
      :lost
    end
  end

  # The homes of a session, the one that was used last first.
  defp used_last(pool, view, id, answers) do
    idle = for {node, {:ok, ms}} when is_integer(ms) <- answers, do: {ms, view.incarnations[node]}
    own = for {:ok, ms} <- [Sessions.idle(pool, id)], do: {ms, pool.cluster.incarnation}
    for {_, home} <- Enum.sort(own ++ idle), do: home
  end

  # Whether the state of the session is in the store, or the caller does not need it.
  defp kept?(%{pool: pool, session_id: id} = request) do
    pool.affinity == :hint or not Request.needs_state?(request) or
      (pool.stored and Sessions.stored?(pool, id, request.deadline))
  end

  defp end_copy(pool, view, id, home) do
    case View.node_of(view, home) do
      nil ->
        spawn(Sessions, :end_copy, [pool.name, id])

      node ->
        copy = {Sessions, :end_copy, [pool.name, id]}
        spawn(fn -> Remote.call(view.links[node], copy, Connection.now() + @patience) end)
    end
  end

  @doc """
  Returns for how many ms a session was not used on this node, or `nil` if it is not here. A durable
  one is let go: the node that asks has it from the store.
  """
  @spec idle(atom(), String.t()) :: non_neg_integer() | nil
  def idle(name, id) do
    with %Pool{} = pool <- Pool.get(name),
         {:ok, ms} <- Sessions.idle(pool, id),
         false <- pool.stored and Sessions.let_go(pool, id) do
      ms
    else
      _ -> nil
    end
  end

  @doc "Forgets the sessions that were not used for an hour."
  @spec sweep(Pool.t()) :: non_neg_integer()
  def sweep(pool) do
    unused = {:<, :"$1", Connection.now() - @idle}
    :ets.select_delete(pool.cluster.homes, [{{:_, :_, :_, :"$1"}, [unused], [true]}])
  rescue
    ArgumentError -> 0
  end
end
