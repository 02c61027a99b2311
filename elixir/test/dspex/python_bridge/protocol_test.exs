defmodule DSPex.PythonBridge.ProtocolTest do
  use ExUnit.Case, async: true
  doctest DSPex.PythonBridge.Protocol

  alias DSPex.PythonBridge.{Bridge, Error, Protocol}

  defp encoded(id, command, args, envelope) do
    id |> Protocol.encode_request(command, args, envelope) |> IO.iodata_to_binary()
  end

  test "a request is one map that begins with its id" do
    for id <- [0, 255, 256, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFFFFFFFFFFFF, "text"] do
      frame = encoded(id, "do", %{a: [1, nil]}, timeout_ms: 30_000, stream: true, session_id: "ü")
      assert <<131, ?t, 6::32, ?m, 2::32, "id", _::binary>> = frame

      assert :erlang.binary_to_term(frame) == %{
               "id" => id,
               "command" => "do",
               "args" => %{a: [1, nil]},
               "timeout_ms" => 30_000,
               "stream" => true,
               "session_id" => "ü"
             }
    end
  end

  test "large binaries are not copied into the request" do
    blob = :binary.copy("x", 1_000_000)
    assert blob in List.flatten(Protocol.encode_request(1, :echo, %{blob: blob}))
  end

  test "a request in JSON" do
    assert %{"id" => 1, "command" => "ping", "args" => %{"a" => nil}} =
             SmallJSON.decode!(encoded(1, :ping, %{a: nil}, format: :json))

    assert_raise Error, ~r/args\.pid: a pid cannot be sent/, fn ->
      Protocol.encode_request(1, :ping, %{pid: self()}, format: :json)
    end
  end

  test "the id comes first in either format, so that a worker finds it in a request that it rejects" do
    for format <- [:etf, :json] do
      options = [format: format, session_id: "ü", timeout_ms: 5]
      assert {:reply, 7} = 7 |> encoded(:ping, %{a: 1}, options) |> Protocol.peek()
      bridge = Workers.start_bridge(format: format, args: ["--max-values", "1000"])
      args = %{"a" => List.duplicate(0, 100_000)}
      assert {:error, %Error{code: :frame_too_large}} = Bridge.call(bridge, :echo, args, 60_000)
    end
  end

  # A map with up to 32 keys is sorted, so `id` would not come first. Built by hand, as
  # workers do.
  defp message(id, key, value) do
    <<131, id::binary>> = :erlang.term_to_binary(id)
    <<131, value::binary>> = :erlang.term_to_binary(value)
    <<131, ?t, 2::32, ?m, 2::32, "id", id::binary, ?m, byte_size(key)::32, key::binary>> <> value
  end

  test "peek recognises replies, events, logs and requests by their first bytes" do
    for id <- [0, 255, 256, -1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFFFFFF, "text", nil] do
      assert Protocol.peek(message(id, "success", true)) == {:reply, id}
      assert Protocol.peek(message(id, "event", "chunk")) == {:event, id}
      assert Protocol.peek(message(id, "event", "log")) == {:log, id}
    end

    assert Protocol.peek(message("w1", "command", "call_tool")) == {:request, "w1"}
    assert Protocol.peek("") == :heartbeat
    assert Protocol.peek("hello") == :unknown
    assert Protocol.peek(<<131, 107, 0, 1, 65>>) == :unknown
  end

  test "peek reads every form of nil" do
    for atom <- [<<?w, 3>>, <<?s, 3>>, <<?d, 3::16>>] do
      frame = <<131, ?t, 1::32, ?m, 2::32, "id", atom::binary, "nil", ?m, 7::32, "success">>
      assert Protocol.peek(frame) == {:reply, nil}
    end
  end

  test "peek reads JSON" do
    assert Protocol.peek(~s({"id":17,"success":true})) == {:reply, 17}
    assert Protocol.peek(~s({"id":17,"event":"chunk"})) == {:event, 17}
    assert Protocol.peek(~s({"id":null,"event":"log"})) == {:log, nil}
    assert Protocol.peek(~s({"id":"w2","command":"call_tool"})) == {:request, "w2"}
    assert Protocol.peek(~s({"id":"control","success":true})) == {:reply, "control"}
    assert Protocol.peek(~s({"id":null,"success":false})) == {:reply, nil}
    assert Protocol.peek(~s({"id":})) == :unknown
  end

  test "decodes replies in JSON, and rejects messages in neither format" do
    assert Protocol.decode_response(~s({"id":1,"success":true,"result":{"a":1}})) ==
             {:ok, 1, %{"a" => 1}}

    assert {:error, 2, %Error{code: :internal, message: "no"}} =
             Protocol.decode_response(~s({"id":2,"success":false,"error":"no"}))

    assert Protocol.decode_response(~s({"id":3})) == {:error, :malformed_response}
    assert Protocol.decode_response(<<131, 0>>) == {:error, :decode_error}
    assert Protocol.decode_response("") == {:error, :decode_error}
  end

  test "decoding a reply creates no atoms" do
    name = "never_seen_before_#{System.unique_integer([:positive])}"
    frame = <<131, ?w, byte_size(name), name::binary>>
    assert Protocol.decode_message(frame) == :error
  end

  test "frames: any split of a stream gives the same payloads" do
    stream = IO.iodata_to_binary(Enum.map(["", "a", "bc"], &Protocol.frame_message/1))

    for cut <- 0..byte_size(stream) do
      <<head::binary-size(cut), tail::binary>> = stream
      {payloads, rest} = unframe_all(head, [])
      assert {more, ""} = unframe_all(rest <> tail, [])
      assert payloads ++ more == ["", "a", "bc"]
    end
  end

  defp unframe_all(buffer, payloads) do
    case Protocol.unframe_message(buffer) do
      {:ok, payload, rest} -> unframe_all(rest, [payload | payloads])
      {:more, missing} when missing > 0 -> {Enum.reverse(payloads), buffer}
    end
  end
end
