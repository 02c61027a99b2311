defmodule DSPex.Adapters.MockTest do
  use ExUnit.Case, async: false

  alias DSPex.Adapters.Mock
  alias DSPex.PythonBridge.Error
  alias DSPex.Signature

  setup do
    Mock.reset()
    on_exit(&Mock.reset/0)
  end

  defp program(signature), do: elem(Mock.create_program(%{signature: signature}), 1)

  test "answers have the signature's types and depend only on the inputs" do
    id =
      program(
        Signature.new(
          "q -> text, n: integer, x: float, ok: boolean, l: list<integer>, p: probability"
        )
      )

    assert {:ok, %{"outputs" => outputs} = result} = Mock.execute_program(id, %{q: "a"})

    assert %{"text" => "mock_text_" <> _, "n" => n, "x" => x, "ok" => ok, "l" => [i], "p" => p} =
             outputs

    assert is_integer(n) and is_float(x) and is_boolean(ok) and is_integer(i) and p >= 0 and
             p <= 1

    assert {:ok, ^result} = Mock.execute_program(id, %{q: "a"}, %{temperature: 0})
    assert {:ok, other} = Mock.execute_program(id, %{q: "b"})
    assert other != result
  end

  test "signatures with atoms, and with fields as a map" do
    id = program(%{inputs: [], outputs: [%{name: "a", type: :integer}]})
    assert {:ok, %{"outputs" => %{"a" => a}}} = Mock.execute_program(id, %{})
    assert is_integer(a)
    id = program(%{"inputs" => %{}, "outputs" => %{"b" => %{"type" => "bool"}}})
    assert {:ok, %{"outputs" => %{"b" => b}}} = Mock.execute_program(id, %{})
    assert is_boolean(b)
  end

  test "programs are listed, described, deleted" do
    {:ok, "qa"} = Mock.create_program(%{id: "qa", signature: Signature.new("q -> a")})

    assert {:error, %Error{code: :program_exists}} =
             Mock.create_program(%{id: "qa", signature: %{}})

    keep = %{id: "qa", signature: Signature.new("q -> b"), if_exists: "keep"}
    assert Mock.create_program(keep) == {:ok, "qa"}
    assert {:ok, %{"outputs" => %{"a" => _}}} = Mock.execute_program("qa", %{})
    assert Mock.create_program(%{keep | if_exists: :replace}) == {:ok, "qa"}
    assert {:ok, %{"outputs" => %{"b" => _}}} = Mock.execute_program("qa", %{})

    assert {:error, %Error{code: :invalid_args}} = Mock.create_program(%{id: "x"})
    Mock.execute_program("qa", %{})
    assert Mock.list_programs() == {:ok, ["qa"]}
    assert {:ok, %{"execution_count" => 2}} = Mock.get_program_info("qa")
    assert {:ok, %{"programs_count" => 1, "executions" => 3}} = Mock.get_stats()
    assert Mock.health_check() == :ok
    assert Mock.delete_program("qa") == :ok
    assert {:error, %Error{code: :program_not_found}} = Mock.delete_program("qa")
  end

  test "errors and answers can be set" do
    id = program(Signature.new("q -> a"))
    Mock.set_response(:a, "forty-two")
    assert {:ok, %{"outputs" => %{"a" => "forty-two"}}} = Mock.execute_program(id, %{})
    Mock.inject_error(:execute_program, Error.new(:overloaded, "full"))
    assert {:error, %Error{code: :overloaded}} = Mock.execute_program(id, %{})
    Mock.inject_error(:execute_program, nil)
    assert {:ok, _} = Mock.execute_program(id, %{})
  end
end
