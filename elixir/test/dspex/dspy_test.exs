defmodule DSPex.DSPyTest do
  # Runs programs with DSPy and the offline model. One worker for all tests, because importing
  # DSPy takes a second.
  use ExUnit.Case, async: false

  alias DSPex.Adapters.PythonPort
  alias DSPex.PythonBridge.{Bridge, Error}
  alias DSPex.{Signature, Tool}

  setup_all do
    temperature =
      Tool.new(:temperature, "The temperature in a city.", [city: :string], fn %{"city" => city} ->
        "It is 21 degrees in #{city}."
      end)

    setup = &Bridge.call!(&1, :configure_lm, %{provider: "offline"}, 5_000)
    options = [adapter: "dspy", name: Bridge, tools: [temperature], setup: setup]
    start_supervised!({Bridge, Workers.options(options)})
    :ok
  end

  test "the port adapter creates, runs, lists and deletes programs" do
    signature = Signature.new("question, passage -> answer, score: confidence_score")
    assert PythonPort.health_check() == :ok
    assert {:ok, "qa"} = PythonPort.create_program(%{id: "qa", signature: signature})

    inputs = %{question: "Where is the Louvre?", passage: "The Louvre is in Paris."}

    assert {:ok, %{"outputs" => %{"answer" => "Paris", "score" => score}}} =
             PythonPort.execute_program("qa", inputs)

    assert is_float(score)
    assert {:ok, _} = PythonPort.execute_program("qa", inputs, %{temperature: 0})
    assert {:ok, programs} = PythonPort.list_programs()
    assert "qa" in programs
    assert {:ok, %{"execution_count" => 2}} = PythonPort.get_program_info("qa")
    assert {:ok, %{"programs_count" => count}} = PythonPort.get_stats()
    assert count >= 1
    assert PythonPort.delete_program("qa") == :ok
    assert {:error, %Error{code: :program_not_found}} = PythonPort.execute_program("qa", inputs)
  end

  test "choices may contain quotes" do
    choices = [~S(say "no"), ~S("|"), "it's", ~S(a\b), "a -> b, c"]
    keywords = Signature.new(inputs: [q: :string], outputs: [a: {:enum, choices}])
    [%{"type" => type}] = keywords["outputs"]
    assert Signature.new("q -> a: #{type}") == keywords

    for choice <- choices do
      session = [session_id: "choices"]
      Bridge.call!(:configure_lm, %{provider: "scripted", answers: [%{a: choice}]}, session)
      args = %{id: "choose", signature: keywords, if_exists: "replace"}
      Bridge.call!(:create_program, args, session)
      args = %{program_id: "choose", inputs: %{q: "Which?"}}
      assert %{"outputs" => %{"a" => ^choice}} = Bridge.call!(:execute_program, args, session)
    end

    for choice <- ["a\\\"b", "a\\'b", "end\\"] do
      assert_raise ArgumentError, ~r/backslash/, fn ->
        Signature.new(outputs: [a: {:enum, [choice]}])
      end
    end
  end

  test "an agent calls an Elixir function and streams its answer" do
    Bridge.call!(:create_program, %{
      id: "weather",
      program_type: "react",
      signature: Signature.new("question -> answer")
    })

    inputs = %{question: "What is the temperature in Graz?"}

    events =
      Enum.to_list(Bridge.stream(:execute_program, %{program_id: "weather", inputs: inputs}))

    assert {:tool_call, %{"name" => "temperature", "args" => %{"city" => "Graz"}}} =
             List.keyfind(events, :tool_call, 0)

    assert {:tool_result, %{"result" => "It is 21 degrees in Graz."}} =
             List.keyfind(events, :tool_result, 0)

    assert {:result, %{"outputs" => %{"answer" => answer}}} = List.last(events)

    streamed = for {:chunk, %{"field" => "answer", "text" => text}} <- events, into: "", do: text
    assert streamed == answer
    assert answer =~ "21"
  end

  test "two sessions can have tools with the same name" do
    for session <- ["warm", "cold"] do
      tool =
        Tool.new(:temperature, "The temperature in a city.", [city: :string], fn _ ->
          "It is #{session} in Graz."
        end)

      assert {:ok, %{"tools" => ["temperature"]}} =
               Bridge.register_tools([tool], session_id: session)

      Bridge.call!(:configure_lm, %{provider: "offline"}, session_id: session)
      config = %{id: "w", program_type: "react", signature: Signature.new("question -> answer")}
      Bridge.call!(:create_program, config, session_id: session)
    end

    for session <- ["warm", "cold"] do
      args = %{program_id: "w", inputs: %{question: "What is the temperature in Graz?"}}
      events = Enum.to_list(Bridge.stream(:execute_program, args, session_id: session))
      assert {:tool_result, %{"result" => result}} = List.keyfind(events, :tool_result, 0)
      assert result == "It is #{session} in Graz."
    end
  end

  test "a type that the worker does not know is an error with its position" do
    config = %{signature: Signature.new("a: strnig -> b")}

    assert {:error, %Error{code: :invalid_args, details: %{"path" => path}}} =
             Bridge.call(:create_program, config)

    assert path =~ "inputs"
  end

  test "dates, times and structs of the application as inputs" do
    signature = Signature.new("question, passage, day: date, at: datetime, who: any -> answer")
    Bridge.call!(:create_program, %{id: "dated", signature: signature})

    inputs = %{
      question: "Where is the Louvre?",
      passage: "The Louvre is in Paris.",
      day: ~D[2024-01-01],
      at: ~U[2024-01-01 12:00:00Z],
      who: %Structs.Only{name: "Ann", password: "pw"}
    }

    assert {:ok, %{"outputs" => %{"answer" => "Paris"}}} =
             Bridge.call(:execute_program, %{program_id: "dated", inputs: inputs})

    inputs = %{inputs | who: %Structs.Plain{name: "Ann", password: "pw"}}

    assert {:error, %Error{code: :not_encodable, message: message}} =
             Bridge.call(:execute_program, %{program_id: "dated", inputs: inputs})

    assert message =~ "inputs.who: a struct Structs.Plain cannot be sent"
    assert Bridge.call(:delete_program, %{program_id: "dated"}) |> elem(0) == :ok
  end

  test "named sessions inherit the programs, tools and model of the setup" do
    config = %{
      id: "shared",
      program_type: "react",
      signature: Signature.new("question -> answer")
    }

    Bridge.call!(:create_program, config)
    args = %{program_id: "shared", inputs: %{question: "What is the temperature in Graz?"}}

    assert {:ok, %{"outputs" => %{"answer" => answer}}} =
             Bridge.call(:execute_program, args, session_id: "somebody")

    assert answer =~ "21"

    # A program of the session itself can use the shared tools too.
    Bridge.call!(:create_program, %{config | id: "own"}, session_id: "somebody")

    assert {:ok, %{"outputs" => %{"answer" => ^answer}}} =
             Bridge.call(:execute_program, %{args | program_id: "own"}, session_id: "somebody")

    assert {:error, %Error{code: :program_not_found}} =
             Bridge.call(:execute_program, %{args | program_id: "own"}, session_id: "else")
  end
end
