defmodule DSPex.PythonBridge.Cluster.Parcel do
  @moduledoc """
  Sends large terms between nodes in parts, of which a few are on the way at a time.

  All messages to a node share one connection. A term that is sent as it is fills that connection, and
  suspends all processes that send to the node meanwhile: calls of 64 MB make small ones beside them take
  some 10 ms, and in parts 0.3 ms (`benchmarks/cluster.exs`).

  The receiver asks for the parts, and each part that has arrived lets the sender send one more.
  """

  alias DSPex.PythonBridge.Connection
  alias DSPex.PythonBridge.Cluster.Remote

  # Bytes of a term that is sent in parts, and of a part, which is what the BEAM sends in one piece.
  @large 262_144
  @part 65_536
  # How many parts are on the way, and how long the next one, or its receipt, is waited for, ms.
  @ahead 4
  @patience 30_000

  @typedoc "An alias of the process that has the term."
  @type t :: reference()

  @doc "Returns whether a term is sent in parts."
  @spec large?(term()) :: boolean()
  def large?(term), do: :erlang.external_size(term) > @large

  @doc "Returns a parcel of the calling process."
  @spec new() :: t()
  def new, do: :erlang.alias()

  @doc "Gives up a parcel that nobody has heard of. Returns `:not_sent`."
  @spec discard(t()) :: :not_sent
  def discard(parcel) do
    :erlang.unalias(parcel)
    :not_sent
  end

  @doc """
  Waits until the parcel is asked for, at most until the deadline, and sends a term. Returns `:lost` if `monitor`, a monitor of the
  calling process, reports an end before, and `:ok` if a message that has the monitor's reference arrives
  instead of the question: that is the answer to the whole call, and is left in the mailbox.
  """
  @spec deliver(t(), term(), reference() | nil, integer() | :infinity) :: :ok | :lost | :late
  def deliver(parcel, term, monitor, deadline) do
    result =
      with {:fetch, to} <- next(parcel, monitor, deadline, :infinity) do
        send_parts(:erlang.term_to_binary(term), 0, @ahead, {parcel, to, monitor, deadline})
      end

    :erlang.unalias(parcel)
    flush(parcel)
    result
  end

  defp next(parcel, monitor, deadline, patience \\ @patience) do
    receive do
      {^parcel, message} -> message
      {:DOWN, ^monitor, _, _, _} -> :lost
      {^monitor, _} = answer -> answered(answer)
    after
      min(Connection.remaining(deadline), patience) -> :late
    end
  end

  # A receiver that is being stopped refuses the call without asking for the parcel.
  defp answered(answer) do
    send(self(), answer)
    :ok
  end

  defp send_parts(binary, number, 0, {parcel, _to, monitor, deadline} = transfer) do
    with :more <- next(parcel, monitor, deadline),
         do: send_parts(binary, number, 1, transfer)
  end

  defp send_parts(<<part::binary-size(@part), rest::binary>>, number, ahead, transfer)
       when rest != "" do
    post(transfer, {:part, number, part})
    send_parts(rest, number + 1, ahead - 1, transfer)
  end

  defp send_parts(part, number, _ahead, transfer), do: post(transfer, {:last, number, part})

  defp post({_parcel, to, _monitor, _deadline}, part) do
    Remote.post(to, {to, part})
    :ok
  end

  @doc """
  Asks for a parcel, and returns its term. Returns `:lost` if the process `watched` ends before.
  """
  @spec fetch(t(), pid(), integer() | :infinity) :: {:ok, term()} | :lost | :late
  def fetch(parcel, watched, deadline) do
    to = :erlang.monitor(:process, watched, alias: :demonitor)
    Remote.post(parcel, {parcel, {:fetch, to}})
    result = collect(parcel, to, deadline, [], nil)
    :erlang.demonitor(to, [:flush])
    flush(to)
    result
  end

  # One part may overtake another one.
  defp collect(_parcel, _to, _deadline, parts, count)
       when count != nil and length(parts) == count do
    parts |> Enum.sort() |> Enum.map(&elem(&1, 1)) |> decoded()
  end

  defp collect(parcel, to, deadline, parts, count) do
    case next(to, to, deadline) do
      {:part, number, part} ->
        Remote.post(parcel, {parcel, :more})
        collect(parcel, to, deadline, [{number, part} | parts], count)

      {:last, number, part} ->
        collect(parcel, to, deadline, [{number, part} | parts], number + 1)

      failed ->
        failed
    end
  end

  defp decoded(parts), do: {:ok, parts |> IO.iodata_to_binary() |> :erlang.binary_to_term()}

  defp flush(reference) do
    receive do
      {^reference, _} -> flush(reference)
    after
      0 -> :ok
    end
  end
end
