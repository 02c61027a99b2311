defmodule DSPex.SignatureTest do
  use ExUnit.Case, async: true
  doctest DSPex.Signature

  alias DSPex.Signature

  defp types(fields), do: Enum.map(fields, &{&1["name"], &1["type"]})

  test "commas and arrows inside types do not split" do
    signature =
      Signature.new(
        ~s|a: dict<string, list<integer>>, b: Literal["x, y", "-> z"] -> c: union<string\|integer>, d|
      )

    assert types(signature["inputs"]) == [
             {"a", "dict<string, list<integer>>"},
             {"b", ~s|Literal["x, y", "-> z"]|}
           ]

    assert types(signature["outputs"]) == [{"c", "union<string|integer>"}, {"d", "string"}]
  end

  test "inputs are optional, outputs are not" do
    assert Signature.new("-> answer")["inputs"] == []
    assert_raise ArgumentError, ~r/needs an output/, fn -> Signature.new("question ->") end
  end

  test "errors name the column" do
    for {text, message} <- [
          {"question", "a signature needs one ->, not 0"},
          {"a -> b -> c", "a signature needs one ->, not 2"},
          {"a, , b -> c", "no name at column 4"},
          {"a -> b: list<string", "the < at column 13 of "},
          {"a -> b: string>", "unmatched > at column 15"},
          {"a -> b: list<string]", "unmatched ] at column 20"}
        ] do
      assert_raise ArgumentError, ~r/#{Regex.escape(message)}/, fn -> Signature.new(text) end
    end
  end

  test "keyword lists: types of every shape" do
    signature =
      Signature.new(
        [
          inputs: [a: :string, b: {:optional, :integer}],
          outputs: [c: {:union, [:string, {:list, :float}]}, d: "List[int]"]
        ],
        name: "My.Signature"
      )

    assert types(signature["inputs"]) == [{"a", "string"}, {"b", "optional<integer>"}]
    assert types(signature["outputs"]) == [{"c", "union<string|list<float>>"}, {"d", "List[int]"}]
    assert signature["name"] == "My.Signature"

    assert_raise ArgumentError, ~r/not a field type/, fn ->
      Signature.new(outputs: [a: {:tuple}])
    end

    assert_raise ArgumentError, fn -> Signature.new("a -> b", descripton: "typo") end
  end
end
