defmodule DSPex.Pool.ObservingTest do
  # Not async: there is one listener for telemetry, and one default pool.
  use ExUnit.Case, async: false

  import Pools
  import Workers
  alias DSPex.Adapters.{Adapter, PythonPoolV2, PythonPort}
  alias DSPex.PythonBridge.{Bridge, CircuitBreaker, Error, Pool, SessionPoolV2}

  @moduletag timeout: 120_000

  test "telemetry of slots, checkouts and retries" do
    :telemetry.listen()
    pool = start_pool(workers: 1..2)
    assert_receive {[:dspex_bridge, :pool, :template], _, %{pool: ^pool, event: :ready}}

    assert_receive {[:dspex_bridge, :pool, :slot], %{age: _},
                    %{pool: ^pool, slot: 1, from: :starting, to: :ready}}

    call =
      Task.async(fn ->
        SessionPoolV2.execute_in_session("ann", :ping, %{}, pool_name: pool)
        SessionPoolV2.execute_anonymous(:sleep, %{seconds: 1}, pool_name: pool)
      end)

    assert_receive {[:dspex_bridge, :pool, :checkout], %{open_calls: 0},
                    %{pool: ^pool, slot: 1, command: :ping, session_id: "ann"}}

    assert_receive {[:dspex_bridge, :pool, :checkout], _, %{command: :sleep, session_id: nil}}
    wait_until(fn -> SessionPoolV2.get_pool_status(pool).open_calls == 1 end)
    [pid] = pids(pool)
    signal(pid, :KILL)
    assert {:ok, _} = Task.await(call, 20_000)

    assert_receive {[:dspex_bridge, :pool, :retry], %{attempt: 1},
                    %{slot: 1, command: :sleep, code: :worker_crashed}}

    assert_receive {[:dspex_bridge, :pool, :slot], _,
                    %{slot: 1, from: :ready, to: :gone, reason: %Error{}}}

    assert_receive {[:dspex_bridge, :call, :stop], _,
                    %{bridge: {^pool, 2}, command: :sleep, code: :ok}}
  end

  test "the adapters of a bridge and of a pool answer alike, and the configuration chooses one" do
    start_supervised!({Bridge, options(adapter: "dspy")})
    start_supervised!({SessionPoolV2, options(adapter: "dspy", workers: 2)})
    {:ok, _} = Bridge.call(:configure_lm, %{provider: "offline"})
    {:ok, _} = SessionPoolV2.execute_anonymous(:configure_lm, %{provider: "offline"})
    signature = DSPex.Signature.new("question, passage -> answer")
    inputs = %{question: "Where is the Louvre?", passage: "The Louvre is in Paris."}

    for adapter <- [PythonPort, PythonPoolV2] do
      Application.put_env(:dspex_bridge, :adapter, adapter)
      on_exit(fn -> Application.delete_env(:dspex_bridge, :adapter) end)
      assert Adapter.configured() == adapter
      assert {:ok, "qa"} = adapter.create_program(%{id: "qa", signature: signature})

      assert {:error, %Error{code: :program_exists}} =
               adapter.create_program(%{id: "qa", signature: signature})

      assert {:ok, %{"outputs" => %{"answer" => "Paris"}}} = adapter.execute_program("qa", inputs)
      assert {:ok, %{"outputs" => _}} = adapter.execute_program("qa", inputs, %{temperature: 0.5})
      assert {:ok, ["qa"]} = adapter.list_programs()
      assert {:ok, %{"program_id" => "qa"}} = adapter.get_program_info("qa")
      assert :ok = adapter.health_check()

      assert {:ok,
              %{"programs_count" => 1, "commands" => %{"execute_program" => %{"calls" => 2}}}} =
               adapter.get_stats()

      assert :ok = adapter.delete_program("qa")
      assert {:error, %Error{code: :program_not_found}} = adapter.execute_program("qa", inputs)
      assert adapter.supports_test_layer?(:layer_3)
    end
  end

  test "the stream of a change is its result" do
    pool = start_pool()
    args = %{key: "a", value: 1}

    assert [result: %{"status" => "updated"}] =
             Enum.to_list(SessionPoolV2.stream(:update_session_data, args, pool_name: pool))

    wait_for_workers(pool, 2)

    for _ <- 1..6 do
      assert {:ok, %{"data" => %{"a" => 1}}} =
               SessionPoolV2.execute_anonymous(:get_session_data, %{}, pool_name: pool)
    end

    assert_raise Error, fn ->
      Enum.to_list(SessionPoolV2.stream(:shutdown, %{}, pool_name: pool))
    end
  end

  test "runs of a provider that fails are refused without a request" do
    pool = start_pool(adapter: "dspy", workers: 1)
    {:ok, socket} = :gen_tcp.listen(0, [])
    {:ok, port} = :inet.port(socket)
    :gen_tcp.close(socket)

    model = %{
      model: "openai/none",
      api_base: "http://127.0.0.1:#{port}",
      api_key: "none",
      retries: 0
    }

    call = fn command, args ->
      SessionPoolV2.execute_anonymous(command, args, pool_name: pool, timeout: 60_000)
    end

    {:ok, %{"provider" => provider}} = call.(:configure_lm, model)

    {:ok, _} =
      call.(:create_program, %{id: "qa", signature: DSPex.Signature.new("question -> answer")})

    run = fn -> call.(:execute_program, %{program_id: "qa", inputs: %{question: "?"}}) end
    for _ <- 1..5, do: assert({:error, %Error{code: :lm_error}} = run.())
    assert {:error, %Error{code: :circuit_open, details: %{"retry_after" => _}}} = run.()
    assert CircuitBreaker.state(Pool.get(pool).breaker, provider) == :open
    {:ok, _} = call.(:configure_lm, %{provider: "offline"})
    assert {:ok, _} = run.()
  end
end
