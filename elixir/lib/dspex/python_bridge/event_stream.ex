defmodule DSPex.PythonBridge.EventStream do
  @moduledoc """
  A call whose events are delivered as an Elixir stream, in the process that enumerates the
  stream.

  `DSPex.PythonBridge.Flow` pauses the worker while the consumer is far behind. A consumer that
  stops early cancels the call.
  """

  alias DSPex.PythonBridge.{Connection, Error, Flow, OpenCall, Protocol, Statistics, Telemetry}

  @events ~w(status chunk tool_call tool_result progress row)a
          |> Map.new(&{Atom.to_string(&1), &1})

  @enforce_keys [:metadata, :started, :deadline, :flow]
  # ended: `nil` while the stream runs, then `:ok` or the error that it raises next.
  defstruct @enforce_keys ++ [:connection, :id, :reply_to, :ended, events: 0]

  @doc "Returns the stream of a call; see `DSPex.PythonBridge.Bridge.stream/4`."
  @spec new(
          GenServer.server() | Connection.t(),
          Protocol.command(),
          map() | keyword(),
          OpenCall.options()
        ) ::
          Enumerable.t()
  def new(server, command, args, options) do
    new(server, command, args, options, &OpenCall.on_worker(server, &1, &2))
  end

  @doc """
  Returns the stream of a call to a worker that `on_worker` chooses: a function with the arguments and the
  result of `DSPex.PythonBridge.OpenCall.on_worker/3` without the first.
  """
  @spec new(term(), Protocol.command(), map() | keyword(), OpenCall.options(), fun()) ::
          Enumerable.t()
  def new(server, command, args, options, on_worker) do
    {timeout, envelope} = OpenCall.envelope(options)
    envelope = [{"stream", true} | envelope]

    Stream.resource(
      fn ->
        args = OpenCall.args(args)
        start(server, command, args, envelope, OpenCall.deadline(timeout), on_worker)
      end,
      &next/1,
      &stop/1
    )
  end

  defp start(server, command, args, envelope, deadline, on_worker) do
    metadata = Telemetry.metadata(server, command, envelope)
    started = Telemetry.start(:stream, metadata)

    blank = %__MODULE__{
      metadata: metadata,
      started: started,
      deadline: deadline,
      flow: Flow.new()
    }

    with {:error, error} <-
           on_worker.(deadline, &open(&1, blank, command, args, envelope)) do
      report(blank, error.code)
      raise error
    end
  end

  defp open(connection, blank, command, args, envelope) do
    id = Connection.next_id(connection)
    Statistics.count(connection.counters, :calls)
    request = OpenCall.request(connection, id, command, args, envelope)
    reply_to = :erlang.monitor(:process, connection.owner, alias: :demonitor)
    stream = %{blank | connection: connection, id: id, reply_to: reply_to}

    case OpenCall.open(connection, id, reply_to, request, stream.deadline, stream.flow) do
      :ok ->
        stream

      :busy ->
        OpenCall.forget(connection, id, reply_to)
        error = OpenCall.late("the worker does not read its input; the call was not sent")
        OpenCall.counted({:error, error}, connection)

      :closed ->
        OpenCall.forget(connection, id, reply_to)
        :closed
    end
  rescue
    error in Error -> OpenCall.counted({:error, error}, connection)
  end

  defp next(%{ended: :ok} = stream), do: {:halt, stream}
  defp next(%{ended: %Error{} = error}), do: raise(error)

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
    Flow.taken(stream.flow, stream.connection, stream.id)
    {[{Map.get(@events, event, event), data}], %{stream | events: stream.events + 1}}
  end

  defp element(reply, stream) do
    case OpenCall.result(reply) do
      {:error, error} ->
        fail(stream, error)

      result ->
        OpenCall.counted(result, stream.connection)
        report(stream, :ok)
        {elements(result), %{stream | ended: :ok}}
    end
  end

  defp elements({:ok, result}), do: [{:result, result}]
  defp elements({:ok, result, timing}), do: [{:timing, timing}, {:result, result}]

  # Raised with the next element, so that `stop/1` gets a stream that says how it ended.
  defp fail(stream, error) do
    report(stream, error.code)
    OpenCall.counted({:error, error}, stream.connection)
    {[], %{stream | ended: error}}
  end

  defp stop(stream) do
    if stream.ended == nil, do: report(stream, :halted)
    OpenCall.abandon(stream.connection, stream.id, stream.reply_to)
  end

  defp report(stream, code) do
    metadata = Map.put(stream.metadata, :code, code)
    Telemetry.finish(stream.started, :stream, :stop, metadata, %{events: stream.events})
  end
end
