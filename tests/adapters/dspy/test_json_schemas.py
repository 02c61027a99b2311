"""Fields with JSON Schemas and constraints: what models write for them, what hosts send, and the errors."""

from __future__ import annotations

import json

import pytest

PERSON = {
    "type": "object",
    "title": "Person",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "age": {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}], "default": None},
        "born": {"type": "string", "format": "date"},
        "rate": {"type": "string", "format": "decimal"},
        "friends": {"type": "array", "items": {"$ref": "#"}, "default": []},
    },
    "required": ["name"],
    "additionalProperties": False,
}
CITED = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {
            "claim": {"type": "string"},
            "citations": {"type": "array", "items": {"$ref": "#/$defs/Citation"}, "minItems": 1},
        },
        "required": ["claim", "citations"],
    },
    "$defs": {
        "Citation": {
            "type": "object",
            "properties": {"document": {"type": "integer"}, "quote": {"type": "string"}},
            "required": ["document", "quote"],
        }
    },
}
TREE = {"$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}, "$ref": "#/$defs/tree"}
PAIR = {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False, "minItems": 2}
SHAPE = {
    "oneOf": [
        {"type": "object", "properties": {"kind": {"const": "dot"}}, "required": ["kind"]},
        {
            "type": "object",
            "properties": {"kind": {"const": "circle"}, "radius": {"type": "number", "exclusiveMinimum": 0}},
            "required": ["kind", "radius"],
        },
    ]
}


@pytest.fixture
def read(ask, call):
    """Return a function read(schema, text): the reply of a run whose model writes `text` for a field of the schema."""

    def read(schema, text, **field):
        declared = {"name": "out", **({} if schema is None else {"json_schema": schema}), **field}
        signature = {"inputs": [{"name": "q"}], "outputs": [declared]}
        ask("create_program", id="p", signature=signature, if_exists="replace")
        ask("configure_lm", provider="scripted", answers=[f"[[ ## out ## ]]\n{text}\n\n[[ ## completed ## ]]"])
        return call("execute_program", program_id="p", inputs={"q": "?"})

    return read


READ = [
    # schema, what the model writes, the output
    ({"type": "string", "maxLength": 5}, '"ab"', '"ab"'),
    ({"type": "string", "pattern": "^[a-z]+$"}, "abc", "abc"),
    ({"type": "string", "pattern": "^[a-z]+$"}, '"abc"', "abc"),
    ({"type": "string", "format": "duration"}, "P1DT2H", "P1DT2H"),
    ({"type": "integer", "minimum": 1, "maximum": 5}, "5.0", 5),
    ({"type": "number", "multipleOf": 0.1}, "0.3", 0.3),
    ({"type": "boolean"}, "yes", True),
    ({"enum": ["a", 1, None, 0.5]}, "0.50", 0.5),
    ({"enum": ["in progress", "done"]}, "Done", "done"),
    ({"const": 3}, "3", 3),
    ({"type": ["string", "null"]}, "null", None),
    ({"type": ["string", "null"], "maxLength": 4}, "null", None),
    ({"type": "string", "format": "date"}, "2024-02-29", "2024-02-29"),
    ({"type": "string", "format": "decimal", "minimum": 0}, "0.10", "0.10"),
    ({"type": "string", "format": "email"}, "a@b.example", "a@b.example"),
    ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "- 1\n- 2", [1, 2]),
    ({"type": "object", "additionalProperties": {"type": "number"}}, "{'a': 1, 'b': 0.5,}", {"a": 1.0, "b": 0.5}),
    ({"type": "object", "propertyNames": {"enum": ["a", "b"]}}, '{"a": 0.10}', {"a": 0.1}),
    ({"type": "object", "propertyNames": {"pattern": "^a"}}, '{"ab": 1}', {"ab": 1}),
    ({"type": "integer", "format": "int32"}, "7", 7),
    (PERSON, 'Here:\n```json\n{"name": "A"}\n```', {"name": "A", "age": None, "friends": []}),
    (
        PERSON,
        '{"name": "A", "born": "20240229", "friends": [{"name": "B", "age": 5.0}]}',
        {
            "name": "A",
            "born": "2024-02-29",
            "friends": [{"name": "B", "age": 5, "friends": []}],
            "age": None,
        },
    ),
    (
        CITED,
        '[{"claim": "x", "citations": [{"document": 1, "quote": "q"}], "more": [1.50]}]',
        [{"claim": "x", "citations": [{"document": 1, "quote": "q"}], "more": [1.5]}],
    ),
    (TREE, "[[], [[]]]", [[], [[]]]),
    (PAIR, '[1, "a"]', [1, "a"]),
    (SHAPE, '{"kind": "circle", "radius": 2}', {"kind": "circle", "radius": 2.0}),
    ({"allOf": [{"properties": {"a": {"type": "integer"}}}, {"properties": {"b": {}}}]}, '{"a": 1}', {"a": 1}),
    (True, '{"a": [1, 0.5, null]}', {"a": [1, 0.5, None]}),
]


