defmodule DSPex.PythonBridge.Pool.Streams do
  @moduledoc """
  A call of a pool whose events are delivered as a stream. The worker is chosen when the stream is
  enumerated. A stream is not repeated by another worker once it has been sent.
  """

  alias DSPex.PythonBridge.{Error, EventStream}
  alias DSPex.PythonBridge.Pool.{Execution, Request}

  @doc "Returns the stream of a call; see `DSPex.PythonBridge.SessionPoolV2.stream/3`."
  @spec new(atom() | String.t(), map() | keyword(), Request.options()) :: Enumerable.t()
  def new(command, args, options) do
    {session_id, options} =
      if is_list(options), do: Keyword.pop(options, :session_id), else: {nil, options}

    Stream.flat_map([:once], fn :once -> elements(session_id, command, args, options) end)
  end

  defp elements(session_id, command, args, options) do
    request = Request.new(session_id, command, args, options)

    case Request.kind(request) do
      {:error, error} ->
        raise error

      {kind, request} when kind in [:one, :run] or request.session_id != nil ->
        events(request, options)

      # What all workers do has no events.
      _ ->
        request |> Execution.run() |> result()
    end
  end

  defp events(%{command: command, args: args} = request, options) do
    {name, _idempotent, options} = Request.own(options)
    options = if is_list(options), do: options, else: [timeout: options]
    options = Keyword.put(options, :session_id, request.session_id)

    name
    |> EventStream.new(command, args, options, fn deadline, open ->
      on_worker(%{request | deadline: deadline}, open)
    end)
    |> Stream.each(&share(&1, request))
  end

  defp share({:result, result}, request) do
    with {:error, error} <- Execution.share({:ok, result}, request), do: raise(error)
  end

  defp share(_event, _request), do: :ok

  defp on_worker(request, open) do
    Request.on_worker(request, fn connection, _request -> open.(connection) end)
  rescue
    error in Error -> {:error, error}
  end

  defp result({:ok, result}), do: [{:result, result}]
  defp result({:ok, result, timing}), do: [{:timing, timing}, {:result, result}]
  defp result({:error, error}), do: raise(error)
end
