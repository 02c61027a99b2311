defmodule DSPex.PythonBridge.ToolsTest do
  use ExUnit.Case, async: true

  import Workers
  alias DSPex.PythonBridge.{Bridge, Error}
  alias DSPex.Tool

  setup_all do
    bridge = Bridge.ToolsTest
    start_supervised!({Bridge, options(name: bridge, adapter: "bridge_test_adapter:adapter")})
    {:ok, bridge: bridge}
  end

  # The test adapter has no `register_tools`, so the functions are put where it puts them.
  defp know(bridge, name, session \\ "default", run) do
    connection = DSPex.PythonBridge.Connection.fetch!(bridge)
    :ets.insert(connection.table, {{:tool, session, name}, run})
  end

  defp ask(bridge, name, options \\ []) do
    Bridge.call(bridge, :ask, %{name: name, args: %{"city" => "Graz"}}, options)
  end

  test "a function answers", %{bridge: bridge} do
    know(bridge, "plain", fn %{"city" => city} -> %{"degrees" => 21, "city" => city} end)
    assert ask(bridge, "plain") == {:ok, %{"answer" => %{"degrees" => 21, "city" => "Graz"}}}
  end

  test "a function may call the bridge", %{bridge: bridge} do
    know(bridge, "nested", fn _ -> Bridge.call!(bridge, :ping, %{}, 5_000)["status"] end)
    assert ask(bridge, "nested") == {:ok, %{"answer" => "ok"}}
  end

  test "what a function raises is one line", %{bridge: bridge} do
    know(bridge, "raises", fn _ -> raise "first\nsecond" end)
    know(bridge, "throws", fn _ -> throw(:ball) end)
    know(bridge, "exits", fn _ -> exit(:now) end)
    assert {:error, %Error{code: :handler_error, message: "first"}} = ask(bridge, "raises")
    assert {:error, %Error{message: "throw: :ball"}} = ask(bridge, "throws")
    assert {:error, %Error{message: "exit: :now"}} = ask(bridge, "exits")
  end

  test "what is no value of the wire is answered too", %{bridge: bridge} do
    know(bridge, "odd", fn _ -> [self(), make_ref(), &is_map/1] end)
    refute match?({:error, %Error{code: :deadline_exceeded}}, ask(bridge, "odd", timeout: 2_000))
  end

  test "a result that is too large is an error", %{bridge: bridge} do
    know(bridge, "large", fn _ -> :binary.copy("x", 65 * 1024 * 1024) end)
    assert {:error, %Error{code: :reply_too_large}} = ask(bridge, "large", timeout: 5_000)
  end

  test "sessions have tools of their own", %{bridge: bridge} do
    know(bridge, "who", "a", fn _ -> "a" end)
    know(bridge, "who", "b", fn _ -> "b" end)
    assert {:ok, %{"answer" => "a"}} = ask(bridge, "who", session_id: "a")
    assert {:ok, %{"answer" => "b"}} = ask(bridge, "who", session_id: "b")
    assert {:error, %Error{code: :unknown_command}} = ask(bridge, "who")
  end

  test "slow functions do not hold up each other", %{bridge: bridge} do
    parent = self()

    know(bridge, "meet", fn _ ->
      send(parent, {:met, self()})
      receive do: (:go_on -> "ok")
    end)

    calls = for _ <- 1..3, do: Task.async(fn -> ask(bridge, "meet") end)
    pids = for _ <- 1..3, do: assert_receive({:met, _}, 5_000) |> elem(1)
    assert {:ok, _} = Bridge.call(bridge, :ping)
    Enum.each(pids, &send(&1, :go_on))
    assert [{:ok, _}, {:ok, _}, {:ok, _}] = Task.await_many(calls)
  end

  test "a tool knows its types" do
    tool =
      Tool.new(
        "t",
        "",
        %{"a" => {:list, :integer}, b: %{"type" => "string", "default" => ""}},
        & &1
      )

    assert tool.args == %{
             "a" => %{"type" => "array", "items" => %{"type" => "integer"}},
             "b" => %{"type" => "string", "default" => ""}
           }

    assert_raise ArgumentError, ~r/:city is no type/, fn ->
      Tool.new("t", "", [a: :city], & &1)
    end
  end
end
