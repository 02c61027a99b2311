defmodule DSPex.PythonBridge.ToolsTest do
  use ExUnit.Case, async: true

  import ExUnit.CaptureLog
  import Workers
  alias DSPex.PythonBridge.{Bridge, Error}
  alias DSPex.Tool

  setup_all do
    bridge = Bridge.ToolsTest
    start_supervised!({Bridge, options(name: bridge, adapter: "bridge_test_adapter:adapter")})
    {:ok, bridge: bridge}
  end

  # The test adapter has no command `register_tools`, so functions are added to the table
  # directly.
  defp know(bridge, name, session \\ "default", run) do
    connection = DSPex.PythonBridge.Connection.fetch!(bridge)
    :ets.insert(connection.functions, {{session, :tool, name}, run})
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

  test "an exception becomes one line", %{bridge: bridge} do
    know(bridge, "raises", fn _ -> raise "first\nsecond" end)
    know(bridge, "throws", fn _ -> throw(:ball) end)
    know(bridge, "exits", fn _ -> exit(:now) end)
    assert {:error, %Error{code: :handler_error, message: "first"}} = ask(bridge, "raises")
    assert {:error, %Error{message: "throw: :ball"}} = ask(bridge, "throws")
    assert {:error, %Error{message: "exit: :now"}} = ask(bridge, "exits")
  end

  defmodule Unspeakable do
    defexception [:how]
    def message(%{how: :raise}), do: raise("no words")
    def message(%{how: :throw}), do: throw(:no_words)
    def message(%{how: :exit}), do: exit(:no_words)
    def message(%{how: :number}), do: 5
    def message(%{how: how}), do: how
  end

  test "a function gives exactly one answer, however it ends", %{bridge: bridge} do
    for {run, line} <- [
          {fn _ -> Process.exit(self(), :kill) end, ":killed"},
          {fn _ -> spawn_link(fn -> exit(:boom) end) && Process.sleep(:infinity) end, ":boom"},
          {fn _ -> exit(:normal) end, ":normal"},
          {fn _ -> raise "" end, "RuntimeError"},
          {fn _ -> Task.await(Task.async(fn -> raise "in a task" end)) end, "exit: in a task"},
          {fn _ -> GenServer.call(:nobody, {:get, "pw"}) end,
           "exit: :noproc in GenServer.call/3"},
          {fn _ -> Process.exit(self(), :normal) end, ""},
          {fn _ -> exit({:shutdown, %{a: 1}}) end, ":shutdown"},
          {fn _ -> throw({:a, <<255>>}) end, "throw:"},
          {fn _ -> :erlang.error(:badarg) end, "argument error"},
          {fn _ -> :erlang.error(%{not: :an_exception}) end, "an_exception"},
          {fn _ -> raise Unspeakable, how: :raise end, "no words"},
          {fn _ -> raise Unspeakable, how: :throw end, "Unspeakable"},
          {fn _ -> raise Unspeakable, how: :exit end, "Unspeakable"},
          {fn _ -> raise Unspeakable, how: :number end, "Unspeakable"},
          {fn _ -> raise Unspeakable, how: <<"bad ", 255, 254>> end, "bad \uFFFD\uFFFD"},
          {fn _ -> raise Unspeakable, how: "" end, ""},
          {fn _ -> raise Unspeakable, how: String.duplicate("long ", 100_000) end, "long long"},
          {fn :no_such_args -> :ok end, "no function clause"}
        ] do
      know(bridge, "ends", run)
      result = ask(bridge, "ends", timeout: 20_000)
      assert {:error, %Error{code: :handler_error, message: message}} = result
      assert message =~ line
      refute message =~ "\n"
    end
  end

  defmodule Secretive do
    defstruct [:password]
  end

  test "a result that cannot be sent is an error with its path", %{bridge: bridge} do
    for {value, path} <- [
          {[self()], "result[0]: a pid"},
          {%{a: [1, make_ref()]}, "result.a[1]: a reference"},
          {%{"f" => &is_map/1}, "result.f: a function"},
          {%{x: [1 | 2]}, "result.x: an improper list"},
          {%{x: <<1::3>>}, "result.x: a bit string"},
          {[:ok, %Secretive{password: "pw"}], "result[1]: a struct"},
          {%{%Secretive{password: "pw"} => 1}, "result: a struct"},
          {Enum.reduce(1..100_000, [], fn _, list -> [list] end), "nested more than"}
        ] do
      know(bridge, "odd", fn _ -> value end)
      result = ask(bridge, "odd", timeout: 20_000)
      assert {:error, %Error{code: :not_encodable, message: message}} = result
      assert message =~ path
      refute message =~ "pw"
    end
  end

  test "a function that does not return is killed" do
    bridge = start_bridge(adapter: "bridge_test_adapter:adapter", tool_timeout: 50)
    parent = self()
    know(bridge, "endless", fn _ -> send(parent, self()) && Process.sleep(:infinity) end)
    assert {:error, %Error{code: :deadline_exceeded, message: line}} = ask(bridge, "endless")
    assert line =~ ":tool_timeout"
    assert_receive tool
    wait_until(fn -> not Process.alive?(tool) end)
  end

  test "a failing function is logged where it runs, without its arguments", %{bridge: bridge} do
    know(bridge, "raises", fn _ -> raise "no luck" end)
    know(bridge, "clauses", fn %{"other" => _} -> :ok end)
    know(bridge, "odd", fn _ -> self() end)

    log =
      capture_log([metadata: [:bridge, :session_id]], fn ->
        assert {:error, _} = ask(bridge, "raises", session_id: "ann")
        assert {:error, _} = ask(bridge, "clauses")
        assert {:error, _} = ask(bridge, "odd")
      end)

    assert log =~ ~s(the tool "raises" failed: no luck)
    assert log =~ "tools_test.exs:"
    assert log =~ "session_id=ann"
    assert log =~ "bridge=#{inspect(bridge)}"
    assert log =~ ~s(the result of the tool "odd" cannot be sent: result: a pid cannot be sent)
    refute log =~ "Graz"
  end

  test "a function whose code was recompiled twice is an error that says what to do",
       %{bridge: bridge} do
    source = fn version ->
      """
      defmodule DSPex.ToolsTest.Recompiled do
        def tool, do: fn _ -> "fn #{version}" end
        def run(_args), do: "capture #{version}"
      end
      """
    end

    compile = fn version ->
      [{module, _}] = Code.compile_string(source.(version))
      module
    end

    Code.put_compiler_option(:ignore_module_conflict, true)
    on_exit(fn -> Code.put_compiler_option(:ignore_module_conflict, false) end)
    module = compile.(1)
    know(bridge, "fn", module.tool())
    know(bridge, "capture", Function.capture(module, :run, 1))
    assert {:ok, %{"answer" => "fn 1"}} = ask(bridge, "fn")
    compile.(2)
    :code.purge(module)
    compile.(3)

    log =
      capture_log(fn ->
        assert {:error, %Error{code: :handler_error, message: line}} = ask(bridge, "fn")
        assert line =~ "DSPex.ToolsTest.Recompiled was recompiled"
        assert line =~ "&Module.function/1"
      end)

    assert log =~ "DSPex.ToolsTest.Recompiled was recompiled"
    assert {:ok, %{"answer" => "capture 3"}} = ask(bridge, "capture")
  end

  test "a result that is too large is an error", %{bridge: bridge} do
    know(bridge, "large", fn _ -> :binary.copy("x", 65 * 1024 * 1024) end)
    assert {:error, %Error{code: :reply_too_large}} = ask(bridge, "large", timeout: 30_000)
  end

  test "sessions have their own tools", %{bridge: bridge} do
    know(bridge, "who", "a", fn _ -> "a" end)
    know(bridge, "who", "b", fn _ -> "b" end)
    assert {:ok, %{"answer" => "a"}} = ask(bridge, "who", session_id: "a")
    assert {:ok, %{"answer" => "b"}} = ask(bridge, "who", session_id: "b")
    assert {:error, %Error{code: :unknown_command}} = ask(bridge, "who")
    know(bridge, "all", fn _ -> "default" end)
    assert {:ok, %{"answer" => "default"}} = ask(bridge, "all", session_id: "a")
  end

  test "slow functions do not block each other", %{bridge: bridge} do
    parent = self()

    know(bridge, "meet", fn _ ->
      send(parent, {:met, self()})
      receive do: (:go_on -> "ok")
    end)

    calls = for _ <- 1..3, do: Task.async(fn -> ask(bridge, "meet") end)
    pids = for _ <- 1..3, do: assert_receive({:met, _}, 5_000) |> elem(1)
    assert {:ok, _} = Bridge.call(bridge, :ping, %{}, [])
    Enum.each(pids, &send(&1, :go_on))
    assert [{:ok, _}, {:ok, _}, {:ok, _}] = Task.await_many(calls)
  end

  test "a tool checks its argument types" do
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

    assert_raise ArgumentError, ~r/:city is not an argument type/, fn ->
      Tool.new("t", "", [a: :city], & &1)
    end
  end
end