@pytest.mark.parametrize(("schema", "text", "value"), READ)
def test_outputs_are_plain_data_of_the_schema(read, schema, text, value):
    assert read(schema, text)["result"]["outputs"] == {"out": value}


BROKEN = [
    # schema, what the model writes, the path, the value, the constraint
    ({"type": "string", "maxLength": 2}, "abc", "out", "abc", {"maxLength": 2}),
    ({"type": "string", "pattern": "^a"}, "ba", "out", "ba", {"pattern": "^a"}),
    ({"type": "string", "format": "email"}, "a@", "out", "a@", {"format": "email"}),
    ({"type": "string", "format": "duration"}, "PT", "out", "PT", {"format": "duration"}),
    ({"type": "string", "format": "ipv4"}, "::1", "out", "::1", {"format": "ipv4"}),
    ({"type": "string", "format": "uri"}, "a b", "out", "a b", {"format": "uri"}),
    ({"type": "integer", "exclusiveMaximum": 5}, "5", "out", 5, {"exclusiveMaximum": 5}),
    ({"type": "number", "multipleOf": 0.1}, "0.35", "out", 0.35, {"multipleOf": 0.1}),
    ({"type": "string", "format": "decimal", "maximum": 0.1}, "0.11", "out", "0.11", {"maximum": 0.1}),
    ({"type": ["integer", "null"], "minimum": 1}, "0", "out", 0, {"minimum": 1}),
    ({"type": "array", "uniqueItems": True}, "[1, 1.0]", "out", [1, 1.0], {"uniqueItems": True}),
    ({"type": "array", "maxItems": 1}, "[1, 2]", "out", [1, 2], {"maxItems": 1}),
    ({"type": "object", "minProperties": 1}, "{}", "out", {}, {"minProperties": 1}),
    ({"type": "object", "propertyNames": {"pattern": "^a"}}, '{"b": 1}', "out.b", "b", {"pattern": "^a"}),
    (PERSON, '{"name": ""}', "out.name", "", {"minLength": 1}),
    (PERSON, '{"name": "A", "friends": [{"name": "B", "age": -1}]}', "out.friends[0].age", -1, {"minimum": 0}),
    (PERSON, "{}", "out", {}, {"required": "name"}),
    (PERSON, '{"name": "A", "x": 1}', "out", "x", {"additionalProperties": False}),
    (SHAPE, '{"kind": "circle", "radius": 0}', "out.radius", 0, {"exclusiveMinimum": 0}),
    (PAIR, '[1, "a", 2]', "out", [1, "a", 2], {"items": False}),
]


@pytest.mark.parametrize(("schema", "text", "path", "value", "constraint"), BROKEN)
def test_errors_carry_the_value_and_the_constraint(read, schema, text, path, value, constraint):
    reply = read(schema, text)
    assert reply["code"] == "lm_error", reply
    details = reply["details"]
    assert (details["lm_code"], details["field"]) == ("adapter_parse_error", "out")
    assert (details["path"], details["value"], details["constraint"]) == (path, value, constraint)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (PERSON, "[1]"),
        (PERSON, '{"name": 5.5}'),
        (PERSON, '{"name": "A", "name": "B"}'),
        (PERSON, "A"),
        (PAIR, '["a", 1]'),
        (TREE, "[" * 100_000),
        ({"enum": ["a", "b"]}, "c"),
        ({"enum": [1]}, "true"),
        ({"type": "integer"}, "about 5"),
        ({"type": "number"}, "NaN"),
    ],
)
def test_other_types_are_errors(read, schema, text):
    reply = read(schema, text)
    assert (reply["code"], reply["details"]["field"]) == ("lm_error", "out")


@pytest.mark.parametrize(
    ("type", "constraints", "good", "bad", "constraint"),
    [
        ("string", {"max_length": 2}, "ab", "abc", {"maxLength": 2}),
        ("string", {"enum": ["a", "b"]}, "a", None, None),
        ("integer", {"ge": 1, "le": 5}, "5", "6", {"maximum": 5}),
        ("optional<integer>", {"gt": 1}, "null", "1", {"exclusiveMinimum": 1}),
        ("decimal", {"minimum": 0.1}, "0.1", "0.09", {"minimum": 0.1}),
        ("list<string>", {"max_length": 1}, '["a"]', '["a", "b"]', {"maxItems": 1}),
        ("dict<string, integer>", {"min_length": 1}, '{"a": 1}', "{}", {"minProperties": 1}),
        ("string", [], "ab", None, None),
    ],
)
def test_types_can_have_constraints(read, type, constraints, good, bad, constraint):
    """By the names of JSON Schema or of pydantic."""
    assert read(None, good, type=type, constraints=constraints)["success"]
    if bad is not None:
        reply = read(None, bad, type=type, constraints=constraints)
        assert (reply["code"], reply["details"]["constraint"]) == ("lm_error", constraint)


