defmodule DSPex.PythonBridge.MockPoolTest do
  # A real pool whose workers are those of a mock.
  use ExUnit.Case, async: true

  alias DSPex.PythonBridge.{Error, Mock}
  alias DSPex.PythonBridge.SessionPoolV2, as: Pool
  alias DSPex.{Signature, Tool}

  @pool __MODULE__

  setup do
    start_supervised!({Mock, name: @pool, pool: [workers: 2]})
    ready? = &match?(%{state: :ready}, &1)
    wait(fn -> Enum.count(Pool.get_pool_status(@pool).slots, ready?) == 2 end)
    {:ok, _} = Pool.execute_anonymous(:configure_lm, %{provider: "offline"}, pool_name: @pool)
    :ok
  end

  defp create(args \\ %{}, options \\ []) do
    args = Map.merge(%{id: "p", signature: Signature.new("q -> a")}, args)
    Pool.execute_anonymous(:create_program, args, [pool_name: @pool] ++ options)
  end

  defp run(session_id) do
    args = %{program_id: "p", inputs: %{q: "?"}}
    Pool.execute_in_session(session_id, :execute_program, args, pool_name: @pool)
  end

  test "programs without a session are in all workers, sessions in one" do
    assert {:ok, %{"status" => "created"}} = create()
    assert length(Mock.calls(@pool, :create_program)) == 2
    Mock.set_response(@pool, :a, "yes")
    for n <- 1..8, do: assert({:ok, %{"outputs" => %{"a" => "yes"}}} = run("session #{n}"))

    assert {:ok, %{"session_id" => "session 1", "slot" => _}} =
             Pool.get_session_info("session 1", pool_name: @pool)

    assert :ok = Pool.end_session("session 1", pool_name: @pool)

    assert {:error, %Error{code: :session_not_found}} =
             Pool.get_session_info("session 1", pool_name: @pool)

    assert {:error, %Error{code: :program_not_found}} =
             Pool.execute_in_session("ann", :get_program_info, %{program_id: "X"},
               pool_name: @pool
             )
  end

  test "optimized and imported programs without a session are in all workers" do
    {:ok, _} = create()
    row = %{inputs: %{q: "Who?"}, outputs: %{a: "Ann"}}

    args = %{
      program_id: "p",
      optimizer: "labeled_few_shot",
      trainset: [row],
      metric: "exact_match"
    }

    own = [pool_name: @pool]

    assert {:ok, %{"score" => _, "document" => document}} =
             Pool.execute_anonymous(:optimize, Map.put(args, :save_as, "better"), own)

    assert %{"program_id" => "later"} =
             :optimize
             |> Pool.stream(Map.put(args, :save_as, "later"), own)
             |> Enum.find_value(fn event ->
               with {:result, result} <- event, do: result, else: (_ -> nil)
             end)

    assert {:ok, _} =
             Pool.execute_anonymous(
               :import_program,
               %{document: document, program_id: "copy"},
               own
             )

    {:ok, _} = Pool.execute_in_session("ann", :optimize, Map.put(args, :save_as, "own"), own)
    Mock.crash(@pool)

    for _ <- 1..8 do
      {:ok, %{"programs" => programs}} = Pool.execute_anonymous(:list_programs, %{}, own)
      assert Enum.sort(Enum.map(programs, & &1["id"])) == ["better", "copy", "later", "p"]
    end
  end

  test "streams and tools" do
    tool = Tool.new(:look_up, "", [q: :string], fn %{"q" => q} -> "found #{q}" end)
    assert {:ok, _} = Pool.register_tools([tool], pool_name: @pool)
    assert {:ok, _} = create(%{program_type: "react"})
    args = %{program_id: "p", inputs: %{q: "it"}}

    events =
      Enum.to_list(Pool.stream(:execute_program, args, pool_name: @pool, session_id: "ann"))

    assert {:tool_result, %{"name" => "look_up", "result" => "found it"}} in events
    assert {:result, %{"outputs" => %{"a" => _}}} = List.last(events)
  end

  test "its state, health and statistics" do
    assert %{status: :running, slots: [_, _], open_calls: 0} = Pool.get_pool_status(@pool)
    assert {:ok, %{status: :healthy, failed: failed}} = Pool.health_check(@pool)
    assert failed == %{}
    create()
    assert {:ok, %{"programs_count" => _, "workers" => [_, _]}} = Pool.get_stats(@pool)
  end

  test "a crash: new workers have what all share, and lost sessions are reported" do
    create()
    assert {:ok, _} = run("ann")
    Mock.crash(@pool)
    # What is in flight when a worker ends has crashed with it.
    assert {:error, %Error{code: code}} = run("ann")
    assert code in [:worker_crashed, :session_lost]
    wait(fn -> match?({:ok, %{"outputs" => _}}, run("ann")) end)
  end

  test "errors that are injected are repeated as the pool's policy has it" do
    create()

    Mock.inject_error(
      @pool,
      :execute_program,
      Error.new(:overloaded, "full", %{"started" => false}),
      times: 1
    )

    assert {:ok, _} =
             Pool.execute_anonymous(:execute_program, %{program_id: "p", inputs: %{q: "?"}},
               pool_name: @pool
             )

    assert length(Mock.calls(@pool, :execute_program)) == 2
  end

  defp wait(condition) do
    unless condition.() do
      Process.sleep(1)
      wait(condition)
    end
  end
end
