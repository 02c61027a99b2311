defmodule DSPex.PythonBridge.Cluster.RemoteStream do
  @moduledoc """
  A stream that is enumerated on another node: a process there sends its elements, a limited number ahead
  of the consumer. It ends with the consumer, and with the consumer's enumeration.
  """

  alias DSPex.PythonBridge.Cluster.Remote
  alias DSPex.PythonBridge.OpenCall

  # How many elements may be on the way, and after how many the consumer asks for as many more.
  @window 64
  @batch 32
  # How long a stream waits for its consumer, which may have given up before it was told of the stream, ms.
  @unclaimed 30_000

  @enforce_keys [:reply_to, :line, :deadline, :lost]
  defstruct @enforce_keys ++ [:pid, taken: 0]

  @doc """
  Calls a function on a node as `Remote.call/3` does. If it returns `{:done, elements, home}` for an
  enumerable, the answer is `{:ok, {:done, stream, home}}`; the stream can be enumerated once, by the
  calling process, and raises the error that `lost` returns if the node is lost meanwhile.
  """
  @spec open(Remote.link() | nil, Remote.function_call(), integer() | :infinity, lost) ::
          Remote.answer()
        when lost: (() -> Exception.t())
  def open(nil, _call, _deadline, _lost), do: :not_sent

  def open({line, _} = link, call, deadline, lost) do
    reply_to = :erlang.monitor(:process, line, alias: :demonitor)
    stream = %__MODULE__{reply_to: reply_to, line: line, deadline: deadline, lost: lost}

    with :ok <- Remote.request(link, reply_to, {__MODULE__, :serve, [reply_to, call]}, deadline),
         {:opened, pid, home} <- answer(stream) do
      more(reply_to, pid)
      {:ok, {:done, Stream.resource(fn -> %{stream | pid: pid} end, &next/1, &stop/1), home}}
    else
      answer ->
        close(reply_to)
        answer
    end
  end

  defp answer(%{reply_to: reply_to, line: line, deadline: deadline}) do
    reply_to |> Remote.await(deadline) |> Remote.unpacked(line, deadline)
  end

  defp next(:ended), do: {:halt, :ended}

  defp next(stream) do
    case answer(stream) do
      {:element, element} -> {[element], taken(%{stream | taken: stream.taken + 1})}
      {:ok, :ended} -> {[], close(stream.reply_to)}
      :lost -> raise stream.lost.()
      :late -> raise OpenCall.late("the stream did not end in time")
    end
  end

  defp taken(%{taken: @batch} = stream) do
    more(stream.reply_to, stream.pid)
    %{stream | taken: 0}
  end

  defp taken(stream), do: stream

  defp more(reply_to, pid), do: Remote.post(pid, {reply_to, :more})

  defp stop(:ended), do: :ok

  defp stop(stream) do
    # In a process of its own, which is suspended while the connection takes no data.
    spawn(Process, :exit, [stream.pid, :kill])
    close(stream.reply_to)
  end

  defp close(reply_to) do
    :erlang.demonitor(reply_to, [:flush])
    flush(reply_to)
  end

  defp flush(reply_to) do
    receive do
      {^reply_to, _} -> flush(reply_to)
    after
      0 -> :ended
    end
  end

  @doc false
  @spec serve(reference(), Remote.function_call()) :: term()
  def serve(reply_to, {module, function, args}) do
    case apply(module, function, args) do
      {:done, {:error, _} = failed, home} ->
        {:done, failed, home}

      {:done, elements, home} ->
        send(reply_to, {reply_to, {:opened, self(), home}})
        claimed(elements, reply_to)
        :ended

      answer ->
        answer
    end
  end

  defp claimed(elements, reply_to) do
    receive do
      {^reply_to, :more} -> Enum.reduce(elements, @window, &deliver(&1, &2, reply_to))
    after
      @unclaimed -> :ok
    end
  end

  defp deliver(element, 0, reply_to) do
    receive do: ({^reply_to, :more} -> :ok)
    deliver(element, @batch, reply_to)
  end

  defp deliver(element, ahead, reply_to) do
    # A slow consumer asks for it late; one that ends, or stops, ends this process.
    Remote.answer(reply_to, {:element, element}, :infinity)
    ahead - 1
  end
end
