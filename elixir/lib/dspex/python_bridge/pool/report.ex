defmodule DSPex.PythonBridge.Pool.Report do
  @moduledoc """
  What a pool reports about itself: the states of its slots, whether its workers answer, and their
  statistics together.
  """

  alias DSPex.PythonBridge.{Bridge, Call, Connection, Error, Parallel, Pool, Statistics}
  alias DSPex.PythonBridge.Pool.{Choice, Histogram, Request, Server, Sessions, Slot}

  # Figures of `get_stats` that are added. `programs_count` is not among them: every worker counts the
  # programs that they share.
  @sums ~w(sessions_count command_count error_count refused_count in_flight threads_lost
           calls_written_off)

  @doc "Returns the status of a pool; see `DSPex.PythonBridge.SessionPoolV2.get_pool_status/1`."
  @spec status(atom()) :: map()
  def status(name) do
    with %Pool{} = pool <- Pool.get(name), {slots, failure} <- slots(pool) do
      slots = for slot <- slots, do: slot_status(slot, pool)

      %{
        status: if(Enum.any?(slots, &(&1.state == :ready)), do: :running, else: :starting),
        slots: slots,
        sessions: :ets.info(pool.sessions, :size),
        open_calls: slots |> Enum.map(& &1.open_calls) |> Enum.sum(),
        last_error: failure,
        stats: Statistics.read(Statistics.for_name(name))
      }
    else
      _ -> %{status: :not_running}
    end
  end

  defp slots(pool) do
    Server.slots(pool.server)
  catch
    :exit, _ -> nil
  end

  defp slot_status(slot, pool) do
    worker = if slot.connection, do: Bridge.get_status(slot.connection), else: %{}

    %{
      slot: slot.number,
      state: slot.state,
      session: slot.session,
      worker_pid: worker[:worker_pid],
      uptime: worker[:uptime] || 0,
      open_calls: Slot.open_calls(slot),
      requests: Slot.requests(slot),
      sessions: Sessions.count(pool.sessions, slot.owner)
    }
  end

  @doc "Describes the session of a request; see `DSPex.PythonBridge.SessionPoolV2.get_session_info/2`."
  @spec session(Request.t()) :: {:ok, map()} | {:error, Error.t()}
  def session(%{pool: pool, args: %{session_id: id}} = request) do
    id = Request.text(id)
    options = [timeout: Connection.remaining(request.deadline)]

    # Any worker knows the sessions of the store.
    case Sessions.find(pool, id) || Choice.choose(pool) do
      %Connection{} = connection -> session(connection, id, options)
      {:ok, connection} -> session(connection, id, options)
      {:error, error} -> {:error, error}
      :none -> {:error, Error.new(:overloaded, "no worker takes calls", %{"retry_after" => 0.1})}
    end
  end

  defp session(connection, id, options) do
    with {:ok, info} <- Call.run(connection, "get_session", %{session_id: id}, options) do
      {:ok, Map.merge(info, %{"slot" => Request.slot(connection), "node" => node()})}
    end
  end

  @doc "Asks all workers; see `DSPex.PythonBridge.SessionPoolV2.health_check/1`."
  @spec health(Pool.t(), timeout()) :: {:ok, map()} | {:error, Error.t()}
  def health(pool, timeout) do
    answers = ask_all(pool, "ping", %{}, timeout)
    healthy = for {slot, {:ok, %{"status" => "ok"}}} <- answers, do: slot
    failed = for {slot, {:error, error}} <- answers, do: {slot, error}

    case {healthy, failed} do
      {[], []} ->
        {:error, Error.new(:overloaded, "no worker takes calls", %{"retry_after" => 0.1})}

      {[], [{_, error} | _]} ->
        {:error, error}

      {_, []} ->
        {:ok, %{status: :healthy, healthy: healthy, failed: %{}}}

      _ ->
        {:ok, %{status: :degraded, healthy: healthy, failed: Map.new(failed)}}
    end
  end

  @doc "Returns the figures of all workers, as `merged/1` takes them."
  @spec figures(Pool.t(), timeout()) :: {overviews :: list(), details :: list()}
  def figures(pool, timeout) do
    include = %{include: ["commands", "histograms", "process"]}
    {answers(pool, %{}, timeout), answers(pool, include, timeout)}
  end

  defp answers(pool, args, timeout) do
    for {slot, {:ok, stats}} <- ask_all(pool, "get_stats", args, timeout), do: {slot, stats}
  end

  @doc """
  Returns the figures of workers together. Slots are numbers, or in a cluster a node and a number.
  """
  @spec merged({list(), list()}) :: {:ok, map()} | {:error, Error.t()}
  def merged({overviews, details}) when overviews == [] or details == [] do
    {:error, Error.new(:overloaded, "no worker has answered", %{"retry_after" => 0.1})}
  end

  def merged({overviews, details}), do: {:ok, merged(overviews, details)}

  defp merged([{_, first} | _] = overviews, details) do
    first
    |> Map.drop(["commands", "worker", "memory_usage"])
    |> Map.merge(Map.new(@sums, fn key -> {key, total(overviews, key)} end))
    |> Map.merge(%{
      "programs_count" => greatest(overviews, "programs_count"),
      "uptime" => greatest(overviews, "uptime"),
      "memory_usage" => %{"rss" => total(details, ["process", "rss"])},
      "commands" => commands(for {_, stats} <- details, do: stats["commands"]),
      "workers" => workers(overviews, details)
    })
  end

  defp total(all, path), do: all |> values(path) |> Enum.sum()
  defp greatest(all, path), do: all |> values(path) |> Enum.max()
  defp values(all, path), do: for({_, stats} <- all, do: get_in(stats, List.wrap(path)) || 0)

  defp commands(all) do
    for name <- all |> Enum.flat_map(&Map.keys/1) |> Enum.uniq(), into: %{} do
      {name, Histogram.merge(for %{^name => entry} <- all, do: entry)}
    end
  end

  defp workers(overviews, details) do
    processes = Map.new(details, fn {slot, stats} -> {slot, stats["process"]} end)

    for {slot, stats} <- overviews do
      Map.merge(place(slot), %{"worker" => stats["worker"], "process" => processes[slot]})
    end
  end

  defp place({node, slot}), do: %{"node" => node, "slot" => slot}
  defp place(slot), do: %{"slot" => slot}

  # All at once, so that one worker that hangs does not delay the others' answers.
  defp ask_all(pool, command, args, timeout) do
    {slots, _failure} = slots(pool) || {[], nil}

    slots
    |> Enum.filter(&(&1.state in [:ready, :ejected]))
    |> Parallel.map(&{&1.number, Call.run(&1.connection, command, args, timeout)})
  end
end
