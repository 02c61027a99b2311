defmodule DSPex.PythonBridge.Cluster.Remote do
  @moduledoc """
  Runs a function on another node, as `:erpc` does, with three differences: it ends with its caller; the
  caller learns that the node is lost from a process on its own node, also if the node hangs while its
  connection stays open; and a caller is never suspended by a connection that takes no data, so that it
  keeps its deadline.
  """

  alias DSPex.PythonBridge.{Connection, Exits, Parallel}
  alias DSPex.PythonBridge.Cluster.Parcel

  @typedoc """
  How a node is called: a process on this node that ends when the other one is lost, and the process there
  that takes calls (`DSPex.PythonBridge.Cluster.Receiver`).
  """
  @type link :: {line :: pid(), receiver :: pid()}
  @type function_call :: {module(), atom(), list()}
  @type answer :: {:ok, term()} | :lost | :late | :not_sent

  # How much longer than the deadline the other node's own answer is waited for, ms.
  @slack 500
  # How long a large answer is kept for a caller that has not asked for it: it may wait no longer. ms.
  @unclaimed 30_000

  @doc """
  Returns what the function has returned on a node; `:lost` if the node was lost before its answer has
  arrived; `:late` if there was none in time; `:not_sent` if there is no connection. Raises what the
  function has raised.
  """
  @spec call(link() | nil, function_call(), integer() | :infinity) :: answer()
  def call(nil, _call, _deadline), do: :not_sent

  def call({line, _} = link, call, deadline) do
    reply_to = :erlang.monitor(:process, line, alias: :reply_demonitor)

    case request(link, reply_to, call, deadline) do
      :ok -> reply_to |> await(deadline) |> unpacked(line, deadline)
      failed -> abandon(reply_to, failed)
    end
  end

  @doc """
  Calls a function on some nodes at the same time. Links are by node. Returns the answers by node; that of
  a function that has raised is `:lost`.
  """
  @spec call_all(%{node() => link()}, function_call(), integer() | :infinity) :: [
          {node(), answer()}
        ]
  def call_all(links, call, deadline) do
    Parallel.map(links, fn {node, link} -> {node, caught(link, call, deadline)} end)
  end

  defp caught(link, call, deadline) do
    call(link, call, deadline)
  catch
    _kind, _reason -> :lost
  end

  @doc """
  Sends the request of a call, whose answer is sent to `reply_to`, an alias of the calling process and a
  monitor of the line.
  """
  @spec request(link(), reference(), function_call(), integer() | :infinity) ::
          :ok | :lost | :late | :not_sent
  def request({_line, receiver}, reply_to, call, deadline) do
    if Parcel.large?(call) do
      parcel = Parcel.new()

      case post(receiver, {self(), reply_to, parcel}) do
        :ok -> Parcel.deliver(parcel, call, reply_to, deadline)
        :not_sent -> Parcel.discard(parcel)
      end
    else
      post(receiver, {self(), reply_to, call})
    end
  end

  @doc "Sends a message to a process of another node, without ever being suspended."
  @spec post(pid() | reference(), term()) :: :ok | :not_sent
  def post(to, message) do
    case :erlang.send(to, message, [:nosuspend, :noconnect]) do
      :ok ->
        :ok

      :nosuspend ->
        spawn(fn -> :erlang.send(to, message, [:noconnect]) end)
        :ok

      :noconnect ->
        :not_sent
    end
  end

  @doc "Returns the next answer that is sent to `reply_to`."
  @spec await(reference(), integer() | :infinity) :: term()
  def await(reply_to, deadline) do
    receive do
      {^reply_to, answer} -> answer
      {:DOWN, ^reply_to, _, _, _} -> :lost
    after
      patience(deadline) -> abandon(reply_to, :late)
    end
  end

  defp patience(:infinity), do: :infinity
  defp patience(deadline), do: Connection.remaining(deadline) + @slack

  @doc "Waits no longer for an answer. Returns it if it has come, and `otherwise` if not."
  @spec abandon(reference(), term()) :: term()
  def abandon(reply_to, otherwise) do
    :erlang.demonitor(reply_to, [:flush])
    receive do: ({^reply_to, answer} -> answer), after: (0 -> otherwise)
  end

  @doc "Returns what an answer carries. Raises what the function has raised."
  @spec unpacked(term(), pid(), integer() | :infinity) :: term()
  def unpacked({:parcel, parcel}, line, deadline) do
    with {:ok, answer} <- Parcel.fetch(parcel, line, deadline),
         do: unpacked(answer, line, deadline)
  end

  def unpacked({:raised, kind, reason, stacktrace}, _line, _deadline),
    do: :erlang.raise(kind, reason, stacktrace)

  def unpacked(answer, _line, _deadline), do: answer

  # On the other node

  @doc "Runs a call of another node in the calling process, which is in the table meanwhile."
  @spec serve(:ets.table(), pid(), reference(), function_call() | Parcel.t()) :: true
  def serve(table, caller, reply_to, call) do
    :ets.insert(table, {self(), caller, reply_to, false})

    with {:ok, call} <- called(call, caller),
         do: answer(reply_to, guarded(call), Connection.now() + @unclaimed)

    :ets.delete(table, self())
  rescue
    # The receiver has ended, and its table with it.
    ArgumentError -> true
  end

  defp called(call, _caller) when is_tuple(call), do: {:ok, call}
  defp called(parcel, caller), do: Parcel.fetch(parcel, caller, :infinity)

  defp guarded({module, function, args}) do
    {:ok, apply(module, function, args)}
  catch
    kind, reason -> {:raised, kind, reason, Exits.without_arguments(__STACKTRACE__)}
  end

  @doc """
  Sends an answer to the caller of a function that runs for another node. A large one is kept until the
  caller asks for it, at most until the deadline.
  """
  @spec answer(reference(), term(), integer() | :infinity) :: term()
  def answer(reply_to, answer, deadline) do
    if Parcel.large?(answer) do
      parcel = Parcel.new()
      send(reply_to, {reply_to, {:parcel, parcel}})
      Parcel.deliver(parcel, answer, nil, deadline)
    else
      send(reply_to, {reply_to, answer})
    end
  end
end
