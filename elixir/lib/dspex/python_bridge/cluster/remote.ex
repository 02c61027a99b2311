defmodule DSPex.PythonBridge.Cluster.Remote do
  @moduledoc """
  Runs a function on another node, as `:erpc` does, with three differences: it ends with its caller; the
  caller learns that the node is lost from a process on its own node (a line, see `Member`), also if
  the node hangs while its connection stays open; and a caller is never suspended by a connection that
  takes no data, so that it keeps its deadline.
  """

  alias DSPex.PythonBridge.{Connection, Exits}

  @type answer :: {:ok, term()} | :lost | :late

  # How much longer than the deadline the other node's own answer is waited for, ms.
  @slack 500

  @doc """
  Returns what the function has returned on a node; `:lost` if the node was lost before its answer has
  arrived; `:late` if there was none in time. Raises what the function has raised.
  """
  @spec call(node(), pid(), {module(), atom(), list()}, integer() | :infinity) :: answer()
  def call(node, line, {module, function, args}, deadline) do
    reply_to = :erlang.monitor(:process, line, alias: :reply_demonitor)
    arguments = [self(), reply_to, module, function, args]

    # In a process of its own, which may be suspended while the connection is busy.
    spawn(fn ->
      :erlang.spawn_request(node, __MODULE__, :serve, arguments, reply: :no)
    end)

    receive do
      {^reply_to, answer} -> answered(answer)
      {:DOWN, ^reply_to, _, _, _} -> :lost
    after
      patience(deadline) ->
        :erlang.demonitor(reply_to, [:flush])
        receive do: ({^reply_to, answer} -> answered(answer)), after: (0 -> :late)
    end
  end

  defp answered({:raised, kind, reason, stacktrace}), do: :erlang.raise(kind, reason, stacktrace)
  defp answered(answer), do: answer

  defp patience(:infinity), do: :infinity
  defp patience(deadline), do: Connection.remaining(deadline) + @slack

  @doc false
  @spec serve(pid(), reference(), module(), atom(), list()) :: term()
  def serve(caller, reply_to, module, function, args) do
    watch(caller, reply_to)
    # That of the caller is on its node, so that what is logged here would be logged there.
    Process.group_leader(self(), Process.whereis(:user))
    send(reply_to, {reply_to, guarded(module, function, args)})
  end

  defp guarded(module, function, args) do
    {:ok, apply(module, function, args)}
  catch
    kind, reason -> {:raised, kind, reason, Exits.without_arguments(__STACKTRACE__)}
  end

  # Ends the calling process with its caller, and answers if it was ended otherwise.
  defp watch(caller, reply_to) do
    runner = self()

    spawn(fn ->
      running = Process.monitor(runner)
      calling = Process.monitor(caller)

      receive do
        {:DOWN, ^calling, _, _, _} -> Process.exit(runner, :kill)
        {:DOWN, ^running, _, _, :normal} -> :ok
        {:DOWN, ^running, _, _, _} -> send(reply_to, {reply_to, :lost})
      end
    end)
  end
end
