defmodule DSPex.PythonBridge.EventStream do
  @moduledoc """
  A call whose events are wanted, as an Elixir stream in the process that enumerates it. The worker
  is asked to wait when the consumer is far behind, and the call is cancelled when the consumer
  stops early.
  """

  alias DSPex.PythonBridge.{Connection, Error, OpenCall, Owner, Protocol, Statistics}

  @events ~w(status chunk tool_call tool_result)a
          |> Map.new(&{Atom.to_string(&1), &1})

  @enforce_keys [:connection, :id, :reply_to, :deadline, :flow]
  defstruct [:connection, :id, :reply_to, :deadline, :flow, ended: false]

  @doc "See `DSPex.PythonBridge.Bridge.stream/4`."
  @spec new(
          GenServer.server() | Connection.t(),
          Protocol.command(),
          map() | keyword(),
          OpenCall.options()
        ) ::
          Enumerable.t()
  def new(server, command, args, options) do
    {timeout, envelope} = OpenCall.envelope(options)
    envelope = [{"stream", true} | envelope]

    Stream.resource(
      fn -> start(server, command, Map.new(args), envelope, OpenCall.deadline(timeout)) end,
      &next/1,
      &stop/1
    )
  end

  defp start(server, command, args, envelope, deadline) do
    connection = Connection.fetch!(server, deadline)
    id = Connection.next_id(connection)
    Statistics.count(connection.counters, :calls)
    request = OpenCall.request(connection, id, command, args, envelope)

    stream = %__MODULE__{
      connection: connection,
      id: id,
      reply_to: :erlang.monitor(:process, connection.owner, alias: :demonitor),
      deadline: deadline,
      flow: :atomics.new(2, [])
    }

    case OpenCall.open(connection, id, stream.reply_to, request, deadline, stream.flow) do
      :ok -> stream
      :busy -> fail(stream, OpenCall.late("the worker does not read; the call was not sent"))
      :closed -> fail(stream, Error.new(:worker_crashed, "the worker is gone"))
    end
  end

  defp next(%{ended: true} = stream), do: {:halt, stream}

  defp next(%{reply_to: reply_to} = stream) do
    receive do
      {^reply_to, frame} -> frame |> Protocol.decode_message() |> element(stream)
      {:DOWN, ^reply_to, _, _, reason} -> fail(stream, OpenCall.crashed(reason))
    after
      OpenCall.patience(stream.deadline) ->
        fail(stream, OpenCall.late("the stream did not end in time"))
    end
  end

  defp element({:ok, %{"event" => event, "data" => data}}, stream) do
    waiting = :atomics.sub_get(stream.flow, 1, 1)

    if waiting < Owner.resume_below() and :atomics.get(stream.flow, 2) == 1 do
      OpenCall.resume(stream.connection, stream.id, stream.flow)
    end

    {[{Map.get(@events, event, event), data}], stream}
  end

  defp element(reply, stream) do
    case OpenCall.result(reply) do
      {:error, error} ->
        fail(stream, error)

      result ->
        OpenCall.counted(result, stream.connection)
        {elements(result), %{stream | ended: true}}
    end
  end

  defp elements({:ok, result}), do: [{:result, result}]
  defp elements({:ok, result, timing}), do: [{:timing, timing}, {:result, result}]

  defp fail(stream, error) do
    stop(stream)
    OpenCall.counted({:error, error}, stream.connection)
    raise error
  end

  defp stop(stream), do: OpenCall.abandon(stream.connection, stream.id, stream.reply_to)
end
