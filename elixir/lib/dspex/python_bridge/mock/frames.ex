defmodule DSPex.PythonBridge.Mock.Frames do
  @moduledoc """
  The frames of a mock: requests of a bridge as terms, and messages to it. A message begins with its
  id, by which bridges recognize it.
  """

  alias DSPex.PythonBridge.{Error, JSON, Protocol}
  alias DSPex.PythonBridge.Mock.State

  @doc "Returns the format and the message of a frame; atoms are text, as a worker decodes them."
  @spec decode(binary()) :: {:ok, Protocol.format(), map()} | :error
  def decode(frame) do
    case Protocol.decode_message(frame) do
      {:ok, message} when is_map(message) -> {:ok, format(frame), plain(message)}
      _ -> :error
    end
  end

  defp format(<<byte, _::binary>>) when byte in [131, 0xC1], do: :etf
  defp format(_json), do: :json

  @doc "Returns a term with text in place of its atoms. Constants and tensors stay."
  @spec plain(term()) :: term()
  def plain(constant) when constant in [true, false, nil], do: constant
  def plain(atom) when is_atom(atom), do: Atom.to_string(atom)
  def plain(list) when is_list(list), do: Enum.map(list, &plain/1)
  def plain(%_{} = struct), do: struct |> DSPex.Encodable.encode() |> plain()

  def plain(map) when is_map(map),
    do: Map.new(map, fn {key, value} -> {plain(key), plain(value)} end)

  def plain({:tensor, _, _, _} = tensor), do: tensor

  def plain(tuple) when is_tuple(tuple),
    do: tuple |> Tuple.to_list() |> plain() |> List.to_tuple()

  def plain(other), do: other

  @doc "Returns the reply to a request."
  @spec reply(Protocol.format(), term(), {:ok, term()} | {:error, Error.t()}) :: iodata()
  def reply(format, id, {:ok, result}) do
    encode(format, [{"id", id}, {"success", true}, {"result", result}, {"timestamp", State.now()}])
  end

  def reply(format, id, {:error, error}) do
    encode(format, [
      {"id", id},
      {"success", false},
      {"error", error.message},
      {"code", to_string(error.code)},
      {"category", to_string(error.category)},
      {"severity", to_string(error.severity)},
      {"recovery", to_string(error.recovery)},
      {"details", error.details},
      {"timestamp", State.now()}
    ])
  end

  @doc "Returns an event of a call."
  @spec event(Protocol.format(), term(), String.t(), term()) :: iodata()
  def event(format, id, event, data) do
    encode(format, [{"id", id}, {"event", event}, {"data", data}])
  end

  @doc "Returns a request to the host."
  @spec host_call(Protocol.format(), String.t(), String.t(), map(), term()) :: iodata()
  def host_call(format, id, command, args, call_id) do
    encode(format, [{"id", id}, {"command", command}, {"args", args}, {"call_id", call_id}])
  end

  defp encode(:etf, pairs) do
    [<<131, ?t, length(pairs)::32>> | for({key, value} <- pairs, do: [etf(key), etf(value)])]
  end

  defp encode(:json, pairs) do
    members = for {key, value} <- pairs, do: [JSON.encode!(key), ?:, JSON.encode!(value)]
    [?{, Enum.intersperse(members, ?,), ?}]
  end

  defp etf(term) do
    <<131, encoded::binary>> = :erlang.term_to_binary(term)
    encoded
  end
end
