defmodule DSPex.PythonBridge.ErrorTest do
  use ExUnit.Case, async: true
  doctest DSPex.PythonBridge.Error
  doctest DSPex.PythonBridge.Text

  alias DSPex.PythonBridge.Error

  test "the table of codes is equal to that of the Python package" do
    table =
      Path.expand("../../fixtures/vectors/errors.json", __DIR__)
      |> File.read!()
      |> SmallJSON.decode!()

    ours =
      for code <- Error.codes(), into: %{} do
        error = Error.new(code, "m")
        policy = Map.take(error, [:category, :severity, :recovery])

        {to_string(code),
         Map.new(policy, fn {key, word} -> {to_string(key), to_string(word)} end)}
      end

    assert ours == table
  end

  test "an unknown code becomes internal and is kept as wire_code" do
    error = Error.from_reply(%{"error" => "new", "code" => "brand_new", "category" => "timeout"})
    assert {error.code, error.wire_code, error.category} == {:internal, "brand_new", :timeout}
  end

  test "values in a reply override the table" do
    reply = %{"error" => "busy", "code" => "lm_error", "recovery" => "backoff_retry"}
    assert Error.from_reply(reply).recovery == :backoff_retry
    assert Error.from_reply(%{reply | "recovery" => "no such word"}).recovery == :abandon
  end

  test "a message is one line of text, and the rest is in the details" do
    for {text, line} <- [
          {"Traceback:\n  File x\nValueError: no\nmore\n", "ValueError: no"},
          {"one\r\n\r\ntwo", "one"},
          {"\n", ""},
          {<<"bad ", 255>>, "bad \uFFFD"}
        ] do
      error = Error.from_reply(%{"error" => text, "code" => "handler_error"})
      assert error.message == line
      if text =~ "\n", do: assert(error.details["text"] == text)
    end

    reply = %{"error" => "a\nb", "details" => %{"path" => "args"}}
    assert Error.from_reply(reply).details == %{"path" => "args", "text" => "a\nb"}
  end

  test "an error can be raised" do
    assert_raise Error, "late", fn -> raise Error.new(:deadline_exceeded, "late") end
  end
end
