defmodule DSPex.Adapters.CommandsTest do
  # Not async: the adapters use the default bridge and the default pool.
  use ExUnit.Case

  alias DSPex.Adapters.{Commands, Mock, PythonPoolV2, PythonPort}
  alias DSPex.PythonBridge.{Bridge, Error, SessionPoolV2}
  alias DSPex.PythonBridge.Mock, as: Worker

  @row %{inputs: %{question: "Who?"}, outputs: %{answer: "Ann"}}

  setup do
    start_supervised!({Worker, name: Bridge})
    start_supervised!({Worker, name: SessionPoolV2, pool: [workers: 2]}, id: :pool)
    on_exit(&Mock.reset/0)
  end

  for adapter <- [PythonPort, PythonPoolV2, Mock] do
    test "#{inspect(adapter)}: what a program learns, scores, and documents" do
      adapter = unquote(adapter)
      {:ok, _} = adapter.call(:configure_lm, %{provider: "offline"}, 5_000)
      signature = DSPex.Signature.new("question -> answer")
      {:ok, "p"} = adapter.create_program(%{id: "p", signature: signature, demos: [@row]})
      include = %{include: ["demos"]}

      assert {:ok, %{"demos" => [%{"outputs" => %{"answer" => "Ann"}}]}} =
               adapter.get_program("p", include)

      inputs = [%{question: "Where?"}, %{query: "Where?"}]

      assert {:ok, %{"succeeded" => 1, "results" => [_, %{"error" => error}]}} =
               adapter.execute_batch("p", inputs)

      assert error["code"] == "invalid_args"

      assert {:ok, %{"score" => score, "results" => [_]}} =
               adapter.evaluate("p", [@row], "exact_match")

      assert score in [0.0, 1.0]

      assert {:ok, %{"program_id" => "better", "changes" => [_]}} =
               adapter.optimize("p", "labeled_few_shot", [@row], "exact_match", %{
                 save_as: "better"
               })

      {:ok, %{"document" => document}} = adapter.export_program("better")

      assert {:ok, %{"status" => "created"}} =
               adapter.import_program(document, %{program_id: "copy"})

      assert {:ok, ids} = adapter.list_programs()
      assert Enum.sort(ids) == ["better", "copy", "p"]

      assert {:error, %Error{code: :not_allowed}} = adapter.save_program("p", "p.json")
      assert {:ok, %{"history" => []}} = adapter.get_history(%{limit: 3}, timeout: 5_000)
      assert {:error, %Error{code: :invalid_args}} = adapter.inspect_call(1)
      assert {:error, %Error{code: :program_not_found}} = adapter.get_program("X")

      texts = ["the Louvre is in Paris", "the Prado is in Madrid"]
      assert {:ok, %{"texts" => 2}} = adapter.create_index("museums", texts)
      {:ok, found} = adapter.search_index("museums", %{query: "where is the Louvre", k: 1})
      assert found["passages"] == ["the Louvre is in Paris"]
      assert {:ok, _} = adapter.delete_index("museums")
    end
  end

  test "a stream has the progress of an optimization and the rows of an evaluation" do
    {:ok, _} = PythonPort.call(:configure_lm, %{provider: "offline"}, 5_000)
    signature = DSPex.Signature.new("question -> answer")
    {:ok, "p"} = PythonPort.create_program(%{id: "p", signature: signature})
    args = %{program_id: "p", devset: [@row, @row], metric: "exact_match"}
    events = PythonPort.stream(:evaluate, args) |> Enum.to_list()

    assert [
             {:row, %{"index" => 0}},
             {:progress, progress},
             {:row, _},
             {:progress, _},
             {:result, _}
           ] = events

    assert %{"phase" => "evaluate", "done" => 1, "total" => 2} = progress
  end

  test "each command has a function" do
    for {command, needed} <- Commands.all(), adapter <- [PythonPort, PythonPoolV2, Mock] do
      Code.ensure_loaded!(adapter)
      assert function_exported?(adapter, command, length(needed) + 2)
      assert is_map_key(DSPex.PythonBridge.Mock.Declarations.all(), to_string(command))
    end
  end
end
