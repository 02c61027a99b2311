defmodule DSPex.PythonBridge.CircuitBreakerTest do
  use ExUnit.Case, async: true
  doctest DSPex.PythonBridge.CircuitBreaker

  alias DSPex.PythonBridge.CircuitBreaker

  @vectors Path.expand("../../fixtures/vectors/policy.json", __DIR__)
           |> File.read!()
           |> SmallJSON.decode!()

  setup do
    time = :counters.new(1, [])
    %{time: time, breaker: CircuitBreaker.new(clock: fn -> :counters.get(time, 1) end)}
  end

  for {name, steps} <- @vectors["breaker"] do
    @steps steps
    test "vector: #{name}", %{time: time, breaker: breaker} do
      Enum.reduce(@steps, %{}, fn step, permits ->
        :counters.put(time, 1, step["at"])
        permits = take_step(breaker, step, permits)
        if step["state"], do: assert({step, state(breaker)} == {step, step["state"]})
        assert CircuitBreaker.state(breaker, "gemini") == :closed
        permits
      end)
    end
  end

  test "the permits of processes that have ended are free", %{time: time, breaker: breaker} do
    open(breaker)
    :counters.put(time, 1, 60_000)
    admit = fn -> CircuitBreaker.admit(breaker, "openai") end
    for _ <- 1..3, do: assert({:ok, {60_000, _}} = admit |> Task.async() |> Task.await())
    for _ <- 1..3, do: assert({:ok, {60_000, _}} = admit.())
    assert {:error, %{code: :circuit_open}} = admit.()
  end

  test "processes that call at once share three probes", %{time: time, breaker: breaker} do
    open(breaker)
    :counters.put(time, 1, 60_000)
    test = self()

    callers =
      for _ <- 1..50 do
        spawn_link(fn ->
          send(test, CircuitBreaker.admit(breaker, "openai"))
          receive do: (:stop -> :ok)
        end)
      end

    results = for _ <- callers, do: receive(do: (result -> result))
    assert Enum.count(results, &match?({:ok, _}, &1)) == 3
    Enum.each(callers, &send(&1, :stop))
  end

  test "failures at once are all counted", %{breaker: breaker} do
    1..4
    |> Enum.map(fn _ ->
      Task.async(fn -> CircuitBreaker.settle(breaker, "openai", nil, false) end)
    end)
    |> Task.await_many()

    assert CircuitBreaker.state(breaker, "openai") == :closed
    CircuitBreaker.settle(breaker, "openai", nil, false)
    assert CircuitBreaker.state(breaker, "openai") == :open
  end

  test "a circuit that is closed again has no row", %{breaker: breaker} do
    CircuitBreaker.settle(breaker, "openai", nil, false)
    assert :ets.info(breaker.table, :size) == 1
    CircuitBreaker.settle(breaker, "openai", nil, true)
    assert :ets.info(breaker.table, :size) == 0
  end

  test "a breaker whose owner has ended admits every call", %{breaker: breaker} do
    open(breaker)
    :ets.delete(breaker.table)
    assert CircuitBreaker.admit(breaker, "openai") == {:ok, nil}

    for succeeded <- [true, false, nil], permit <- [nil, {0, self()}] do
      assert CircuitBreaker.settle(breaker, "openai", permit, succeeded) == :ok
    end
  end

  test "the number of rows is limited", %{breaker: breaker} do
    for key <- 1..2000, do: CircuitBreaker.settle(breaker, "#{key}", nil, false)
    assert :ets.info(breaker.table, :size) == 1000
    assert :ets.member(breaker.table, "2000")
  end

  test "names that mean something in ETS patterns are keys like others", %{breaker: breaker} do
    open(breaker, "_")
    open(breaker, "$1")
    assert CircuitBreaker.state(breaker, "_") == :open
    assert CircuitBreaker.state(breaker, "other") == :closed
  end

  defp take_step(breaker, %{"end" => call, "succeeded" => succeeded}, permits) do
    CircuitBreaker.settle(breaker, "openai", permits[call], succeeded)
    permits
  end

  defp take_step(breaker, %{"admit" => nil, "retry_after" => wait}, permits) do
    assert {:error, error} = CircuitBreaker.admit(breaker, "openai")
    assert round(error.details["retry_after"] * 1000) == wait
    permits
  end

  defp take_step(breaker, %{"admit" => call}, permits) do
    assert {:ok, permit} = CircuitBreaker.admit(breaker, "openai")
    Map.put(permits, call, permit)
  end

  defp state(breaker), do: breaker |> CircuitBreaker.state("openai") |> to_string()

  defp open(breaker, key \\ "openai") do
    for _ <- 1..5, do: CircuitBreaker.settle(breaker, key, nil, false)
  end
end
