defmodule DSPex.PythonBridge.TensorsTest do
  use ExUnit.Case, async: true
  doctest DSPex.PythonBridge.Multipart

  alias DSPex.PythonBridge.{Bridge, Connection, Error, Multipart, Protocol}

  @python Path.expand("../../fixtures/python", __DIR__)

  defp start(adapter, options \\ []) do
    Workers.start_bridge([adapter: adapter, format: :etf, env: %{PYTHONPATH: @python}] ++ options)
  end

  defp floats(list), do: for(x <- list, into: <<>>, do: <<x::float-32-little>>)
  defp floats_of(binary), do: for(<<x::float-32-little <- binary>>, do: x)

  test "the example multiplies matrices, and refuses wrong ones with their path" do
    bridge = start("matrices:adapter")
    a = {:tensor, {:f, 32}, {2, 3}, floats([1, 2, 3, 4, 5, 6])}
    b = {:tensor, {:f, 32}, {3, 1}, floats([1, 0, 1])}

    assert {:ok, %{"product" => {:tensor, {:f, 32}, {2, 1}, product}}} =
             Bridge.call(bridge, :multiply, %{a: a, b: b}, 30_000)

    assert floats_of(product) == [4.0, 10.0]

    for {a, b, path, line} <- [
          {a, a, "args.b", "Expected `f32[k=3, m]`, got `f32[2, 3]`"},
          {put_elem(a, 1, {:f, 64}), b, "args.a", "does not take 24 bytes"},
          {put_elem(a, 1, {:f, 33}), b, "args.a", "unknown tensor type"},
          {put_elem(a, 2, {2, -3}), b, "args.a", "sizes from 0"},
          {put_elem(a, 3, <<>>), b, "args.a", "does not take 0 bytes"},
          {put_elem(a, 3, [1]), b, "args.a", "must be a binary"},
          {"text", b, "args.a", "tensor"}
        ] do
      assert {:error, %Error{code: :invalid_args} = error} =
               Bridge.call(bridge, :multiply, %{a: a, b: b}, 30_000)

      assert error.details["path"] == path
      assert error.message =~ line
    end
  end

  test "all types are returned, as parts of their frame" do
    bridge = start("arrays:adapter")

    for type <- [
          {:s, 8},
          {:s, 16},
          {:s, 32},
          {:s, 64},
          {:u, 8},
          {:u, 16},
          {:u, 32},
          {:u, 64},
          {:f, 8},
          {:f, 16},
          {:f, 32},
          {:f, 64},
          {:bf, 16},
          {:f8_e4m3fn, 8},
          {:c, 64},
          {:c, 128}
        ],
        {shape, count} <- [{{}, 1}, {{0, 2}, 0}, {{3, 2}, 6}, {{6000, 2}, 12_000}] do
      data = :binary.copy("\x01", count * div(elem(type, 1), 8))
      tensor = {:tensor, type, shape, data}
      assert {:ok, %{"x" => ^tensor} = result} = call(bridge, :tensor_back, %{x: tensor})
      {:tensor, _, _, data} = result["x"]
      if count > 64, do: assert(:binary.referenced_byte_size(data) > byte_size(data))
      if type == {:f, 32}, do: nx(result["x"])
    end
  end

  # Only if the application has it.
  defp nx({:tensor, type, shape, data}) do
    if Code.ensure_loaded?(Nx) do
      tensor = Nx |> apply(:from_binary, [data, type]) |> then(&apply(Nx, :reshape, [&1, shape]))
      assert apply(Nx, :to_binary, [tensor]) == data
    end
  end

  defp call(bridge, command, args), do: Bridge.call(bridge, command, args, 30_000)

  test "tensors and binaries anywhere in the args, in results and in events" do
    bridge = start("arrays:adapter")
    small = {:tensor, {:u, 8}, {3}, "abc"}
    blob = :binary.copy(<<255>>, 100_000)
    text = :binary.copy("ü", 100_000)

    args = %{
      "list" => [small, %{"y" => small}],
      "blob" => blob,
      "text" => text,
      "number" => 1,
      "short" => <<255>>
    }

    assert {:ok, %{"args" => ^args, "types" => types}} = call(bridge, :anything, args)

    assert types == %{
             "list" => "list",
             "blob" => "memoryview",
             "text" => "str",
             "number" => "int",
             "short" => "bytes"
           }

    assert {:ok, %{"data" => ^text, "view" => ^blob}} =
             call(bridge, :binary, %{data: blob, view: text})

    assert {:ok, %{"data" => ^blob, "view" => "short"}} =
             call(bridge, :binary, %{data: "short", view: blob})

    events = bridge |> Bridge.stream(:back_on_a_thread, %{x: small}, 30_000) |> Enum.to_list()
    assert [{"array", %{"x" => ^small}}, {:result, %{"x" => ^small}}] = events
  end

  test "large tensors are sent in both directions, and not copied into the request" do
    bridge = start("arrays:adapter", max_frame: 64 * 1024 * 1024)
    data = :crypto.strong_rand_bytes(20_000_000)
    tensor = {:tensor, {:u, 8}, {20_000_000}, data}
    assert {:ok, %{"x" => ^tensor}} = call(bridge, :back, %{x: tensor})
    parts = List.flatten(Protocol.encode_request(1, :back, %{x: tensor, y: [%{blob: data}]}))
    assert Enum.count(parts, &:erts_debug.same(&1, data)) == 2
  end

  test "a tool receives and returns tensors" do
    parent = self()

    double = fn %{"x" => {:tensor, type, shape, data} = x} ->
      send(parent, {:asked, x})
      {:tensor, type, shape, floats(Enum.map(floats_of(data), &(2 * &1)))}
    end

    # The test adapter has no command `register_tools`, so the function is added to the table
    # directly.
    bridge = start("arrays:adapter")
    :ets.insert(Connection.fetch!(bridge).functions, {{"default", :tool, "double"}, double})
    x = {:tensor, {:f, 32}, {2}, floats([1, 2])}
    doubled = {:tensor, {:f, 32}, {2}, floats([2, 4])}
    assert {:ok, %{"type" => "ndarray", "x" => ^doubled}} = call(bridge, :ask, %{x: x})
    assert_received {:asked, ^x}
  end

  test "a tensor in JSON is an error" do
    args = %{x: {:tensor, {:u, 8}, {3}, "abc"}}

    assert_raise Error, ~r/a tensor cannot be sent in JSON/, fn ->
      Protocol.encode_request(1, :back, args, format: :json)
    end
  end

  test "frames are decoded as they were encoded, and frames with wrong lengths are errors" do
    buffers = [<<>>, "a", :binary.copy("b", 64), :binary.copy("c", 5000)]
    envelope = :erlang.term_to_binary(%{"id" => 1})
    frame = IO.iodata_to_binary(Multipart.frame(envelope, buffers))
    assert {:ok, ^envelope, found} = Multipart.parts(frame)
    assert Tuple.to_list(found) == buffers
    assert Multipart.frame(envelope, []) == envelope

    for size <- 0..(byte_size(frame) - 1)//7 do
      cut = binary_part(frame, 0, size)
      assert Multipart.parts(cut) == :error
      assert Protocol.decode_message(cut) == :error
    end

    <<magic::binary-size(4), _count::32, rest::binary>> = frame

    for count <- [0, 3, 5, 65_537, 0xFFFFFFFF] do
      assert Multipart.parts(<<magic::binary, count::32, rest::binary>>) == :error
    end

    assert Multipart.parts(frame <> "more") == :error
    nowhere = :erlang.term_to_binary(%{"id" => 1, "x" => %{"$buffer" => 4}})
    lie = IO.iodata_to_binary(Multipart.frame(nowhere, buffers))
    assert Protocol.decode_message(lie) == :error
  end
end
