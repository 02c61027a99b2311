defmodule DSPex.RegisteredProgramTest do
  # Runs a module that the operator registers with `--program`.
  use ExUnit.Case, async: true

  alias DSPex.PythonBridge.{Bridge, Error}
  alias DSPex.Tool

  test "a module of the operator streams its stages and calls an Elixir function" do
    temperature =
      Tool.new(:temperature, "The temperature in a city.", [city: :string], fn %{"city" => city} ->
        "It is 21 degrees in #{city}."
      end)

    args = ["--program", "advice=own_program:Advice"]
    bridge = Workers.start_bridge(adapter: "dspy", args: args, tools: [temperature])
    assert %{"registered" => ["advice"]} = Bridge.call!(bridge, :list_programs, %{}, 5_000)

    answers = [%{answer: "Rome"}, %{answer: "No coat."}]
    Bridge.call!(bridge, :configure_lm, %{provider: "scripted", answers: answers}, 5_000)
    run = %{program_id: "advice", inputs: %{question: "Do I need a coat?"}}
    events = bridge |> Bridge.stream(:execute_program, run, 5_000) |> Enum.to_list()

    stages =
      for {:chunk, chunk} <- events, do: {chunk["predictor"], chunk["call"], chunk["field"]}

    assert Enum.uniq(stages) == [{"choose", 1, "answer"}, {"advise", 2, "answer"}]
    assert {:tool_call, %{"name" => "temperature", "args" => %{"city" => "Rome"}}} in events
    assert {:result, %{"outputs" => outputs}} = List.last(events)
    assert outputs == %{"answer" => "No coat.", "weather" => "It is 21 degrees in Rome."}

    assert {:error, %Error{code: :invalid_args, message: message}} =
             Bridge.call(bridge, :execute_program, %{run | inputs: %{q: "?"}}, 5_000)

    assert message =~ "inputs not declared by advice: q; declared: question"

    assert {:error, %Error{code: :not_allowed}} =
             Bridge.call(bridge, :delete_program, %{program_id: "advice"}, 5_000)
  end
end
