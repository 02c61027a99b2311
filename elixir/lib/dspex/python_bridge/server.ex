defmodule DSPex.PythonBridge.Server do
  @moduledoc """
  The process that is registered under a bridge's name. It starts a new worker whenever one ends,
  and stays alive itself, so the end of a worker never reaches the application's supervisor.

  Each worker has an owner (`DSPex.PythonBridge.Owner`), a linked process that ends with the
  worker. The delay between two starts grows with each failure. Calls that come in the meantime
  wait for the next worker, or for their deadline.

  The server's table has the name of the bridge. It holds

    * `{:connection, connection}`, while a worker takes calls
    * `{:worker, status, os_pid, started, counters, calls}`, where `calls` is the owner's table
    * `{:failure, error}`, while no worker runs: why the last one ended or did not start
  """

  use GenServer
  require Logger

  alias DSPex.PythonBridge.{Connection, Error, Owner, Statistics, Telemetry}

  # Longer than an owner waits for its worker, shorter than a supervisor waits for a bridge; ms.
  @stop_timeout 4_000

  @enforce_keys [:name, :table, :counters, :options, :backoff, :healthy_after]
  # failures: the number of failures in a row. running_since: monotonic ms, nil while no worker
  # takes calls. waiting: callers that wait for a worker, with their timers.
  defstruct @enforce_keys ++
              [:owner, :running_since, :failure, failures: 0, waiting: %{}]

  @doc false
  @spec start_link(keyword()) :: GenServer.on_start()
  def start_link(options) do
    name = options[:name]

    # Wrapped in a function, so that crash reports do not show the options: they may hold API
    # keys.
    GenServer.start_link(__MODULE__, fn -> options end, if(name, do: [name: name], else: []))
  end

  @impl true
  def init(hidden) do
    Process.flag(:trap_exit, true)
    Telemetry.load()
    options = hidden.()
    name = options[:name]
    {:links, links} = Process.info(self(), :links)

    state = %__MODULE__{
      name: name || self(),
      table: new_table(name),
      counters: Statistics.for_name(name),
      options: hidden,
      backoff: {options[:backoff_min], options[:backoff_max]},
      healthy_after: options[:healthy_after]
    }

    state |> start_worker() |> await_first(options[:retry_start], links)
  end

  defp new_table(name) when is_atom(name) and name != nil do
    :ets.new(name, [:named_table, :public, read_concurrency: true])
  end

  defp new_table(_), do: :ets.new(__MODULE__, [:public])

  # `init/1` waits for the first worker, so that a bridge can be used as soon as it has started.
  defp await_first(%{owner: owner} = state, retry, links) do
    receive do
      {:started, ^owner, connection} ->
        {:ok, running(state, connection)}

      {:EXIT, ^owner, reason} ->
        error = error(reason)
        if retry, do: {:ok, failed(state, error)}, else: {:stop, {:shutdown, error}}

      {:EXIT, pid, reason} when is_pid(pid) ->
        if pid in links do
          stop_owner(state, reason)
          {:stop, reason}
        else
          await_first(state, retry, links)
        end
    end
  end

  defp start_worker(state) do
    put_worker(state, :starting)
    context = %{name: state.name, table: state.table, counters: state.counters}
    {:ok, owner} = Owner.start_link(context, state.options)
    %{state | owner: owner}
  end

  defp put_worker(state, status) do
    :ets.insert(state.table, {:worker, status, nil, nil, state.counters, nil})
  end

  defp running(state, connection) do
    :ets.insert(state.table, {:connection, connection})
    :ets.update_element(state.table, :worker, {2, :running})
    :ets.delete(state.table, :failure)

    if state.failure do
      Logger.info("#{inspect(state.name)}: another worker takes calls", bridge: state.name)
    end

    for {from, timer} <- state.waiting, do: answer(from, timer, {:ok, connection})
    %{state | running_since: Connection.now(), failure: nil, waiting: %{}}
  end

  @impl true
  def handle_call(:table, _from, state), do: {:reply, state.table, state}

  def handle_call({:connection, deadline}, from, state) do
    case :ets.lookup(state.table, :connection) do
      [{:connection, connection}] -> {:reply, {:ok, connection}, state}
      [] -> {:noreply, wait(state, from, Connection.remaining(deadline))}
    end
  end

  defp wait(state, from, :infinity), do: put_in(state.waiting[from], nil)

  defp wait(state, from, remaining) do
    put_in(state.waiting[from], Process.send_after(self(), {:expired, from}, remaining))
  end

  defp answer(from, timer, reply) do
    if timer, do: Process.cancel_timer(timer)
    GenServer.reply(from, reply)
  end

  @impl true
  def handle_info({:started, owner, connection}, %{owner: owner} = state) do
    {:noreply, running(state, connection)}
  end

  def handle_info({:EXIT, owner, reason}, %{owner: owner} = state) do
    {:noreply, failed(state, error(reason))}
  end

  def handle_info(:start_worker, state), do: {:noreply, start_worker(state)}

  def handle_info({:expired, from}, state) do
    {timer, waiting} = Map.pop(state.waiting, from, :answered)
    if timer != :answered, do: GenServer.reply(from, {:error, too_late(state.failure)})
    {:noreply, %{state | waiting: waiting}}
  end

  def handle_info(_message, state), do: {:noreply, state}

  defp error({:shutdown, %Error{} = error}), do: error
  defp error(reason), do: Error.new(:worker_crashed, "the worker's owner ended: #{kind(reason)}")

  # Leaves out the rest of the reason, which may contain the options.
  defp kind({%{__exception__: true, __struct__: module}, _}), do: inspect(module)
  defp kind(reason) when is_atom(reason), do: inspect(reason)
  defp kind(_reason), do: "an unexpected error"

  defp failed(state, error) do
    :ets.delete(state.table, :connection)
    :ets.insert(state.table, {:failure, error})
    put_worker(state, :starting)
    state = count(state)
    wait = delay(state)
    log(state, error, wait)
    Process.send_after(self(), :start_worker, wait)
    # Callers that have ended need no answer.
    waiting = Map.filter(state.waiting, fn {{pid, _}, _} -> Process.alive?(pid) end)
    %{state | owner: nil, running_since: nil, failure: error, waiting: waiting}
  end

  # The first failure of a worker that has run causes no delay. A worker that did not start counts
  # as at least the second failure, so the next start is delayed.
  defp count(%{running_since: nil} = state), do: %{state | failures: max(state.failures, 1) + 1}

  defp count(state) do
    healthy = Connection.now() - state.running_since >= state.healthy_after
    %{state | failures: if(healthy, do: 1, else: state.failures + 1)}
  end

  # Random, between half the delay and the whole, so that many bridges do not start workers at
  # once.
  defp delay(%{failures: 1}), do: 0

  defp delay(%{backoff: {first, longest}, failures: failures}) do
    wait = min(first * Integer.pow(2, min(failures - 2, 32)), longest)
    wait - :rand.uniform(div(wait, 2) + 1) + 1
  end

  defp log(state, error, wait) do
    Logger.error(
      fn ->
        again = if wait == 0, do: "starting another", else: "starting another in #{wait} ms"
        lines = String.split(error.details["stderr"] || "", "\n", trim: true)
        Enum.join(["#{inspect(state.name)}: #{error.message}; #{again}" | lines], "\n    ")
      end,
      bridge: state.name
    )

    if state.running_since == nil do
      measured = %{failures: state.failures - 1, delay: wait}
      Telemetry.worker(:start_failed, measured, %{bridge: state.name, error: error})
    end
  end

  defp too_late(nil), do: Error.new(:deadline_exceeded, "the worker did not start in time")

  defp too_late(failure) do
    %{failure | message: "no worker has started in time; last failure: #{failure.message}"}
  end

  @impl true
  def terminate(reason, state) do
    :ets.delete(state.table, :connection)
    :ets.update_element(state.table, :worker, {2, :stopping})
    if state.owner, do: stop_owner(state, reason)
  end

  defp stop_owner(%{owner: owner}, reason) do
    Process.exit(owner, reason)

    receive do
      {:EXIT, ^owner, _} -> :ok
    after
      # The owner may be waiting for an interpreter that hangs. The worker ends with its port.
      @stop_timeout -> Process.exit(owner, :kill)
    end
  end

  @doc false
  @spec format_status(map()) :: map()
  def format_status(status), do: Map.replace(status, :message, :hidden)
end
