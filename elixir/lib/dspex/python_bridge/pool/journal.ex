defmodule DSPex.PythonBridge.Pool.Journal do
  @moduledoc """
  The state that all workers of a pool share: what was set up without a session, such as the language
  model, programs and tools of the default session.

  Changes happen one after the other. A change is made in one worker first; if it fails there, it has
  not happened. Then it is made in all others, and the caller gets its reply. A new worker gets all
  changes, in order, before its first call.

  Changes that a later one makes superfluous are dropped (see `DSPex.PythonBridge.Pool.Changes`). With
  10 000 entries the journal is full, and further changes return `:quota_exceeded`.
  """

  use GenServer
  require Logger

  alias DSPex.PythonBridge.{Call, Connection, Error, OpenCall, Pool, Telemetry}
  alias DSPex.PythonBridge.Pool.{Changes, Server}

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

  # entries: see `Changes`. next: the number of the next one. members: the workers that have them all,
  # by owner, the newest first.
  defstruct entries: [], next: 1, members: []

  @doc false
  @spec start_link(atom()) :: GenServer.on_start()
  def start_link(name), do: GenServer.start_link(__MODULE__, nil, name: name)

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
  def init(nil), do: {:ok, %__MODULE__{}}

  @impl true
  def handle_call({:join, connection, done}, _from, state) do
    case Enum.filter(state.entries, fn entry -> elem(entry, 0) > done end) do
      [] ->
        Process.monitor(connection.owner)
        {:reply, :joined, %{state | members: [{connection.owner, connection} | state.members]}}

      last_first ->
        {:reply, {:more, Enum.reverse(last_first), state.next - 1}, state}
    end
  end

  def handle_call({:change, pool, change}, _from, state) do
    if full?(state, change),
      do: {:reply, {:error, full()}, state},
      else: made(state, pool, change)
  rescue
    # The args cannot be encoded: the caller's mistake.
    exception -> {:reply, {:raised, exception}, state}
  end

  @impl true
  def handle_info({:DOWN, _, :process, owner, _reason}, state) do
    {:noreply, %{state | members: List.keydelete(state.members, owner, 0)}}
  end

  def handle_info(_message, state), do: {:noreply, state}

  defp made(state, pool, change) do
    {result, worker, others} = first(state.members, change, @attempts)

    if done?(result) do
      follow(pool, others, change, result)
      {:reply, result, noted(state, change, result)}
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
  defp follow(pool, others, change, result) do
    args = args_of_others(change, result)

    others
    |> Enum.map(fn {_, connection} ->
      Task.async(fn -> {connection, persist(connection, change, args)} end)
    end)
    |> Task.await_many(:infinity)
    |> Enum.each(fn
      {connection, {:error, error}} -> Server.replace(pool.server, connection.owner, error)
      _made_or_ended -> :ok
    end)
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

  defp noted(state, %{kind: kind}, _result) when kind in [:end_session, :end_all] do
    %{state | entries: Changes.without_sessions(state.entries)}
  end

  # What is kept has not changed.
  defp noted(state, _change, result)
       when :erlang.map_get("status", elem(result, 1)) == "exists",
       do: state

  defp noted(%{members: members} = state, change, result) do
    args = args_of_others(change, result)
    args = merged(Changes.merged_key(change.command, args), members, args)
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

  @doc false
  @spec format_status(map()) :: map()
  def format_status(status),
    do: status |> Map.replace(:message, :hidden) |> Map.replace(:state, :hidden)
end
