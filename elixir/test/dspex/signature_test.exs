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

  test "objects, constraints, defaults and prefixes" do
    address = {:object, %{"city" => :string, "zip" => {:string, pattern: ~r/^[0-9]{4}$/}}}

    %{"inputs" => [since], "outputs" => [people, age, raw]} =
      Signature.new(
        inputs: [since: {:date, prefix: "Since:", description: "a day", default: "2000-01-01"}],
        outputs: [
          people: {:list, {:object, name: :string, home: {:optional, address}}},
          age: {{:optional, :integer}, minimum: 0, below: 150},
          raw: %{"type" => "array", "items" => %{"const" => 1}}
        ]
      )

    assert since == %{
             "name" => "since",
             "type" => "date",
             "prefix" => "Since:",
             "description" => "a day",
             "default" => "2000-01-01"
           }

    person = people["json_schema"]["items"]
    assert person["required"] == ["name"]

    assert [%{"properties" => properties}, %{"type" => "null"}] =
             person["properties"]["home"]["anyOf"]

    assert properties["zip"] == %{"type" => "string", "pattern" => "^[0-9]{4}$"}
    whole = %{"type" => "integer", "minimum" => 0, "exclusiveMaximum" => 150}
    assert age["json_schema"] == %{"anyOf" => [whole, %{"type" => "null"}]}
    assert raw["json_schema"] == %{"type" => "array", "items" => %{"const" => 1}}
  end

  test "mistakes in types and options" do
    for {field, message} <- [
          {{:string, minimun: 1}, "unknown keys [:minimun]"},
          {{:object, picture: :image}, ":image has no JSON Schema"},
          {{:image, min_length: 3}, ":image has no JSON Schema"},
          {{:object, name: {:string, defualt: 1}}, "unknown keys [:defualt]"},
          {{:list, {:tuple}}, "{:tuple} is not a field type"},
          {nil, "nil is not a field type"}
        ] do
      assert_raise ArgumentError, ~r/#{Regex.escape(message)}/, fn ->
        Signature.new(outputs: [a: field])
      end
    end
  end
end
