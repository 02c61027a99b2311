defmodule DSPex.PythonBridge.Pool.Journal do
  @moduledoc """
  The state that all workers of a pool share: what was set up without a session, such as the language
  model, programs and tools of the default session.

  Changes happen one after the other. A change is made in one worker first; if it fails there, it has
  not happened. Then it is made in all others, and the caller gets its reply. A new worker gets all
  changes, in order, before its first call.

  Changes that a later one makes superfluous are dropped (see `DSPex.PythonBridge.Pool.Changes`). With
  10 000 entries the journal is full, and further changes return `:quota_exceeded`.

  In a cluster, the journal of one node makes all changes and passes them on to the others, whose workers
  then make them, too. A journal that has missed some takes over the entries of another one.
  """

  use GenServer
  require Logger

  alias DSPex.PythonBridge.{Call, Cluster, Connection, Error, OpenCall, Pool, Telemetry}
  alias DSPex.PythonBridge.Cluster.{Remote, View}
  alias DSPex.PythonBridge.Pool.{Changes, Providers, Server, Sessions}

  # For one change in a new worker, ms.
  @replay_timeout 60_000
  # How often a change is tried in a worker that ends while it makes it.
  @attempts 2
  # Pause before an overloaded worker is asked again, ms.
  @pause 50
  @most_entries 10_000
  # What the caller of a change waits longer than its deadline, ms.
  @slack 1_000
  # By command, the argument with the id of the program that it creates.
  @ids %{
    "create_program" => "id",
    "create_gemini_program" => "id",
    "import_program" => "program_id",
    "load_program" => "program_id"
  }

  # entries: see `Changes`. next: the number of the next one. since: of the first one after the last time
  # that all were replaced. members: the workers that have them all, by owner, the newest first. history:
  # see `Cluster.history/1`.
  @enforce_keys [:pool, :cluster]
  defstruct @enforce_keys ++ [entries: [], next: 1, since: 1, members: [], history: {0, 0}]

  @typedoc "What one journal tells another: its history, its entries (the oldest first), the providers of models."
  @type state :: {Cluster.history(), [Changes.entry()], list()}

  @doc false
  @spec start_link(Pool.t()) :: GenServer.on_start()
  def start_link(pool) do
    state = %__MODULE__{pool: pool.name, cluster: pool.cluster}
    GenServer.start_link(__MODULE__, state, name: pool.journal)
  end

  @doc """
  Makes a change in all workers. Returns the reply of the first, or `:none` if there is no worker.
  """
  @spec change(Pool.t(), Pool.kind(), atom() | String.t(), map(), list(), integer() | :infinity) ::
          {:ok, term()} | {:ok, term(), map()} | {:error, Error.t()} | :none
  def change(pool, kind, command, args, envelope, deadline) do
    patience =
      if deadline == :infinity, do: :infinity, else: Connection.remaining(deadline) + @slack

    change = %{kind: kind, command: to_string(command), args: args, envelope: envelope}

    reply =
      GenServer.call(
        pool.journal,
        {:change, pool, Map.put(change, :deadline, deadline)},
        patience
      )

    with {:raised, exception} <- reply, do: raise(exception)
  catch
    :exit, {:timeout, _} ->
      {:error, OpenCall.late("the workers did not make the change in time")}

    :exit, _reason ->
      {:error, Error.new(:worker_crashed, "the pool was stopped during the call")}
  end

  @doc """
  Makes a change that the journal of another node has made. Does nothing if it has missed one before, or
  makes one of its own meanwhile: two journals that waited for each other would do so for ever.
  """
  @spec follow(atom(), Cluster.history(), map(), integer() | :infinity) :: :ok | :missed
  def follow(pool, history, change, remaining) do
    %{cluster: cluster, journal: journal} = Pool.fetch!(pool)
    change = Map.put(change, :deadline, OpenCall.deadline(remaining))

    if Cluster.leads?(cluster),
      do: :missed,
      else: GenServer.call(journal, {:follow, history, change}, :infinity)
  end

  @doc "Returns what another journal needs in order to have the same entries."
  @spec state(atom()) :: state()
  def state(pool), do: GenServer.call(Pool.fetch!(pool).journal, :state, :infinity)

  @doc """
  Takes over the entries of another journal, unless those of this one have a later history. What only this
  one has is dropped and logged. Workers get what they lack, or successors if they have more than that.
  """
  @spec adopt(atom(), node(), state()) :: :ok
  def adopt(pool, from, state) do
    GenServer.call(Pool.fetch!(pool).journal, {:adopt, from, state}, :infinity)
  end

  @doc """
  Gives a new worker the shared state; from then on it gets every change. Runs in the process that
  prepares the worker, and raises if the worker does not make a change in time; one that it refuses is
  logged.
  """
  @spec join(GenServer.server(), Connection.t()) :: :ok
  def join(journal, connection), do: join(journal, connection, 0)

  defp join(journal, connection, done) do
    case GenServer.call(journal, {:join, connection, done}, :infinity) do
      :joined ->
        :ok

      {:more, entries, last} ->
        for {_, _, _, command, args} <- entries, do: replay!(connection, command, args)
        join(journal, connection, last)
    end
  end

  # A worker without, say, a program whose tool is gone is of more use than none.
  defp replay!(connection, command, args) do
    with {:error, error} <- Call.run(connection, command, args, @replay_timeout) do
      line = "the pool's #{command} failed: #{error.message}"

      if error.category in [:request, :python],
        do: Logger.error("#{inspect(connection.name)}: #{line}"),
        else: raise(%{error | message: line})
    end
  end

  @impl true
  def init(state) do
    leads(state, false)
    {:ok, told(state, {0, 0})}
  end

  @impl true
  def handle_call({:join, connection, done}, _from, state) do
    # It has got entries that have been replaced since.
    if done > 0 and done < state.since, do: succeed(state, connection.owner)

    case Enum.filter(state.entries, fn entry -> elem(entry, 0) > done end) do
      [] ->
        Process.monitor(connection.owner)
        {:reply, :joined, %{state | members: [{connection.owner, connection} | state.members]}}

      last_first ->
        {:reply, {:more, Enum.reverse(last_first), state.next - 1}, state}
    end
  end

  def handle_call({:change, pool, change}, _from, state) do
    leads(state, true)

    if full?(state, change),
      do: {:reply, {:error, full()}, state},
      else: made(state, pool, change)
  rescue
    # The args cannot be encoded: the caller's mistake.
    exception -> {:reply, {:raised, exception}, state}
  after
    leads(state, false)
  end

  def handle_call({:follow, history, change}, _from, state) do
    if Cluster.next(state.history, change) == history do
      pool = Pool.get(state.pool)
      results = made_by(pool, state.members, change, change.args)
      seen(pool, change, Enum.find_value(results, %{}, &made_well/1))
      {:reply, :ok, state |> entered(change, change.args) |> told(history)}
    else
      {:reply, :missed, state}
    end
  end

  def handle_call(:state, _from, state) do
    providers = Providers.shared(Pool.get(state.pool))
    {:reply, {state.history, Enum.reverse(state.entries), providers}, state}
  end

  def handle_call({:adopt, from, {history, theirs, providers}}, _from, state) do
    if history > state.history do
      Providers.share(Pool.get(state.pool), providers)
      {:reply, :ok, state |> adopted(from, theirs) |> told(history)}
    else
      {:reply, :ok, state}
    end
  end

  @impl true
  def handle_info({:DOWN, _, :process, owner, _reason}, state) do
    {:noreply, %{state | members: List.keydelete(state.members, owner, 0)}}
  end

  def handle_info(_message, state), do: {:noreply, state}

  defp made(state, pool, change) do
    {result, worker, others} = first(state.members, change, @attempts)

    if done?(result) do
      args = args_of_others(change, result)
      made_by(pool, others, change, args)
      {:reply, result, noted(state, pool, change, args, result)}
    else
      # It may have made the change although it has not said so.
      if uncertain?(result), do: Server.succeed(pool.server, worker.owner)
      {:reply, result, state}
    end
  end

  defp full?(state, %{kind: kind} = change) when kind in [:all, :everyone] do
    length(state.entries) >= @most_entries and grows?(state, change)
  end

  defp full?(_state, _change), do: false

  defp grows?(%{entries: entries, next: next}, change) do
    {more, _} = Changes.add(entries, change.kind, change.command, change.args, next)
    length(more) > length(entries)
  rescue
    # Invalid args, which a worker refuses.
    _ -> false
  end

  defp full do
    line = "the workers of a pool share at most #{@most_entries} changes made without a session"
    Error.new(:quota_exceeded, line <> ": use sessions", %{"limit" => @most_entries})
  end

  defp done?(:none), do: false
  defp done?(result), do: elem(result, 0) == :ok

  defp uncertain?({:error, %{code: code}}), do: code in [:deadline_exceeded, :cancelled]
  defp uncertain?(_result), do: false

  # What a worker that has ended did to its state has ended with it, so another may be asked.
  defp first([], _change, _attempts), do: {:none, nil, []}

  defp first([{_, connection} | others], change, attempts) do
    case attempt(connection, change, change.args) do
      :closed -> first(others, change, attempts)
      {:error, %{code: :worker_crashed}} when attempts > 1 -> first(others, change, attempts - 1)
      result -> {result, connection, others}
    end
  end

  defp attempt(connection, change, args) do
    Telemetry.span(:call, connection, change.command, change.envelope, fn ->
      Call.attempt(connection, change.command, args, change.envelope, change.deadline)
    end)
  end

  # A worker that cannot make the change does not have the state of the others: it is replaced.
  defp made_by(pool, members, change, args) do
    results =
      members
      |> Enum.map(fn {_, connection} ->
        Task.async(fn -> {connection, persist(connection, change, args)} end)
      end)
      |> Task.await_many(:infinity)

    for {connection, {:error, error}} <- results,
        do: Server.replace(pool.server, connection.owner, error)

    results
  end

  defp persist(connection, change, args) do
    with {:error, %{code: :overloaded}} = refused <- attempt(connection, change, args) do
      if Connection.remaining(change.deadline) == 0 do
        refused
      else
        Process.sleep(@pause)
        persist(connection, change, args)
      end
    end
  end

  # A program without an id gets the one that the first worker has given it. What the first has just
  # created is not in the way in the others.
  defp args_of_others(%{command: command} = change, result) when is_map_key(@ids, command) do
    args = Map.new(change.args, fn {key, value} -> {to_string(key), value} end)

    case elem(result, 1) do
      %{"program_id" => id} ->
        args = Map.put(args, @ids[command], id)

        if to_string(args["if_exists"]) == "keep",
          do: args,
          else: Map.put(args, "if_exists", "replace")

      _ ->
        args
    end
  end

  defp args_of_others(change, _result), do: change.args

  # Journal

  # What is kept has not changed.
  defp noted(state, _pool, _change, _args, result)
       when :erlang.map_get("status", elem(result, 1)) == "exists",
       do: state

  defp noted(state, pool, change, args, _result) do
    args = merged(Changes.merged_key(change.command, args), state.members, args)
    change = %{change | args: args}
    history = Cluster.next(state.history, change)
    pass_on(pool, history, change)
    state |> entered(change, args) |> told(history)
  end

  defp entered(state, %{kind: kind}, _args) when kind in [:end_session, :end_all] do
    %{state | entries: Changes.without_sessions(state.entries)}
  end

  defp entered(state, change, args) do
    {entries, next} = Changes.add(state.entries, change.kind, change.command, args, state.next)
    %{state | entries: entries, next: next}
  end

  # What was merged into a value is noted as the value that this has made.
  defp merged(nil, _members, args), do: args
  defp merged(_key, [], args), do: args

  defp merged(key, [{_, worker} | _], args) do
    case Call.run(worker, "get_session_data", %{key: key}, @replay_timeout) do
      {:ok, %{"data" => %{^key => value}}} -> %{key: key, value: value}
      _ -> args
    end
  end

  # Cluster

  defp told(state, history) do
    if state.cluster, do: Cluster.tell_history(state.cluster, history)
    %{state | history: history}
  end

  defp leads(state, leads?), do: if(state.cluster, do: Cluster.tell_leads(state.cluster, leads?))

  # One that does not answer, or has missed a change, takes over the entries later.
  defp pass_on(%{cluster: nil}, _history, _change), do: :ok

  defp pass_on(pool, history, change) do
    {deadline, change} = Map.pop!(change, :deadline)
    args = [pool.name, history, change, Connection.remaining(deadline)]
    Remote.call_all(View.get(pool.name).links, {__MODULE__, :follow, args}, deadline)
    :ok
  end

  defp made_well({_connection, {:ok, result}}), do: result
  defp made_well({_connection, {:ok, result, _timing}}), do: result
  defp made_well(_failed_or_ended), do: nil

  # What the caller of a change notes on its own node.
  defp seen(pool, %{kind: :end_all}, _result), do: Sessions.clear(pool)

  defp seen(pool, %{command: "configure_lm"}, result),
    do: Providers.configured(pool, nil, {:ok, result})

  defp seen(_pool, _change, _result), do: :ok

  defp adopted(state, from, theirs) do
    own = state.entries |> Enum.reverse() |> Enum.map(&content/1)
    {common, new} = Enum.split(theirs, length(own))

    if Enum.map(common, &content/1) == own do
      for entry <- new, do: make(state, entry)
      Enum.reduce(new, state, &add/2)
    else
      dropped = own -- Enum.map(theirs, &content/1)
      if dropped != [], do: log_dropped(state.pool, from, dropped)
      for {owner, _} <- state.members, do: succeed(state, owner)
      Enum.reduce(theirs, %{state | entries: [], since: state.next}, &add/2)
    end
  end

  defp succeed(state, owner), do: Server.succeed(Pool.get(state.pool).server, owner)

  # With a number of its own, so that a worker that is just getting all entries gets this one, too.
  defp add({_, key, kind, command, args}, state) do
    entry = {state.next, key, kind, command, args}
    %{state | entries: [entry | state.entries], next: state.next + 1}
  end

  defp content({_number, key, kind, command, args}), do: {key, kind, command, args}

  defp make(state, {_, _, kind, command, args}) do
    change = %{kind: kind, command: command, envelope: [], deadline: deadline()}
    made_by(Pool.get(state.pool), state.members, change, args)
  end

  defp deadline, do: OpenCall.deadline(@replay_timeout)

  defp log_dropped(pool, from, dropped) do
    counts = dropped |> Enum.frequencies_by(fn {_, _, command, _} -> command end) |> Enum.sort()
    commands = Enum.map_join(counts, ", ", fn {command, count} -> "#{count} × #{command}" end)

    Logger.warning(
      "#{inspect(pool)}: this node takes over what is set up without a session from #{from}; what was " <>
        "set up only here while the nodes were apart is dropped: #{commands}"
    )
  end

  @doc false
  @spec format_status(map()) :: map()
  def format_status(status),
    do: status |> Map.replace(:message, :hidden) |> Map.replace(:state, :hidden)
end
