defmodule DSPex.PythonBridge.CircuitBreakerTest do
  use ExUnit.Case, async: true
  doctest DSPex.PythonBridge.Backoff
  doctest DSPex.PythonBridge.CircuitBreaker
  doctest DSPex.PythonBridge.PoolErrorHandler
  doctest DSPex.PythonBridge.RetryBudget
end
