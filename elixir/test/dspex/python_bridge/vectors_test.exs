defmodule DSPex.PythonBridge.VectorsTest do
  use ExUnit.Case, async: true

  alias DSPex.PythonBridge.Protocol

  @vectors Path.expand("../../fixtures/vectors", __DIR__)

  for %{"format" => format, "name" => name} = entry <-
        @vectors
        |> Path.join("index.json")
        |> File.read!()
        |> SmallJSON.decode!()
        |> Map.get("vectors"),
      format == "etf" or name == "heartbeat",
      not String.starts_with?(name, "multipart") do
    @entry entry

    test "#{name}: decodes to the values in the index" do
      for {file, value} <- Enum.zip(@entry["replies"], @entry["values"]) do
        <<length::32, payload::binary-size(length)>> = File.read!(Path.join(@vectors, file))

        if value == nil do
          assert payload == ""
        else
          assert Protocol.decode_message(payload) == {:ok, value}
        end
      end
    end
  end

  test "a request decodes to the same term as the vector's" do
    <<_::32, expected::binary>> = File.read!(Path.join(@vectors, "frames/execute.etf.request"))
    %{"id" => id, "command" => command, "args" => args} = :erlang.binary_to_term(expected)
    ours = id |> Protocol.encode_request(command, args) |> IO.iodata_to_binary()
    assert :erlang.binary_to_term(ours) == :erlang.binary_to_term(expected)
  end
end
