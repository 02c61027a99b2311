defmodule DSPex.PythonBridge.MockTest do
  use ExUnit.Case, async: true

  alias DSPex.PythonBridge.{Bridge, Error, Mock}
  alias DSPex.{Signature, Tool}

  setup do
    bridge = start_supervised!(Mock)
    Bridge.call!(bridge, :configure_lm, %{provider: "offline"}, 5_000)
    {:ok, bridge: bridge}
  end

  defp create(bridge, signature, args \\ %{}) do
    args = Map.merge(%{id: "p", signature: Signature.new(signature)}, args)
    Bridge.call!(bridge, :create_program, args, 5_000)
  end

  defp run(bridge, inputs \\ %{q: "a"}, options \\ 5_000) do
    Bridge.call(bridge, :execute_program, %{program_id: "p", inputs: inputs}, options)
  end

  test "values that are set, in the declared types", %{bridge: bridge} do
    create(bridge, "q -> answer, n: integer, day: optional<date>")
    {:ok, %{"outputs" => first} = result} = run(bridge)
    assert {:ok, %{"outputs" => ^first}} = run(bridge)
    assert %{"answer" => "mock_answer_" <> _, "n" => n, "day" => day} = first
    assert is_integer(n) and match?({:ok, _}, Date.from_iso8601(day))
    assert %{"program_id" => "p", "model" => "offline/reader", "execution_time" => _} = result

    Mock.set_response(bridge, :answer, fn %{"q" => q} -> "yes, #{q}" end)
    Mock.set_responses(bridge, "n", [1, 2])
    assert {:ok, %{"outputs" => %{"answer" => "yes, a", "n" => 1}}} = run(bridge)
    assert {:ok, %{"outputs" => %{"n" => 2}}} = run(bridge)
    assert {:ok, %{"outputs" => %{"n" => 2}}} = run(bridge)

    Mock.set_response(bridge, :n, "many")
    assert {:error, %Error{code: :lm_error, message: line}} = run(bridge)
    assert line =~ "'n': expected integer"
    Mock.set_response(bridge, :n, 3, program_id: "p")
    assert {:ok, %{"outputs" => %{"n" => 3}}} = run(bridge)
    Mock.reset(bridge)
    assert {:ok, %{"outputs" => ^first}} = run(bridge)
  end

  test "requests are recorded, with text in place of atoms", %{bridge: bridge} do
    create(bridge, "q -> a")
    run(bridge, %{q: ~D[2024-01-01]}, session_id: "ann")
    assert [%{args: args, session_id: "ann"}] = Mock.calls(bridge, :execute_program)
    assert args == %{"program_id" => "p", "inputs" => %{"q" => "2024-01-01"}}
    commands = bridge |> Mock.calls() |> Enum.map(& &1.command)
    assert commands == ["configure_lm", "create_program", "execute_program"]
    assert [_ | _] = Mock.calls(bridge, "hello")
  end

  test "errors that are injected, so many times", %{bridge: bridge} do
    create(bridge, "q -> a")
    overloaded = Error.new(:overloaded, "full", %{"retry_after" => 0.5})
    Mock.inject_error(bridge, :execute_program, overloaded, times: 2)

    for _ <- 1..2 do
      assert {:error, %Error{code: :overloaded, details: %{"retry_after" => 0.5}}} = run(bridge)
    end

    assert {:ok, _} = run(bridge)
    Mock.inject_error(bridge, :ping, Error.new(:internal, "no"))
    assert {:error, %Error{code: :internal}} = Bridge.call(bridge, :ping, %{}, 5_000)
    Mock.inject_error(bridge, :ping, nil)
    assert {:ok, _} = Bridge.call(bridge, :ping, %{}, 5_000)
    # What a worker refuses is refused for its own reason.
    Mock.inject_error(bridge, :execute_program, overloaded)
    assert {:error, %Error{code: :invalid_args}} = run(bridge, %{})
  end

  test "a stream has events, chunks and the result", %{bridge: bridge} do
    create(bridge, "q -> answer, n: integer", %{program_type: "chain_of_thought"})
    Mock.set_response(bridge, :answer, "one two three")
    stream = Bridge.stream(bridge, :execute_program, %{program_id: "p", inputs: %{q: "a"}}, 5_000)
    events = Enum.to_list(stream)
    assert [{:status, %{"status" => "lm_call", "model" => "offline/reader"}} | _] = events
    chunks = for {:chunk, %{"field" => "answer", "text" => text}} <- events, do: text
    assert chunks == ["one", " two", " three"]
    assert {:result, %{"outputs" => %{"reasoning" => _, "n" => n}}} = List.last(events)
    assert {:chunk, %{"field" => "n", "text" => to_string(n)}} in events
    assert Enum.take(stream, 1) == [hd(events)]
  end

  test "programs of type react call the tools", %{bridge: bridge} do
    test = self()

    days = %{"type" => "integer", "default" => 1}

    weather =
      Tool.new(:weather, "", [city: :string, days: days], fn args ->
        send(test, {:weather, args})
        "rain"
      end)

    broken = Tool.new(:broken, "", [], fn _ -> raise "no network" end)
    {:ok, _} = Bridge.register_tools(bridge, [weather, broken], [])
    create(bridge, "city -> answer", %{program_type: "react"})

    events =
      Bridge.stream(bridge, :execute_program, %{program_id: "p", inputs: %{city: "Graz"}}, 5_000)
      |> Enum.to_list()

    assert_received {:weather, %{"city" => "Graz"}}
    assert {:tool_call, %{"name" => "weather", "args" => %{"city" => "Graz"}}} in events
    assert {:tool_result, %{"name" => "weather", "result" => "rain"}} in events
    assert {:tool_result, %{"name" => "broken", "result" => "error: no network"}} in events
    assert {:result, %{"outputs" => %{"answer" => _, "reasoning" => _}}} = List.last(events)

    Mock.set_tool_calls(bridge, weather: %{"city" => "Linz", "days" => 3}, weather: %{"city" => 7})

    {:ok, _} = run(bridge, %{city: "Graz"})
    assert_received {:weather, %{"city" => "Linz", "days" => 3}}
    # Arguments that do not fit never reach the function.
    refute_received {:weather, _}
    Mock.set_tool_calls(bridge, gone: %{})
    assert {:error, %Error{code: :lm_error}} = run(bridge, %{city: "Graz"})
  end

  test "a tool may call the bridge", %{bridge: bridge} do
    ping = Tool.new(:ping, "", [], fn _ -> Bridge.call!(bridge, :ping, %{}, 5_000)["status"] end)
    {:ok, _} = Bridge.register_tools(bridge, [ping], session_id: "ann")
    args = %{id: "p", signature: Signature.new("q -> a"), program_type: "react"}
    Bridge.call!(bridge, :create_program, args, session_id: "ann")

    stream =
      Bridge.stream(bridge, :execute_program, %{program_id: "p", inputs: %{q: ""}},
        session_id: "ann"
      )

    assert {:tool_result, %{"name" => "ping", "result" => "ok"}} in Enum.to_list(stream)
  end

  test "a slow call ends at its timeout, and with its caller", %{bridge: bridge} do
    create(bridge, "q -> a")
    Mock.set_delay(bridge, :execute_program, 60_000)
    assert {:error, %Error{code: :deadline_exceeded}} = run(bridge, %{q: "a"}, 20)
    assert {:error, %Error{code: :deadline_exceeded}} = run(bridge, %{q: "a"}, 0)
    Mock.reset(bridge)
    Mock.set_delay(bridge, :execute_program, 60_000)
    caller = spawn(fn -> run(bridge) end)
    wait(fn -> Mock.calls(bridge, :execute_program) != [] end)
    Process.exit(caller, :kill)
    wait(fn -> Mock.calls(bridge, :cancel) != [] end)
    assert Bridge.get_status(bridge).open_calls == 0
    Mock.set_delay(bridge, :list_programs, 1)
    assert {:ok, %{"programs" => [_]}} = Bridge.call(bridge, :list_programs, %{}, 5_000)
  end

  test "results that are set, also of other commands", %{bridge: bridge} do
    assert {:error, %Error{code: :unknown_command}} = Bridge.call(bridge, :words, %{}, 5_000)

    Mock.set_result(bridge, :words, fn %{"text" => text} ->
      %{words: length(String.split(text))}
    end)

    assert {:ok, %{"words" => 2}} = Bridge.call(bridge, :words, %{text: "to be"}, 5_000)
    assert {:error, %Error{code: :handler_error}} = Bridge.call(bridge, :words, %{}, 5_000)
    Mock.set_result(bridge, :list_programs, %{"programs" => [], "total_count" => 7})
    assert {:ok, %{"total_count" => 7}} = Bridge.call(bridge, :list_programs, %{}, 5_000)
  end

  test "a crash ends open calls, and the setup runs again", %{bridge: _} do
    name = __MODULE__.Crashing
    setup = &Bridge.call!(&1, :configure_lm, %{provider: "offline"}, 5_000)
    start_supervised!({Mock, name: name, setup: setup})
    create(name, "q -> a")
    Mock.set_delay(name, :execute_program, 60_000)
    test = self()

    Mock.set_result(name, :wait, fn _ ->
      send(test, {:runs, self()})
      Process.sleep(:infinity)
    end)

    spawn(fn -> Bridge.call(name, :wait, %{}, 60_000) end)
    assert_receive {:runs, runs}
    monitor = Process.monitor(runs)
    call = Task.async(fn -> run(name) end)
    wait(fn -> Mock.calls(name, :execute_program) != [] end)
    Mock.crash(name)
    assert_receive {:DOWN, ^monitor, _, _, :killed}
    assert {:error, %Error{code: :worker_crashed}} = Task.await(call)
    assert {:error, %Error{code: :program_not_found}} = run(name)
    assert %{status: :running, stats: %{restarts: 1}} = Bridge.get_status(name)
    assert length(Mock.calls(name, :configure_lm)) == 2
  end

  test "a bridge with a name, casts, JSON, options of processes" do
    name = __MODULE__.Named
    options = [name: name, format: :json, threads: 4, env: %{A: "b"}, args: ["--queue", "7"]]
    start_supervised!({Mock, options})
    assert :ok = Bridge.cast(name, :configure_lm, %{provider: "offline"})
    create(name, "q -> a")
    assert {:ok, %{"outputs" => %{"a" => _}}} = run(name)
    assert [_] = Mock.calls(name, :configure_lm)
    stop_supervised!(name)
    refute Process.whereis(name)
    start_supervised!({Mock, name: name})
    assert {:ok, %{"total_count" => 0}} = Bridge.call(name, :list_programs, %{}, 5_000)
  end

  test "programs that an operator registers" do
    look_up = Tool.new(:look_up, "", [], fn _ -> "found" end)

    options = [
      name: __MODULE__.Registered,
      programs: %{research: Signature.new("q -> text")},
      tools: [look_up]
    ]

    mock = start_supervised!({Mock, options})
    Bridge.call!(mock, :configure_lm, %{provider: "offline"}, 5_000)
    Mock.set_tool_calls(mock, look_up: %{})
    args = %{program_id: "research", inputs: %{q: "a"}}
    events = Enum.to_list(Bridge.stream(mock, :execute_program, args, 5_000))
    assert {:tool_result, %{"name" => "look_up", "result" => "found"}} in events
    assert {:status, %{"predictor" => "self", "call" => 1}} = List.keyfind(events, :status, 0)
    info = Bridge.call!(mock, :get_program_info, %{program_id: "research"}, 5_000)
    assert %{"registered" => true, "program_type" => "module", "execution_count" => 1} = info
  end

  defp wait(condition) do
    unless condition.() do
      Process.sleep(1)
      wait(condition)
    end
  end
end
