defmodule DSPex.PythonBridge.FunctionsTest do
  use ExUnit.Case, async: true

  import ExUnit.CaptureLog
  import Workers
  alias DSPex.PythonBridge.{Bridge, Error, SessionPoolV2}

  defmodule Echo do
    @behaviour DSPex.Model

    @impl true
    def complete(%{"messages" => [%{"content" => content} | _]} = request) do
      usage = %{input_tokens: 3, output_tokens: 1}
      {:ok, %{text: "#{content} #{request["settings"]["temperature"]}", usage: usage}}
    end
  end

  @request %{"messages" => [%{"role" => "user", "content" => "Why?"}], "settings" => %{}}

  setup_all do
    bridge = Bridge.FunctionsTest
    metrics = [same: &__MODULE__.same/1]
    options = [name: bridge, adapter: "bridge_test_adapter:adapter", metrics: metrics]
    start_supervised!({Bridge, options(options)})
    {:ok, bridge: bridge}
  end

  def same(run), do: run["expected"] == run["outputs"]

  defp ask(bridge, command, name, args, options \\ []) do
    args = %{command: "call_#{command}", args: Map.put(args, "name", name)}

    with {:ok, %{"answer" => answer}} <- Bridge.call(bridge, :ask_host, args, options),
         do: {:ok, answer}
  end

  test "a model is a module or a function", %{bridge: bridge} do
    models = %{
      "module" => Echo,
      "function" => fn %{"messages" => _} -> "plain" end,
      "streaming" => fn _request, emit -> emit.("not wanted") && %{text: "whole"} end
    }

    assert Bridge.register(bridge, [models: models], []) == :ok
    request = put_in(@request["settings"]["temperature"], 0.5)

    assert {:ok, %{"text" => "Why? 0.5", "usage" => usage}} =
             ask(bridge, :model, "module", request)

    assert usage == %{"input_tokens" => 3, "output_tokens" => 1}
    assert ask(bridge, :model, "function", request) == {:ok, "plain"}
    assert ask(bridge, :model, "streaming", request) == {:ok, %{"text" => "whole"}}
  end

  test "a piece that is not a text fails the model, wanted or not", %{bridge: bridge} do
    for piece <- [5, nil, <<255>>], stream <- [true, false] do
      models = [odd: fn _request, emit -> emit.(piece) end]
      assert Bridge.register(bridge, [models: models], []) == :ok
      request = Map.put(@request, "stream", stream)

      capture_log(fn ->
        assert {:error, %Error{message: message}} = ask(bridge, :model, "odd", request)
        assert message =~ "a piece of a model's reply must be a text in UTF-8"
      end)
    end
  end

  test "metrics, rewards and embedders", %{bridge: bridge} do
    functions = %{
      metrics: [judged: fn %{"trace" => trace} -> %{score: 0.5, feedback: inspect(trace)} end],
      rewards: [length: fn %{"outputs" => %{"answer" => text}} -> String.length(text) end],
      embedders: [ones: fn %{"texts" => texts} -> {:ok, Enum.map(texts, fn _ -> [1.0] end)} end]
    }

    assert Bridge.register(bridge, functions, []) == :ok
    run = %{"inputs" => %{}, "expected" => %{"answer" => "a"}, "outputs" => %{"answer" => "a"}}
    assert ask(bridge, :metric, "same", run) == {:ok, true}
    judged = ask(bridge, :metric, "judged", Map.put(run, "trace", []))
    assert judged == {:ok, %{"score" => 0.5, "feedback" => "[]"}}
    assert ask(bridge, :reward, "length", run) == {:ok, 1}
    assert ask(bridge, :embedder, "ones", %{"texts" => ["a", "b"]}) == {:ok, [[1.0], [1.0]]}
  end

  test "failures are one line, and errors of the bridge keep code and details", %{bridge: bridge} do
    busy = Error.new(:lm_error, "busy", %{"lm_code" => "rate_limit", "retry_after" => 2})

    models = [
      raises: fn _ -> raise "no\nluck" end,
      busy: fn _ -> raise busy end,
      refused: fn _ -> {:error, busy} end,
      text: fn _ -> {:error, "no key"} end,
      reason: fn _ -> {:error, :timeout} end
    ]

    assert Bridge.register(bridge, [models: models], []) == :ok

    log =
      capture_log(fn ->
        for name <- ["busy", "refused"] do
          assert {:error, %Error{code: :lm_error, message: "busy"} = error} =
                   ask(bridge, :model, name, @request)

          assert error.details == %{"lm_code" => "rate_limit", "retry_after" => 2}
        end

        for {name, line} <- [{"raises", "no"}, {"text", "no key"}, {"reason", ":timeout"}] do
          assert {:error, %Error{code: :handler_error, message: message}} =
                   ask(bridge, :model, name, @request)

          assert message =~ line
          refute message =~ "\n"
        end
      end)

    assert log =~ ~s(the model "raises" failed: no)
    assert {:error, %Error{code: :unknown_command}} = ask(bridge, :reward, "raises", %{})
  end

  test "sessions prefer their own functions", %{bridge: bridge} do
    Bridge.register(bridge, [rewards: [who: fn _ -> 0 end, all: fn _ -> 1 end]], [])
    Bridge.register(bridge, [rewards: [who: fn _ -> 2 end]], session_id: "ann")
    Bridge.register(bridge, [rewards: [who: fn _ -> 3 end]], session_id: :ben)
    assert ask(bridge, :reward, "who", %{}, session_id: "ann") == {:ok, 2}
    assert ask(bridge, :reward, "who", %{}, session_id: :ben) == {:ok, 3}
    assert ask(bridge, :reward, "all", %{}, session_id: "ann") == {:ok, 1}
    assert ask(bridge, :reward, "who", %{}) == {:ok, 0}
  end

  test "functions that cannot be called are refused", %{bridge: bridge} do
    for {functions, reason} <- [
          {[metrics: [m: fn -> 1 end]], "the metric m must be a function of one argument"},
          {[metrics: [m: Echo]], "the metric m must be a function of one argument"},
          {[models: [m: Enum]], "the model m: Enum has no complete/1"},
          {[models: [m: "text"]], "the model m must be a module with the behaviour DSPex.Model"},
          {[tools: []], "unknown kind :tools"},
          {[models: 5], ":models must be a map or a keyword list"}
        ] do
      assert_raise ArgumentError, ~r/#{Regex.escape(reason)}/, fn ->
        Bridge.register(bridge, functions, [])
      end
    end

    assert_raise ArgumentError, ~r/the reward r must be/, fn ->
      Bridge.start_link(name: Refused, rewards: [r: 5])
    end
  end

  test "all workers of a pool call the functions of the pool" do
    pool = Module.concat(__MODULE__, Pool)
    options = options(adapter: "bridge_test_adapter:adapter", transport: :port)
    own = [name: pool, workers: 2, fork: false, rewards: [all: fn _ -> 1 end]]
    start_supervised!({SessionPoolV2, own ++ options})
    assert SessionPoolV2.register([rewards: [who: fn _ -> 2 end]], pool_name: pool) == :ok
    own = [pool_name: pool, session_id: "ann"]
    assert SessionPoolV2.register([rewards: [who: fn _ -> 3 end]], own) == :ok
    reward = &%{command: "call_reward", args: %{"name" => &1}}
    ask = &SessionPoolV2.execute_in_session(&1, :ask_host, reward.(&2), pool_name: pool)
    assert ask.("ann", "who") == {:ok, %{"answer" => 3}}
    assert ask.("bob", "who") == {:ok, %{"answer" => 2}}
    assert ask.("bob", "all") == {:ok, %{"answer" => 1}}

    own = [pool_name: pool, session_id: :cid]
    assert SessionPoolV2.register([rewards: [who: fn _ -> 4 end]], own) == :ok
    assert ask.(:cid, "who") == {:ok, %{"answer" => 4}}

    for {unknown, line} <- [{[session_id: 5], "session_id"}, {[sesion_id: "ann"], "sesion_id"}] do
      assert_raise ArgumentError, ~r/#{line}/, fn ->
        SessionPoolV2.register([rewards: [who: fn _ -> 5 end]], [pool_name: pool] ++ unknown)
      end
    end
  end

  describe "a program on a model of the application" do
    defmodule Streaming do
      @behaviour DSPex.Model

      @impl true
      def complete(_request), do: "[[ ## answer ## ]]\nat once"

      @impl true
      def stream(_request, emit) do
        for text <- ["[[ ## answer ## ]]\n", "in ", "pieces"], do: emit.(text)
        %{text: "[[ ## answer ## ]]\nin pieces", usage: %{output_tokens: 3}}
      end
    end

    setup do
      bridge = start_bridge(adapter: "dspy", models: %{"mine" => Streaming})
      signature = DSPex.Signature.new("question -> answer")
      {:ok, _} = Bridge.call(bridge, :create_program, %{id: "p", signature: signature}, 60_000)
      run = %{program_id: "p", inputs: %{question: "How?"}, model: "host/mine"}
      {:ok, bridge: bridge, run: run}
    end

    test "answers at once, or in pieces to a stream", %{bridge: bridge, run: run} do
      assert {:ok, %{"outputs" => %{"answer" => "at once"}, "model" => "host/mine"}} =
               Bridge.call(bridge, :execute_program, run, 60_000)

      events = bridge |> Bridge.stream(:execute_program, run, 60_000) |> Enum.to_list()
      texts = for {:chunk, %{"text" => text}} <- events, do: text
      assert Enum.join(texts) == "in pieces"
      assert length(texts) > 1
      assert {:result, %{"outputs" => %{"answer" => "in pieces"}}} = List.last(events)
    end

    test "fails with the error of the model, or asks the next one", %{bridge: bridge, run: run} do
      busy = Error.new(:lm_error, "busy", %{"status" => 503})
      other = fn _request -> "[[ ## answer ## ]]\nthe other" end
      models = %{"busy" => fn _request -> raise busy end, "other" => other}
      assert Bridge.register(bridge, [models: models], []) == :ok
      args = %{name: "first", model: "host/busy", retries: 0}
      {:ok, _} = Bridge.call(bridge, :configure_lm, args, [])

      capture_log(fn ->
        assert {:error, %Error{code: :lm_error, message: message}} =
                 Bridge.call(bridge, :execute_program, %{run | model: "first"}, 60_000)

        assert message =~ "busy"
        run = %{run | model: %{models: ["first", "host/other"]}}

        assert {:ok, %{"outputs" => %{"answer" => "the other"}}} =
                 Bridge.call(bridge, :execute_program, run, 60_000)
      end)
    end

    test "ends its model when the stream is stopped", %{bridge: bridge, run: run} do
      test = self()

      endless = fn _request, emit ->
        send(test, {:model, self()})
        emit.("[[ ## answer ## ]]\n")
        Enum.each(Stream.cycle(["more "]), emit)
      end

      :ok = Bridge.register(bridge, [models: [mine: endless]], [])
      events = Bridge.stream(bridge, :execute_program, run, 60_000)
      assert [_] = events |> Stream.filter(&match?({:chunk, _}, &1)) |> Enum.take(1)
      assert_receive {:model, pid}
      wait_until(fn -> not Process.alive?(pid) end)
    end
  end
end
