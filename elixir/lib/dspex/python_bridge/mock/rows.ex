defmodule DSPex.PythonBridge.Mock.Rows do
  @moduledoc """
  Runs of a program on many rows: batches, evaluations and optimizations, with the checks and events of
  real ones. The outputs are made up, or those that a test has set, row after row.

  Metrics of the host are called; any other one says whether the outputs are those that the examples
  expect.
  """

  alias DSPex.PythonBridge.{Error, Exits}
  alias DSPex.PythonBridge.Mock.{Args, Documents, Examples, Models, Programs, Runs, Script, State}

  @metrics ~w(exact_match f1 contains passage_match semantic_f1 complete_and_grounded json_equal)
  @optimizers ~w(labeled_few_shot bootstrap_few_shot bootstrap_random_search knn_few_shot copro
                 mipro_v2 simba infer_rules gepa ensemble better_together)
  @split ~w(mipro_v2 infer_rules)
  # How many demos an optimization adds.
  @most_demos 4

  @doc """
  Returns the run of a command, as `Runs.prepared!/3` does. `:work` is a function of the script and the
  host that returns the result and a change of the state.
  """
  @spec prepared!(String.t(), map(), State.call(), State.t()) :: {map(), State.t()}
  def prepared!(command, args, call, state) do
    if command == "optimize", do: check_optimizer!(args["optimizer"])
    # The options of an optimization are those of the optimizer.
    of_runs = Map.drop(args, if(command == "optimize", do: ["options"], else: ["inputs"]))
    {run, state} = Runs.prepared!(of_runs, call, state)
    if command == "optimize", do: check_own!(run.program)
    Models.configured!(run.model)
    work = work!(command, args, run, call, state)
    {Map.put(run, :work, work), state}
  end

  defp check_optimizer!(name) when name in @optimizers, do: :ok

  defp check_optimizer!(name) do
    line = "args.optimizer: unknown optimizer '#{name}'; known: #{Enum.join(@optimizers, ", ")}"
    raise Args.invalid("args.optimizer", line, %{"expected" => Enum.join(@optimizers, " | ")})
  end

  defp check_own!(%{kind: "module", id: id}) do
    line =
      "args.program_id: #{id} is a program of the operator, for which a session cannot store what an " <>
        "optimizer finds"

    raise Args.invalid("args.program_id", line)
  end

  defp check_own!(_program), do: :ok

  defp work!("execute_batch", args, run, _call, _state) do
    fn script, host ->
      {results, _} =
        each("batch", args["inputs"], host, fn row, index ->
          row(run, row, "args.inputs[#{index}]", script) |> Map.delete("program_id")
        end)

      failed = Enum.count(results, &is_map_key(&1, "error"))

      result = %{
        "program_id" => run.program.id,
        "total" => length(results),
        "succeeded" => length(results) - failed,
        "failed" => failed,
        "execution_time" => 0.0
      }

      {with_results(result, results, args), & &1}
    end
  end

  defp work!("evaluate", args, run, _call, _state) do
    examples = examples!(args["devset"], run.program, "args.devset")
    metric = metric!(args["metric"], run)

    fn script, host ->
      {results, score} = scored("evaluate", run, examples, metric, script, host)

      result = %{
        "program_id" => run.program.id,
        "score" => score,
        "total" => length(results),
        "failed" => Enum.count(results, &is_map_key(&1, "error")),
        "execution_time" => 0.0
      }

      {with_results(result, results, args), & &1}
    end
  end

  defp work!("optimize", args, run, call, state) do
    id = id!(args, run.program, call, state)

    if length(args["trainset"]) == 1 and args["valset"] in [nil, []] and
         args["optimizer"] in @split do
      line =
        "args.trainset: one example is too few for #{args["optimizer"]} without a valset, which it takes " <>
          "from it"

      raise Args.invalid("args.trainset", line)
    end

    trainset = examples!(args["trainset"], run.program, "args.trainset")
    valset = Examples.read!(args["valset"] || [], run.program, "args.valset", alternatives: true)

    metric = metric!(args["metric"], run)
    rows = if valset == [], do: trainset, else: valset

    fn script, host ->
      quiet = %{
        host
        | emit: fn event, data -> if event == "progress", do: host.emit.(event, data) end
      }

      {_, before} = scored("baseline", run, rows, metric, script, quiet)
      {_, score} = scored("result", run, rows, metric, script, quiet)
      chosen = Enum.take(trainset, @most_demos)
      learned = Map.merge(run.program.learned, Documents.learned(run.program, chosen))
      program = %{run.program | id: id, ref: make_ref(), learned: learned, runs: 0, last_run: nil}

      result = %{
        "program_id" => id,
        "score_before" => before,
        "score" => score,
        "changes" => [%{"predictor" => Documents.main(program), "demos" => chosen}],
        "document" => Documents.document!(program)
      }

      {result, &State.put_program(&1, call, program)}
    end
  end

  defp examples!(rows, program, path) do
    with [] <- Examples.read!(rows, program, path, alternatives: true),
         do: raise(Args.invalid(path, "#{path}: at least one example is needed"))
  end

  defp id!(args, program, call, state) do
    id = args["save_as"] || if(args["replace"] == true, do: program.id, else: Programs.uuid())
    Programs.check_id!(id, state)

    if args["replace"] != true and State.own_program(State.session(state, call), id) do
      message = "Program with ID '#{id}' already exists"
      raise Error.new(:program_exists, message, %{"program_id" => id})
    end

    State.check_quota!(state, call, id)
    id
  end

  defp metric!(%{"host" => name} = metric, run) when is_binary(name) do
    main = Documents.main(run.program)

    fn example, outputs, host ->
      asked = %{
        "name" => name,
        "inputs" => example["inputs"],
        "expected" => example["outputs"],
        "outputs" => outputs,
        "session_id" => run.session_id
      }

      call = %{"predictor" => main, "inputs" => example["inputs"], "outputs" => outputs}
      asked = if metric["trace"] == true, do: Map.put(asked, "trace", [call]), else: asked

      case host.ask.("call_metric", asked) do
        {:ok, answer} -> read_score!(answer, name)
        {:error, line} -> raise failed_metric(name, "failed: #{line}")
      end
    end
  end

  defp metric!(given, _run) do
    name = if is_map(given), do: given["name"], else: given

    name in @metrics ||
      raise Args.invalid(
              "args.metric",
              if(name,
                do: "args.metric: unknown metric '#{name}'; known: #{Enum.join(@metrics, ", ")}",
                else:
                  "args.metric: name one of #{Enum.join(@metrics, ", ")}, or a metric of the host"
              )
            )

    fn example, outputs, _host ->
      right? = Enum.all?(example["outputs"], fn {name, value} -> right?(value, outputs[name]) end)
      {if(right?, do: 1.0, else: 0.0), nil}
    end
  end

  # An expected output may be a list of right ones.
  defp right?(expected, actual) when is_list(expected),
    do: plain(expected) == plain(actual) or Enum.any?(expected, &right?(&1, actual))

  defp right?(expected, actual), do: plain(expected) == plain(actual)
  defp plain(text) when is_binary(text), do: text |> String.trim() |> String.downcase()
  defp plain(number) when is_integer(number), do: number / 1
  defp plain(other), do: other

  defp read_score!(%{"score" => score} = answer, name),
    do: {number!(score, name), answer["feedback"]}

  defp read_score!(score, name), do: {number!(score, name), nil}

  defp number!(true, _name), do: 1.0
  defp number!(false, _name), do: 0.0
  defp number!(score, _name) when is_number(score) and score >= 0 and score <= 1, do: score / 1

  defp number!(other, name) do
    expected = "a number from 0 to 1, true, false, or {\"score\": number, \"feedback\": text}"
    raise failed_metric(name, "returned #{inspect(other)}; expected #{expected}")
  end

  defp failed_metric(name, problem) do
    Error.new(:handler_error, "the metric #{name} #{problem}", %{"metric" => name})
  end

  # Returns the results and the mean of their scores.
  defp scored(phase, run, examples, metric, script, host) do
    each(phase, examples, host, fn example, _index ->
      case row(run, example["inputs"], "args.inputs", script) do
        %{"error" => error} ->
          %{"score" => 0.0, "error" => error}

        %{"outputs" => outputs} ->
          {score, feedback} = metric.(example, outputs, host)
          result = %{"outputs" => outputs, "score" => score}
          if feedback in [nil, ""], do: result, else: Map.put(result, "feedback", feedback)
      end
    end)
  end

  # Runs the program on one row. Its own events are not sent.
  defp row(run, inputs, path, script) do
    inputs = if inputs == [], do: %{}, else: inputs

    is_map(inputs) ||
      raise Args.invalid(path, "#{path}: expected a map of inputs", %{"expected" => "map"})

    Runs.run!(%{run | inputs: inputs}, "", script, Runs.no_host(), path)
  rescue
    error in Error -> %{"error" => error_of(error)}
    fault -> %{"error" => error_of(Error.new(:handler_error, Exits.line(:error, fault, [])))}
  end

  defp error_of(error) do
    %{
      "code" => to_string(error.code),
      "message" => error.message,
      "category" => to_string(error.category),
      "severity" => to_string(error.severity),
      "recovery" => to_string(error.recovery),
      "details" => error.details
    }
  end

  defp each(phase, rows, host, work) do
    total = length(rows)

    {results, {_, sum}} =
      rows
      |> Enum.with_index()
      |> Enum.map_reduce({0, 0.0}, fn {row, index}, {done, sum} ->
        result = work.(row, index)
        {done, sum} = {done + 1, sum + Map.get(result, "score", 0.0)}
        host.emit.("row", Map.put(result, "index", index))
        progress = %{"phase" => phase, "done" => done, "total" => total}
        scored = if is_map_key(result, "score"), do: %{"score" => sum / done}, else: %{}
        host.emit.("progress", Map.merge(progress, scored))
        {result, {done, sum}}
      end)

    {results, if(total == 0, do: 0.0, else: sum / total)}
  end

  defp with_results(result, _results, %{"results" => false}), do: result
  defp with_results(result, results, _args), do: Map.put(result, "results", results)

  @doc "Runs a prepared command. Returns its result and a change of the state."
  @spec run!(map(), String.t(), Script.t(), Runs.host()) :: {map(), (State.t() -> State.t())}
  def run!(run, command, script, host) do
    Process.sleep(Script.delay(script, command))
    Script.raise_error!(script, command)
    run.work.(script, host)
  end
end
