defmodule DSPex.EncodableTest do
  # Not async: captures stderr.
  use ExUnit.Case, async: false
  doctest DSPex.PythonBridge.Terms

  alias DSPex.PythonBridge.{Bridge, Error, Protocol, Terms}

  setup_all do
    bridge = Bridge.EncodableTest
    options = [name: bridge, adapter: "bridge_test_adapter:adapter"]
    start_supervised!({Bridge, Workers.options(options)})
    start_supervised!({Bridge, Workers.options(name: Bridge.EncodableEcho)})
    {:ok, bridge: bridge}
  end

  defp decimal(sign, coef, exp), do: struct(Decimal, sign: sign, coef: coef, exp: exp)

  @written [
    {~D[2024-01-01], "2024-01-01"},
    {~T[12:30:00.5], "12:30:00.5"},
    {~N[2024-01-01 12:30:00], "2024-01-01T12:30:00"},
    {~U[2024-01-01 12:30:00Z], "2024-01-01T12:30:00Z"},
    {%DateTime{
       year: 2000,
       month: 2,
       day: 29,
       zone_abbr: "CET",
       hour: 23,
       minute: 0,
       second: 7,
       microsecond: {0, 0},
       utc_offset: 3600,
       std_offset: 0,
       time_zone: "Europe/Vienna"
     }, "2000-02-29T23:00:07+01:00"},
    {URI.parse("https://a.example/b?c=1#d"), "https://a.example/b?c=1#d"},
    {%Structs.Money{amount: 5, currency: "EUR"}, "5 EUR"},
    {%Structs.Only{name: "Ann", born: ~D[1990-05-05], password: "pw"},
     %{"name" => "Ann", "born" => "1990-05-05"}},
    {%Structs.Except{name: "Ann", password: "pw"}, %{"name" => "Ann"}},
    {%Structs.All{name: "Ann"}, %{"name" => "Ann"}}
  ]

  @numbers [
    {{1, 1_234_567_890_123_456_78, -2}, "1234567890123456.78"},
    {{1, 10, -2}, "0.10"},
    {{-1, 5, 0}, "-5"},
    {{1, 0, -3}, "0.000"},
    {{1, 1, -6}, "0.000001"},
    {{1, 1, -7}, "1E-7"},
    {{1, 125, 3}, "1.25E+5"},
    {{-1, 1, 1_000_000_000}, "-1E+1000000000"},
    {{1, :NaN, 0}, "NaN"},
    {{-1, :inf, 0}, "-Infinity"}
  ]

  test "encodable structs are sent as their encoding, at any depth" do
    written = @written ++ for {{s, c, e}, text} <- @numbers, do: {decimal(s, c, e), text}

    for {value, expected} <- written do
      args = %{"x" => value, "list" => [1, %{"deep" => value}]}
      expected = %{"x" => expected, "list" => [1, %{"deep" => expected}]}
      assert Bridge.call(Bridge.EncodableEcho, :echo_decoded, args, []) == {:ok, expected}
      stream = Bridge.stream(Bridge.EncodableEcho, :echo_decoded, args, 30_000)
      assert Enum.to_list(stream) == [result: expected]
    end
  end

  test "structs that are encoded as text can be keys" do
    args = %{"days" => %{~D[2024-01-01] => 1, decimal(1, 10, -1) => 2}}

    assert Bridge.call(Bridge.EncodableEcho, :echo_decoded, args, []) ==
             {:ok, %{"days" => %{"2024-01-01" => 1, "1.0" => 2}}}

    for {args, line} <- [
          {%{days: %{~D[2024-01-01] => 1, "2024-01-01" => 2}}, "args.days: two keys"},
          {%{days: %{%Structs.All{name: "x"} => 1}}, "args.days: a struct Structs.All"},
          {%{days: %{%Structs.Plain{} => 1}}, "args.days: a struct Structs.Plain"}
        ] do
      assert {:error, %Error{code: :not_encodable, message: message}} =
               Bridge.call(Bridge.EncodableEcho, :echo_decoded, args, [])

      assert message =~ line
    end
  end

  test "structs in session data are encoded" do
    args = %{operation: "set", key: "since", value: ~D[2024-01-01], session_id: "dates"}
    assert {:ok, _} = Bridge.call(Bridge.EncodableEcho, :update_session_data, args, [])
    assert Bridge.cast(Bridge.EncodableEcho, :update_session_data, %{args | key: "cast"}) == :ok

    assert {:ok, %{"data" => %{"since" => "2024-01-01", "cast" => "2024-01-01"}}} =
             Bridge.call(Bridge.EncodableEcho, :get_session_data, [session_id: "dates"], [])
  end

  test "other structs are errors with their path, in every format and kind of call" do
    user = %Structs.Plain{name: "Ann", password: "pw"}

    for {value, line} <- [
          {user, "a struct Structs.Plain cannot be sent: send a map"},
          {1..3, "a struct Range cannot be sent: send Enum.to_list/1 of it"},
          {MapSet.new([1]), "a struct MapSet"},
          {~r/x/, "a struct Regex"},
          {%Structs.Money{}, "the struct Structs.Money cannot be encoded: no amount"},
          {%Structs.Endless{}, "nested more than 512 levels deep"},
          {%Date{year: 2024, month: 1, day: 1, calendar: :no_calendar},
           "the struct Date cannot be encoded"},
          {self(), "a pid cannot be sent"},
          {make_ref(), "a reference cannot be sent"},
          {fn -> 1 end, "a function cannot be sent"},
          {<<5::3>>, "a bit string"},
          {[1 | 2], "an improper list"}
        ] do
      args = %{inputs: %{"user" => value}}

      for format <- [:etf, :json] do
        error = catch_error(Protocol.encode_request(1, :execute_program, args, format: format))
        assert %Error{code: :not_encodable} = error
        assert error.message =~ "args.inputs.user"
        assert error.message =~ line
        assert error.details["path"] =~ "args.inputs.user"
        refute error.message =~ "pw"
      end

      assert {:error, %Error{code: :not_encodable}} =
               Bridge.call(Bridge.EncodableEcho, :echo, args, [])

      assert {:error, %Error{code: :not_encodable}} =
               Bridge.cast(Bridge.EncodableEcho, :echo, args)

      assert_raise Error, ~r/args\.inputs\.user/, fn ->
        Enum.to_list(Bridge.stream(Bridge.EncodableEcho, :echo, args, []))
      end
    end
  end

  test "tuples and binaries that are not UTF-8 are errors with their path in JSON" do
    for {value, line} <- [{{1, 2}, "a tuple"}, {<<255>>, "not UTF-8"}, {%{[1] => 2}, "a list"}] do
      error = catch_error(Protocol.encode_request(1, :echo, %{"x" => [value]}, format: :json))
      assert error.message =~ "args.x[0]: "
      assert error.message =~ line
    end
  end

  test "keys that are equal in Python are an error in either format" do
    for keys <- [[:a, "a"], [~D[2024-01-01], "2024-01-01"]], format <- [:etf, :json] do
      args = %{x: [Map.new(keys, &{&1, 1})]}
      error = catch_error(Protocol.encode_request(1, :echo, args, format: format))
      assert %Error{code: :not_encodable} = error
      assert error.message =~ "args.x[0]: two keys of the map are equal in Python"
    end

    for {keys, format} <- [
          {[1, 1.0], :etf},
          {[true, 1], :etf},
          {[1, "1"], :json},
          {[nil, "nil"], :json}
        ] do
      args = Map.new(keys, &{&1, 1})
      error = catch_error(Protocol.encode_request(1, :echo, args, format: format))
      assert error.message =~ "args: two keys of the map are equal in Python"
    end

    assert Bridge.call(Bridge.EncodableEcho, :echo, %{:a => 1, "b" => 2, 1 => 3}, []) |> elem(0) ==
             :ok
  end

  test "keys that JSON cannot represent are errors with their path" do
    error =
      catch_error(Protocol.encode_request(1, :echo, %{"x" => %{<<255>> => 1}}, format: :json))

    assert error.message =~ "args.x: a binary that is not UTF-8"
  end

  test "a struct as the args themselves" do
    args = %Structs.Plain{name: "Ann"}
    assert {:error, %Error{message: message}} = Bridge.call(Bridge.EncodableEcho, :echo, args, [])
    assert message =~ "args: a struct Structs.Plain"

    assert Bridge.call(Bridge.EncodableEcho, :echo_decoded, %Structs.All{name: "Ann"}, []) ==
             {:ok, %{"name" => "Ann"}}
  end

  test "structs in a tool's result are encoded", %{bridge: bridge} do
    connection = DSPex.PythonBridge.Connection.fetch!(bridge)
    tool = fn _ -> %{at: ~D[2024-01-01], who: [%Structs.Only{name: "Ann"}]} end
    :ets.insert(connection.functions, {{"default", :tool, "day"}, tool})

    assert {:ok,
            %{"answer" => %{"at" => "2024-01-01", "who" => [%{"name" => "Ann", "born" => nil}]}}} =
             Bridge.call(bridge, :ask, %{name: "day"}, [])
  end

  test "recognises terms that can be encoded unchanged" do
    for term <- [%{}, %{a: [1, 2.5, nil, "x", %{"b" => :c}]}, [], ""],
        do: assert(Terms.plain?(term))

    for term <- [
          {1},
          [1 | 2],
          %{a: ~D[2024-01-01]},
          %{1 => 2},
          [self()],
          <<1::1>>,
          :binary.copy("x", 5_000),
          Enum.reduce(1..600, [], fn _, list -> [list] end)
        ],
        do: refute(Terms.plain?(term))
  end

  test "unknown derived fields are errors at compile time" do
    for options <- [
          "only: [:nmae]",
          "except: [:nmae]",
          "only: [:name], except: [:name]",
          "onyl: []"
        ] do
      code = """
      defmodule DSPex.EncodableTest.Wrong do
        @derive {DSPex.Encodable, #{options}}
        defstruct [:name]
      end
      """

      # Elixir also warns that protocols are already consolidated.
      ExUnit.CaptureIO.capture_io(:stderr, fn ->
        assert_raise ArgumentError, fn -> Code.eval_string(code) end
      end)
    end
  end
end
