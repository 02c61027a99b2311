defmodule DSPex.PythonBridge.Cluster.Receiver do
  @moduledoc """
  Takes the calls of other nodes (`DSPex.PythonBridge.Cluster.Remote`), and runs each in a process of its
  own, which ends when its caller does.

  A message to this process costs less than to spawn a process on another node. Most calls are short, so
  only one that runs for a while is watched: then its caller is monitored.
  """

  use GenServer

  alias DSPex.PythonBridge.Cluster.Remote

  # A call is watched after one of these intervals, or two; a receiver that is stopped waits so long for the
  # calls that run, and looks so often; ms.
  @watch_interval 50
  @drain 3_000
  @pause 10
  # The first heap of a call's process, in words. With that of the BEAM, 233, a small call takes 5 % more time:
  # its memory is collected again and again.
  @heap 1_000

  @doc false
  @spec child_spec(atom()) :: Supervisor.child_spec()
  def child_spec(name) do
    %{id: __MODULE__, start: {__MODULE__, :start_link, [name]}, shutdown: @drain + 2_000}
  end

  @doc false
  @spec start_link(atom()) :: GenServer.on_start()
  def start_link(name), do: GenServer.start_link(__MODULE__, nil, name: name)

  # The table holds `{runner, caller, reply_to, watched?}` for each call.
  @impl true
  def init(nil) do
    Process.flag(:trap_exit, true)
    Process.send_after(self(), :watch, @watch_interval)
    {:ok, :ets.new(__MODULE__, [:public, write_concurrency: true])}
  end

  @impl true
  def handle_info({caller, reply_to, call}, table) when is_pid(caller) do
    :erlang.spawn_opt(Remote, :serve, [table, caller, reply_to, call], min_heap_size: @heap)
    {:noreply, table}
  end

  def handle_info(:watch, table) do
    Process.send_after(self(), :watch, @watch_interval)

    for {runner, caller, reply_to, false} <- :ets.match_object(table, {:_, :_, :_, false}) do
      :ets.update_element(table, runner, {4, true})
      spawn(fn -> watch(table, runner, caller, reply_to) end)
    end

    {:noreply, table}
  end

  def handle_info(_message, table), do: {:noreply, table}

  # Ends a call with its caller, and answers if the call was ended otherwise.
  defp watch(table, runner, caller, reply_to) do
    running = Process.monitor(runner)
    calling = Process.monitor(caller)

    receive do
      {:DOWN, ^calling, _, _, _} ->
        Process.exit(runner, :kill)
        :ets.delete(table, runner)

      {:DOWN, ^running, _, _, _} ->
        if :ets.take(table, runner) != [], do: send(reply_to, {reply_to, :lost})
    end
  rescue
    # The receiver has ended, and its table with it.
    ArgumentError -> true
  end

  # The workers are stopped after this process.
  @impl true
  def terminate(_reason, table) do
    drain(table, System.monotonic_time(:millisecond) + @drain)
  end

  defp drain(table, deadline) do
    if :ets.info(table, :size) > 0 and System.monotonic_time(:millisecond) < deadline do
      refuse_all()
      Process.sleep(@pause)
      drain(table, deadline)
    else
      refuse_all()
    end
  end

  defp refuse_all do
    receive do
      {caller, reply_to, _call} when is_pid(caller) ->
        send(reply_to, {reply_to, {:ok, :later}})
        refuse_all()
    after
      0 -> :ok
    end
  end
end
