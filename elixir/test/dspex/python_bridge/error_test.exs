defmodule DSPex.PythonBridge.ErrorTest do
  use ExUnit.Case, async: true
  doctest DSPex.PythonBridge.Error

  alias DSPex.PythonBridge.Error

  test "an unknown code is internal, and kept" do
    error = Error.from_reply(%{"error" => "new", "code" => "brand_new", "category" => "timeout"})
    assert {error.code, error.wire_code, error.category} == {:internal, "brand_new", :timeout}
  end

  test "what a reply says wins over the table" do
    reply = %{"error" => "busy", "code" => "lm_error", "recovery" => "backoff_retry"}
    assert Error.from_reply(reply).recovery == :backoff_retry
    assert Error.from_reply(%{reply | "recovery" => "no such word"}).recovery == :abandon
  end

  test "it can be raised" do
    assert_raise Error, "late", fn -> raise Error.new(:deadline_exceeded, "late") end
  end
end
