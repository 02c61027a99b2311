defmodule DSPex.PythonBridge.Pool.Streams do
  @moduledoc """
  A call of a pool whose events are delivered as a stream. The worker is chosen when the stream is
  enumerated. A stream is not repeated by another worker once it has been sent.
  """

  alias DSPex.PythonBridge.{Connection, Error, EventStream}
  alias DSPex.PythonBridge.Pool.{Execution, Request}

  @doc """
  Returns the stream of a request, for one enumeration. Raises `DSPex.PythonBridge.Error` for a call that
  the pool refuses.
  """
  @spec elements(Request.t()) :: Enumerable.t()
  def elements(request) do
    case Request.kind(request) do
      {:error, error} ->
        raise error

      {kind, request} when kind in [:one, :run] or request.session_id != nil ->
        events(request)

      # What all workers do has no events.
      _ ->
        request |> Execution.run() |> result()
    end
  end

  defp events(%{pool: pool, command: command, args: args} = request) do
    options = [
      timeout: Connection.remaining(request.deadline),
      session_id: request.session_id,
      timing: in_envelope(request, "timing"),
      traceparent: in_envelope(request, "traceparent")
    ]

    pool.name
    |> EventStream.new(command, args, options, fn deadline, open ->
      on_worker(%{request | deadline: deadline}, open)
    end)
  end

  defp in_envelope(request, key) do
    {_, value} = List.keyfind(request.envelope, key, 0, {key, nil})
    value
  end

  defp on_worker(request, open) do
    Request.on_worker(request, fn connection, _request -> open.(connection) end)
  rescue
    error in Error -> {:error, error}
  end

  defp result({:ok, result}), do: [{:result, result}]
  defp result({:ok, result, timing}), do: [{:timing, timing}, {:result, result}]
  defp result({:error, error}), do: raise(error)
end
