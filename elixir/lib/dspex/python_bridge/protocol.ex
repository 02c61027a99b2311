defmodule DSPex.PythonBridge.Protocol do
  @moduledoc """
  Encodes and decodes messages: requests, replies and frames. Pure functions.

  The format is Erlang's external term format (`:etf`), or JSON (`:json`) if the application has a
  JSON module (`DSPex.PythonBridge.JSON`). A worker replies in the format of the request.

  ## Terms

  Maps, lists, tuples, binaries, numbers, booleans and `nil` are sent unchanged. Other atoms
  arrive as strings, both keys and values: `%{question: "x"}` arrives as `{"question": "x"}`.
  Dates, times, `Decimal` and `URI` are sent as text, other structs only if they implement
  `DSPex.Encodable`.

  Pids, ports, references, functions, improper lists and bit strings are errors with their path,
  and so are maps with two keys that are equal in Python (`:a` and `"a"`, 1 and 1.0). In JSON all
  keys are text.

  Received maps have string keys, and the only received atoms are `true`, `false` and `nil`. The
  exception is data that the worker returns unchanged, such as the signature of a program.
  Decoding never creates new atoms.

  Tensors, `{:tensor, type, shape, binary}`, are supported in `:etf` only; see
  `DSPex.PythonBridge.Multipart`.
  """

  alias DSPex.PythonBridge.{Error, Exits, JSON, Multipart, Terms}

  @type format :: :etf | :json
  @type id :: non_neg_integer() | String.t()
  @type command :: atom() | String.t()

  @etf 131
  # The first byte of a multipart frame.
  @multipart 0xC1
  # Tensors in a reply contain these atoms, and decoding with `:safe` needs them to exist.
  @tensor_atoms [:tensor | Multipart.kinds()]
  # Bytes up to which a term is encoded as one binary.
  @copied 16_384

  @doc """
  Encodes a request as iodata for a port with `{:packet, 4}` or for `frame_message/1`.

  `envelope` holds the other keys of the envelope (`timeout_ms:`, `session_id:`, `stream:`, …) and
  `format:`, default `:etf`. Raises `DSPex.PythonBridge.Error` with `:not_encodable` for args
  that the format cannot represent.

      iex> request = DSPex.PythonBridge.Protocol.encode_request(1, :ping, %{})
      iex> request |> IO.iodata_to_binary() |> :erlang.binary_to_term()
      %{"id" => 1, "command" => "ping", "args" => %{}}
  """
  @spec encode_request(id(), command(), map(), keyword()) :: iodata()
  def encode_request(id, command, args, envelope \\ []) do
    {format, envelope} = Keyword.pop(envelope, :format, :etf)
    envelope = for {key, value} <- envelope, do: {Atom.to_string(key), value}
    encode(format, [{"id", id}, {"command", to_string(command)} | envelope], args)
  end

  # The id comes first, because a worker looks for it in the first 64 KiB of a request that is
  # invalid or too long. The order of a map would put the args before it.
  @doc false
  @spec encode(format(), [{String.t(), term()}], term()) :: iodata()
  def encode(:etf, head, args) do
    {args, buffers} = etf_args(args)
    Multipart.frame([<<@etf, ?t, length(head) + 1::32>> | etf_pairs(head, args)], buffers)
  end

  def encode(:json, head, args) do
    args = Terms.written!(args, :json, "args")
    [?{, for({key, value} <- head, do: json_pair(key, value, ?,)), json_pair("args", args, ?})]
  end

  @doc false
  @spec encode_answer(format(), map()) :: iodata()
  def encode_answer(:etf, answer) do
    {answer, buffers} = answer |> written_result(:etf) |> Multipart.extract()
    Multipart.frame(:erlang.term_to_iovec(answer), buffers)
  end

  def encode_answer(:json, answer), do: answer |> written_result(:json) |> encode_json()

  defp written_result(%{"result" => result} = answer, format) do
    %{answer | "result" => Terms.written!(result, format, "result")}
  end

  defp written_result(answer, _format), do: answer

  defp json_pair(key, value, ending), do: [?", key, "\":", encode_json(value), ending]

  defp encode_json(message) do
    JSON.encode!(message)
  rescue
    error ->
      reason = Exits.line(:error, error, __STACKTRACE__)

      reraise Error.new(:not_encodable, "the message cannot be encoded as JSON: #{reason}"),
              __STACKTRACE__
  end

  # Returns the encoded args without the version byte, and the buffers.
  defp etf_args(args) do
    if Terms.plain?(args) do
      {etf_term(args), []}
    else
      {args, buffers} = args |> Terms.written!(:etf, "args") |> Multipart.extract()
      {etf_term(args), buffers}
    end
  end

  defp etf_pairs([], args), do: [<<?m, 4::32, "args">> | args]
  defp etf_pairs([{key, value} | rest], args), do: [etf_pair(key, value) | etf_pairs(rest, args)]

  # Common kinds of values are encoded together with their key.
  defp etf_pair(key, value) when is_integer(value) and value in 0..0x7FFFFFFF do
    <<?m, byte_size(key)::32, key::binary, ?b, value::32>>
  end

  defp etf_pair(key, value) when is_binary(value) do
    <<?m, byte_size(key)::32, key::binary, ?m, byte_size(value)::32, value::binary>>
  end

  defp etf_pair(key, value), do: [<<?m, byte_size(key)::32, key::binary>> | etf_term(value)]

  # Returns a term without the version byte. Small terms are copied, which is faster; the binaries
  # of large ones are not.
  defp etf_term(term) do
    if :erlang.external_size(term) <= @copied do
      <<@etf, encoded::binary>> = :erlang.term_to_binary(term)
      [encoded]
    else
      [<<@etf, first::binary>> | more] = :erlang.term_to_iovec(term)
      [first | more]
    end
  end

  @doc """
  Decodes a reply in either format.

      iex> reply = :erlang.term_to_binary(%{"id" => 1, "success" => true, "result" => %{"a" => 1}})
      iex> DSPex.PythonBridge.Protocol.decode_response(reply)
      {:ok, 1, %{"a" => 1}}

      iex> reply = %{"id" => 2, "success" => false, "error" => "no", "code" => "handler_error"}
      iex> {:error, 2, error} =
      ...>   DSPex.PythonBridge.Protocol.decode_response(:erlang.term_to_binary(reply))
      iex> {error.code, error.message}
      {:handler_error, "no"}

      iex> DSPex.PythonBridge.Protocol.decode_response("neither")
      {:error, :decode_error}
  """
  @spec decode_response(binary()) ::
          {:ok, id(), term()}
          | {:error, id() | nil, Error.t()}
          | {:error, :decode_error | :malformed_response}
  def decode_response(data) do
    case decode_message(data) do
      {:ok, %{"id" => id, "success" => true, "result" => result}} -> {:ok, id, result}
      {:ok, %{"id" => id, "success" => false} = reply} -> {:error, id, Error.from_reply(reply)}
      {:ok, _} -> {:error, :malformed_response}
      :error -> {:error, :decode_error}
    end
  end

  @doc """
  Decodes any message in either format. Returns `{:ok, term}` or `:error`.
  """
  @spec decode_message(binary()) :: {:ok, term()} | :error
  def decode_message(<<@etf, _::binary>> = data) do
    {:ok, :erlang.binary_to_term(data, [:safe])}
  rescue
    ArgumentError -> :error
  end

  def decode_message(<<@multipart, _::binary>> = data) do
    with {:ok, envelope, buffers} <- Multipart.parts(data),
         {:ok, message} <- decode_message(envelope) do
      {:ok, Multipart.substitute(message, buffers)}
    end
  rescue
    ArgumentError -> :error
  end

  def decode_message(data) do
    {:ok, JSON.decode!(data)}
  rescue
    _ -> :error
  end

  @doc """
  Returns the kind and the id of a frame from its first bytes, without decoding it: `{:reply,
  id}`, `{:event, id}`, `{:log, id}`, `{:request, id}` for a request of the worker, `:heartbeat`
  for an empty frame, and `:unknown` for anything else. The protocol guarantees that messages
  begin with their `id`.
  """
  @spec peek(binary()) ::
          {:reply | :event | :log, id() | nil} | {:request, String.t()} | :heartbeat | :unknown
  def peek(<<@etf, ?t, _::32, ?m, 2::32, "id", rest::binary>>), do: peek_etf(rest)
  def peek(<<"{\"id\":", rest::binary>>), do: peek_json(rest)

  def peek(
        <<@multipart, 1, 0::16, count::32, _::32, _::binary-size(count)-unit(32), rest::binary>>
      ) do
    peek(rest)
  end

  def peek(<<>>), do: :heartbeat
  def peek(_), do: :unknown

  defp peek_etf(<<?a, id, rest::binary>>), do: {kind(rest), id}
  defp peek_etf(<<?b, id::32-signed, rest::binary>>), do: {kind(rest), id}

  defp peek_etf(<<?n, size, 0, id::little-size(size)-unit(8), rest::binary>>) do
    {kind(rest), id}
  end

  defp peek_etf(<<?m, size::32, id::binary-size(size), rest::binary>>) do
    if match?("w" <> _, id), do: {:request, id}, else: {kind(rest), id}
  end

  defp peek_etf(<<atom, 3, "nil", rest::binary>>) when atom in [?w, ?s], do: {kind(rest), nil}
  defp peek_etf(<<?d, 3::16, "nil", rest::binary>>), do: {kind(rest), nil}
  defp peek_etf(_), do: :unknown

  defp kind(<<?m, 5::32, "event", ?m, 3::32, "log", _::binary>>), do: :log
  defp kind(<<?m, 5::32, "event", _::binary>>), do: :event
  defp kind(<<",\"event\":\"log\"", _::binary>>), do: :log
  defp kind(<<",\"event\"", _::binary>>), do: :event
  defp kind(_), do: :reply

  defp peek_json(<<"null", rest::binary>>), do: {kind(rest), nil}
  defp peek_json(<<"\"w", _::binary>> = text), do: {:request, json_string(text)}

  defp peek_json(<<"\"", _::binary>> = text) do
    id = json_string(text)
    {kind(binary_part(text, byte_size(id) + 2, byte_size(text) - byte_size(id) - 2)), id}
  end

  defp peek_json(text) do
    case Integer.parse(text) do
      {id, rest} -> {kind(rest), id}
      :error -> :unknown
    end
  end

  # The ids of this client and of workers contain no escapes.
  defp json_string(<<"\"", text::binary>>), do: text |> :binary.split("\"") |> hd()

  @doc """
  Adds the 4-byte length in front of a payload, for transports without framing of their own.

      iex> IO.iodata_to_binary(DSPex.PythonBridge.Protocol.frame_message("abc"))
      <<0, 0, 0, 3, "abc">>
  """
  @spec frame_message(iodata()) :: iodata()
  def frame_message(payload), do: [<<IO.iodata_length(payload)::32>>, payload]

  @doc """
  Takes the first frame from a buffer. Returns `{:ok, payload, rest}`, or `{:more, bytes}` with
  the least number of bytes that are missing.

      iex> DSPex.PythonBridge.Protocol.unframe_message(<<0, 0, 0, 3, "abc", 0>>)
      {:ok, "abc", <<0>>}

      iex> DSPex.PythonBridge.Protocol.unframe_message(<<0, 0, 0, 3, "a">>)
      {:more, 2}
  """
  @spec unframe_message(binary()) :: {:ok, binary(), binary()} | {:more, pos_integer()}
  def unframe_message(<<size::32, payload::binary-size(size), rest::binary>>) do
    {:ok, payload, rest}
  end

  def unframe_message(<<size::32, part::binary>>), do: {:more, size - byte_size(part)}
  def unframe_message(part), do: {:more, 4 - byte_size(part)}

  # Keeps the atoms in this module, so that they exist before a reply is decoded.
  @doc false
  @spec tensor_atoms() :: [atom()]
  def tensor_atoms, do: @tensor_atoms
end
