defmodule DSPex.PythonBridge.PoolErrorHandlerTest do
  use ExUnit.Case, async: true
  doctest DSPex.PythonBridge.Backoff
  doctest DSPex.PythonBridge.PoolErrorHandler
  doctest DSPex.PythonBridge.RetryBudget

  alias DSPex.PythonBridge.{Backoff, Error, PoolErrorHandler, RetryBudget}

  @vectors Path.expand("../../fixtures/vectors/policy.json", __DIR__)
           |> File.read!()
           |> SmallJSON.decode!()

  for {code, cases} <- Enum.group_by(@vectors["decisions"], & &1["error"]["code"]) do
    @cases cases
    test "decisions after #{code} are those of the vectors" do
      for %{"error" => error, "circumstances" => circumstances, "expected" => expected} = entry <-
            @cases do
        decision = error |> error() |> PoolErrorHandler.decide(circumstances(circumstances))
        assert {decision |> Map.from_struct() |> plain(), entry} == {expected, entry}
      end
    end
  end

  test "the vectors have every code" do
    codes = for %{"error" => error} <- @vectors["decisions"], uniq: true, do: error["code"]
    assert Enum.sort(codes) == Error.codes() |> Enum.map(&to_string/1) |> Enum.sort()
  end

  test "delays are those of the vectors" do
    for %{"kind" => kind, "after" => last, "random" => random, "delay" => delay} <-
          @vectors["delays"] do
      arguments = if kind == "immediate", do: [last], else: [last, fn -> random end]
      assert {kind, last, apply(Backoff, String.to_atom(kind), arguments)} == {kind, last, delay}
    end
  end

  for {name, steps} <- @vectors["budget"] do
    @steps steps
    test "retry budget: #{name}" do
      time = :counters.new(1, [])
      budget = RetryBudget.new(clock: fn -> :counters.get(time, 1) end)

      for %{"at" => at, "calls" => calls, "asked" => asked, "allowed" => allowed} <- @steps do
        :counters.put(time, 1, at)
        for _ <- 1..calls//1, do: RetryBudget.record_call(budget)

        assert {at, Enum.count(1..asked//1, fn _ -> RetryBudget.take(budget) end)} ==
                 {at, allowed}
      end
    end
  end

  test "severities may be named high and medium" do
    for {word, severity} <- @vectors["severities"] do
      assert PoolErrorHandler.severity(word) == String.to_atom(severity)
      assert PoolErrorHandler.severity(String.to_atom(word)) == String.to_atom(severity)
    end
  end

  test "unknown words and circumstances are refused" do
    error = Error.new(:internal, "m")

    for circumstances <- [[severity: :low], [severity: "x"], [recovery: :retry], [attempt: 1]] do
      assert_raise ArgumentError, fn -> PoolErrorHandler.decide(error, circumstances) end
    end
  end

  test "processes that take at once do not get more than the budget has" do
    budget = RetryBudget.new(clock: fn -> 0 end)
    for _ <- 1..100, do: RetryBudget.record_call(budget)

    taken =
      1..8
      |> Enum.map(fn _ ->
        Task.async(fn -> Enum.count(1..100, fn _ -> RetryBudget.take(budget) end) end)
      end)
      |> Task.await_many()

    assert Enum.sum(taken) <= 40
  end

  defp error(entry) do
    Error.from_reply(Map.put(entry, "error", "an error"))
  end

  defp circumstances(entry) do
    for {key, value} <- entry do
      case key do
        "random" -> {:random, fn -> value end}
        "recovery" -> {:recovery, String.to_existing_atom(value)}
        key -> {String.to_existing_atom(key), value}
      end
    end
  end

  defp plain(decision) do
    Map.new(decision, fn {key, value} ->
      word? = is_atom(value) and value not in [nil, true, false]
      {to_string(key), if(word?, do: to_string(value), else: value)}
    end)
  end
end
