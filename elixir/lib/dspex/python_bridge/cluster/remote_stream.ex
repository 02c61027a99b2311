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

  @doc """
  Calls a function on a node as `Remote.call/4` does. If it returns `{:done, elements, home}` for an
  enumerable, the answer is `{:ok, {:done, stream, home}}`; the stream can be enumerated once, by the
  calling process, and raises the error that `lost` returns if the node is lost meanwhile.
  """
  @spec open(
          node(),
          pid() | nil,
          Remote.function_call(),
          integer() | :infinity,
          (() -> Exception.t())
        ) ::
          Remote.answer()
  def open(_node, nil, _call, _deadline, _lost), do: :lost

  def open(node, line, call, deadline, lost) do
    reply_to = :erlang.monitor(:process, line, alias: :demonitor)
    Remote.send_call(node, reply_to, {__MODULE__, :serve, [reply_to, call]})

    case Remote.await(reply_to, deadline) do
      {:opened, pid, home} ->
        stream = {reply_to, pid, deadline, 0}
        {:ok, {:done, Stream.resource(fn -> stream end, &next(&1, lost), &stop/1), home}}

      answer ->
        :erlang.demonitor(reply_to, [:flush])
        answer
    end
  end

  defp next(:ended, _lost), do: {:halt, :ended}

  defp next({reply_to, pid, deadline, taken}, lost) do
    case Remote.await(reply_to, deadline) do
      {:element, element} ->
        {[element], {reply_to, pid, deadline, taken(reply_to, pid, taken + 1)}}

      {:ok, :ended} ->
        {[], close(reply_to)}

      :lost ->
        raise lost.()

      :late ->
        raise OpenCall.late("the stream did not end in time")
    end
  end

  defp taken(reply_to, pid, @batch) do
    send(pid, {reply_to, :more})
    0
  end

  defp taken(_reply_to, _pid, taken), do: taken

  defp stop(:ended), do: :ok

  defp stop({reply_to, pid, _deadline, _taken}) do
    Process.exit(pid, :kill)
    close(reply_to)
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
        Enum.reduce(elements, @window, &deliver(&1, &2, reply_to))
        :ended

      answer ->
        answer
    end
  end

  defp deliver(element, 0, reply_to) do
    receive do: ({^reply_to, :more} -> :ok)
    deliver(element, @batch, reply_to)
  end

  defp deliver(element, ahead, reply_to) do
    send(reply_to, {reply_to, {:element, element}})
    ahead - 1
  end
end
