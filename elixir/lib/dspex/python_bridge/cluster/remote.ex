defmodule DSPex.PythonBridge.Cluster.Remote do
  @moduledoc """
  Runs a function on another node, as `:erpc` does, with three differences: it ends with its caller; the
  caller learns that the node is lost from a process on its own node (a line, see `Member`), also if
  the node hangs while its connection stays open; and a caller is never suspended by a connection that
  takes no data, so that it keeps its deadline.
  """

  alias DSPex.PythonBridge.{Connection, Exits}

  @type function_call :: {module(), atom(), list()}
  @type answer :: {:ok, term()} | :lost | :late

  # How much longer than the deadline the other node's own answer is waited for, ms.
  @slack 500

  @doc """
  Returns what the function has returned on a node; `:lost` if the node was lost before its answer has
  arrived; `:late` if there was none in time. Raises what the function has raised.
  """
  @spec call(node(), pid() | nil, function_call(), integer() | :infinity) :: answer()
  def call(_node, nil, _call, _deadline), do: :lost
  def call(node, line, call, deadline), do: node |> open(line, call) |> await(deadline)

  @doc "Calls a function on some nodes at the same time. Lines are by node. Returns the answers by node."
  @spec call_all(%{node() => pid()}, function_call(), integer() | :infinity) :: [
          {node(), answer()}
        ]
  def call_all(lines, call, deadline) do
    opened = for {node, line} <- lines, do: {node, open(node, line, call)}
    for {node, reply_to} <- opened, do: {node, await(reply_to, deadline)}
  end

  defp open(node, line, call) do
    reply_to = :erlang.monitor(:process, line, alias: :reply_demonitor)
    send_call(node, reply_to, call)
    reply_to
  end

  @doc """
  Calls a function on a node. The process there sends `{reply_to, answer}` at the end, where `reply_to` is an
  alias of the calling process and a monitor of the node's line.
  """
  @spec send_call(node(), reference(), function_call()) :: pid()
  def send_call(node, reply_to, {module, function, args}) do
    arguments = [self(), reply_to, module, function, args]

    # In a process of its own, which may be suspended while the connection is busy.
    spawn(fn ->
      :erlang.spawn_request(node, __MODULE__, :serve, arguments, reply: :no)
    end)
  end

  @doc "Returns the next answer to a call that was sent."
  @spec await(reference(), integer() | :infinity) :: term()
  def await(reply_to, deadline) do
    receive do
      {^reply_to, answer} -> answered(answer)
      {:DOWN, ^reply_to, _, _, _} -> :lost
    after
      patience(deadline) ->
        :erlang.demonitor(reply_to, [:flush])
        receive do: ({^reply_to, answer} -> answered(answer)), after: (0 -> :late)
    end
  end

  defp answered({:raised, kind, reason, stacktrace}),
    do: :erlang.raise(kind, reason, stacktrace)

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