def test_inputs_are_checked_before_any_model_is_called(ask, call):
    """The error has the path of the value, the value and the constraint."""
    ask("configure_lm", provider="scripted", answers=[])
    signature = {
        "inputs": [{"name": "who", "json_schema": PERSON}, {"name": "n", "type": "integer", "constraints": {"le": 5}}],
        "outputs": [{"name": "a"}],
    }
    ask("create_program", id="p", signature=signature)
    for who, path, details in [
        (
            {"name": "A", "friends": [{"name": ""}]},
            "who.friends[0].name",
            {"value": "", "constraint": {"minLength": 1}},
        ),
        ({"name": "A", "age": "old"}, "who.age", {}),
        ({"name": "A", "x": 1}, "who", {"value": "x"}),
        ({"rate": 0.1}, "who", {"value": {"rate": 0.1}, "constraint": {"required": "name"}}),
        ({"name": "A", "rate": 0.12345678901234567}, "who.rate", {}),
        (None, "who", {}),
        ("A", "who", {}),
    ]:
        reply = call("execute_program", program_id="p", inputs={"who": who, "n": 5})
        assert reply["code"] == "invalid_args", reply
        assert reply["details"]["path"] == f"args.inputs.{path}"
        assert details.items() <= reply["details"].items()
    reply = call("execute_program", program_id="p", inputs={"who": {"name": "A"}, "n": 6})
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", "args.inputs.n")
    reply = call("execute_program", program_id="p", inputs={"who": {"name": "A"}})
    assert reply["details"]["missing"] == ["n"]


def test_inputs_reach_the_prompt_as_json(ask):
    ask("configure_lm", provider="scripted", answers={'{"name": "A", "age": 3, "friends": []}': {"a": "found"}})
    signature = {"inputs": [{"name": "who", "json_schema": PERSON}], "outputs": [{"name": "a"}]}
    ask("create_program", id="p", signature=signature)
    result = ask("execute_program", program_id="p", inputs={"who": {"name": "A", "age": 3.0}})
    assert result["outputs"] == {"a": "found"}


def test_several_outputs_of_one_type(ask):
    values = {"first": {"name": "A"}, "second": {"name": "B"}}
    signature = {"inputs": {}, "outputs": {name: {"json_schema": PERSON} for name in values}}
    ask("create_program", id="p", signature=signature)
    ask("configure_lm", provider="scripted", answers=[values])
    outputs = ask("execute_program", program_id="p", inputs={})["outputs"]
    assert {name: outputs[name]["name"] for name in values} == {"first": "A", "second": "B"}


def test_defaults(ask, call):
    """An input that is missing has its default, and so has an output that the model left out."""
    signature = {
        "inputs": [{"name": "q", "default": "x"}, {"name": "n", "type": "integer", "default": 3}],
        "outputs": [
            {"name": "a"},
            {"name": "tags", "type": "list<string>", "default": []},
            {"name": "who", "json_schema": {"anyOf": [PERSON, {"type": "null"}]}},
            {"name": "k", "json_schema": {"type": "integer", "default": 7}},
        ],
    }
    ask("create_program", id="p", signature=signature)
    ask("configure_lm", provider="scripted", answers={"[[ ## n ## ]]\n3": {"a": "one"}, "[[ ## n ## ]]\n4": {"k": 1}})
    outputs = ask("execute_program", program_id="p", inputs={})["outputs"]
    assert outputs == {"a": "one", "tags": [], "who": None, "k": 7}
    reply = call("execute_program", program_id="p", inputs={"n": 4})
    assert (reply["code"], reply["details"]["found"]) == ("lm_error", ["k"])


def test_the_offline_model_answers_in_the_schema(ask):
    ask("configure_lm", provider="offline")
    signature = {
        "inputs": [{"name": "passage"}, {"name": "question"}],
        "outputs": [{"name": "p", "json_schema": PERSON}],
    }
    ask("create_program", id="p", signature=signature)
    inputs = {"passage": "Ada Lovelace wrote the first program.", "question": "Who wrote the first program?"}
    assert ask("execute_program", program_id="p", inputs=inputs)["outputs"]["p"]["name"]


def test_equal_schemas_in_another_order_are_one_definition(ask):
    """Hosts may send the keys of a map in any order."""
    one = {"inputs": {}, "outputs": {"a": {"json_schema": PERSON}}}
    other = json.loads(json.dumps(one, sort_keys=True))
    ask("create_program", id="p", signature=one)
    assert ask("create_program", id="p", signature=other, if_exists="keep")["same_definition"]
    other["outputs"]["a"]["json_schema"]["properties"]["name"]["minLength"] = 2
    assert not ask("create_program", id="p", signature=other, if_exists="keep")["same_definition"]
