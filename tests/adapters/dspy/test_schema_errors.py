"""JSON Schemas and constraints that create_program refuses: each with the path of what is wrong."""

from __future__ import annotations

import time

import pytest

DEEP = {"type": "string"}
for _ in range(40):
    DEEP = {"type": "array", "items": DEEP}
WIDE = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1001)}}
LONG = {"type": "string", "description": "x" * 70_000}
OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}}


def patterns(count):
    return {"type": "object", "properties": {f"p{i}": {"type": "string", "pattern": f"^{i}"} for i in range(count)}}


REFUSED = [
    # schema, the path below json_schema, a part of the reason
    (False, "", "allows no value"),
    ({"type": "text"}, ".type", "expected one of string"),
    ({"type": []}, ".type", "expected one of string"),
    ({"type": ["string", 5]}, ".type", "expected one of"),
    ({"type": "string", "minlength": 3}, ".minlength", "not supported"),
    ({"if": {"type": "string"}}, ".if", "not supported"),
    ({"not": {"type": "string"}}, ".not", "not supported"),
    ({"type": "object", "patternProperties": {"(a+)+$": {}}}, ".patternProperties", "not supported"),
    ({"$dynamicRef": "#a"}, ".$dynamicRef", "not supported"),
    ({"minLength": 3}, ".minLength", "does not apply to any type"),
    ({"type": "integer", "minLength": 3}, ".minLength", "does not apply to integer, only to string"),
    ({"type": "string", "items": {}}, ".items", "only to array"),
    ({"type": "string", "minLength": -1}, ".minLength", "a whole number"),
    ({"type": "string", "minLength": 1.5}, ".minLength", "a whole number"),
    ({"type": "string", "minLength": "1"}, ".minLength", "a whole number"),
    ({"type": "integer", "minimum": "1"}, ".minimum", "a number"),
    ({"type": "integer", "minimum": True}, ".minimum", "a number"),
    ({"type": "integer", "minimum": 1e301}, ".minimum", "a number"),
    ({"type": "number", "multipleOf": 0}, ".multipleOf", "above 0"),
    ({"type": "array", "uniqueItems": "yes"}, ".uniqueItems", "true or false"),
    ({"type": "string", "format": "e-mail"}, ".format", "expected one of"),
    ({"type": "string", "format": "date", "minLength": 2}, ".minLength", "the format date"),
    ({"type": "string", "pattern": 5}, ".pattern", "a text"),
    ({"type": "string", "pattern": "["}, ".pattern", "unclosed"),
    ({"type": "string", "pattern": "(?!x)a"}, ".pattern", "look-around"),
    ({"type": "string", "pattern": r"(a)\1"}, ".pattern", "backreferences"),
    ({"type": "string", "pattern": r"\w{1000}"}, ".pattern", "size limit"),
    ({"type": "string", "pattern": "x" * 1001}, ".pattern", "1001 characters"),
    ({"type": "integer", "minimum": 5, "maximum": 4}, "", "allow no value"),
    ({"type": "number", "exclusiveMinimum": 5, "maximum": 5}, "", "allow no value"),
    ({"type": "integer", "minimum": 1.2, "maximum": 1.8}, "", "allow no value"),
    ({"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 2}, "", "allow no value"),
    ({"type": "string", "minLength": 3, "maxLength": 2}, "", "allow no value"),
    ({"type": "array", "minItems": 3, "maxItems": 2}, "", "allow no value"),
    ({"type": "array", "prefixItems": [{}, {}], "items": False, "minItems": 3}, "", "allow no value"),
    ({"type": "object", "properties": {"a": {}}, "required": ["a"], "maxProperties": 0}, "", "allow no value"),
    (
        {"type": "object", "properties": {"a": {}}, "additionalProperties": False, "minProperties": 2},
        "",
        "minProperties 2 and maxProperties 1 allow no value",
    ),
    ({"enum": []}, ".enum", "1 to 1000 values"),
    ({"enum": [*range(1001)]}, ".enum", "1 to 1000 values"),
    ({"enum": "a"}, ".enum", "1 to 1000 values"),
    ({"enum": [["a"]]}, ".enum", "only texts, numbers"),
    ({"const": {"a": 1}}, ".const", "only texts, numbers"),
    ({"type": "integer", "enum": ["1"]}, ".enum", "not of the type integer"),
    ({"type": "string", "maxLength": 1, "enum": ["ab"]}, ".enum", "at most 1 characters"),
    ({"anyOf": []}, ".anyOf", "a list of schemas"),
    ({"anyOf": [{"type": "string"}, {"type": "x"}]}, ".anyOf[1].type", "expected one of"),
    ({"anyOf": [{"type": "string"}], "minLength": 1}, "", "cannot be used together"),
    ({"allOf": [OBJECT, {"properties": {"a": {}}}]}, ".allOf[1].properties", "different properties only"),
    ({"properties": []}, None, None),  # an empty map, as some hosts write it
    ({"type": "object", "properties": {"a": 5}}, ".properties.a", "is a map"),
    ({"type": "object", "properties": "a"}, ".properties", "a map of schemas"),
    ({"type": "object", "required": "a"}, ".required", "a list of names"),
    ({"type": "object", "required": [1]}, ".required", "a list of names"),
    ({**OBJECT, "required": ["b"], "additionalProperties": False}, ".required", "may not occur"),
    (
        {"type": "object", "properties": {"a": {"type": "integer", "default": "x"}}},
        ".properties.a.default",
        "an integer",
    ),
    ({"type": "string", "default": 5.5}, ".default", "text"),
    ({"$ref": "https://example.com/schema"}, ".$ref", "within the schema"),
    ({"$ref": "other.json#/a"}, ".$ref", "within the schema"),
    ({"$ref": "#/$defs/None"}, ".$ref", "has no"),
    ({"$ref": 5}, ".$ref", "within the schema"),
    ({"$ref": ["#"]}, ".$ref", "within the schema"),
    ({"type": [["string"]]}, ".type", "expected one of"),
    ({"type": "string", "enum": [1]}, ".enum", "not of the type string"),
    ({"type": "integer", "enum": [True]}, ".enum", "not of the type integer"),
    ({"type": "integer", "format": "int32", "enum": [1 << 31]}, ".enum", "at most 2147483647"),
    ({"type": "object", "propertyNames": {"type": "integer"}}, ".propertyNames", "names are texts"),
    ({"allOf": [OBJECT, {"properties": "a"}]}, ".allOf[1].properties", "different properties only"),
    ({"allOf": [{"$ref": "#"}, OBJECT]}, None, "more than 32 levels"),
    ({"$ref": "#"}, None, "refers to itself"),
    (
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        None,
        "refers to itself",
    ),
    ({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {}]}}, "$ref": "#/$defs/a"}, None, "refers to itself"),
    (DEEP, None, "more than 32 levels"),
    (WIDE, None, "more than 1000 schemas"),
    (LONG, "", "the limit is 65536"),
    (patterns(33), None, "more than 32 patterns"),
]


@pytest.fixture
def create(call):
    """Return a function create(**field): the reply to create_program with an output that has these keys."""

    def create(**field):
        signature = {"inputs": [{"name": "q"}], "outputs": [{"name": "out", **field}]}
        return call("create_program", id="p", signature=signature, if_exists="replace")

    return create


@pytest.mark.parametrize(("schema", "path", "reason"), REFUSED)
def test_schemas_that_are_refused(create, schema, path, reason):
    reply = create(json_schema=schema)
    if reason is None:
        assert reply["success"], reply
        return
    assert reply["code"] == "invalid_args", reply
    start = "args.signature.outputs[0].json_schema"
    assert reply["details"]["path"].startswith(start)
    assert path is None or reply["details"]["path"] == start + path
    assert reason in reply["error"]
    assert len(reply["error"]) < 1500


@pytest.mark.parametrize(
    ("field", "path", "reason"),
    [
        ({"type": "integer", "json_schema": {"type": "string"}}, ".type", "contradicts json_schema"),
        ({"type": "list<image>", "json_schema": {"type": "array"}}, ".json_schema", "models write text"),
        ({"json_schema": {"type": "string"}, "constraints": {"min_length": 1}}, ".constraints", "with json_schema"),
        ({"type": "string", "constraints": {"minimum": 1}}, ".constraints.minimum", "does not apply to string"),
        ({"type": "string", "constraints": {"min_lenght": 1}}, ".constraints.min_lenght", "unknown constraint"),
        ({"type": "integer", "constraints": {"ge": 1, "minimum": 2}}, ".constraints.minimum", "given twice"),
        ({"type": "integer", "constraints": {"ge": 2, "le": 1}}, ".constraints", "allow no value"),
        ({"type": "string", "constraints": {"pattern": "(?=a)"}}, ".constraints.pattern", "look-around"),
        ({"type": "boolean", "constraints": {"ge": 2}}, ".constraints.minimum", "does not apply"),
        ({"type": "code", "constraints": {"max_length": 2}}, ".constraints", "cannot have constraints"),
        ({"type": "string", "constraints": [1]}, ".constraints", "object"),
        ({"type": "integer", "default": "x"}, ".default", "an integer"),
        ({"json_schema": {"type": "integer", "minimum": 1}, "default": 0}, ".default", "at least 1"),
        ({"type": "image"}, ".type", "only inputs"),
        ({"type": "list<file>"}, ".type", "only inputs"),
        ({"type": "history"}, ".type", "only inputs"),
        ({"type": "dict<string, audio>"}, ".type", "fields of their own"),
        ({"type": "list<reasoning>"}, ".type", "part of another type"),
        ({"type": "code<>"}, ".type", "programming language"),
        ({"type": "code<a|b>"}, ".type", "expected '>'"),
        ({"type": "string", "json_shema": {}}, ".json_shema", "json_schema"),
    ],
)
def test_fields_that_are_refused(create, field, path, reason):
    reply = create(**field)
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", f"args.signature.outputs[0]{path}")
    assert reason in reply["error"]


@pytest.mark.parametrize(
    ("inputs", "path"),
    [
        ([{"name": "a", "type": "history"}, {"name": "b", "type": "history"}], ""),
        ([{"name": "a", "type": "reasoning"}], "[0].type"),
        ([{"name": "a", "type": "list<history>"}], "[0].type"),
        ([{"name": "a", "type": "image", "default": {"url": "data:image/png;base64,AA=="}}], "[0].default"),
        ([{"name": "a", "type": "union<image|string>"}], "[0].type"),
    ],
)
def test_inputs_that_are_refused(call, inputs, path):
    reply = call("create_program", id="p", signature={"inputs": inputs, "outputs": [{"name": "a"}]})
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", f"args.signature.inputs{path}")


def laughs(levels):
    """Return a schema in which each level has two ways to the next."""
    levels = [
        {"anyOf": [{"type": "array", "items": {"$ref": f"#/$defs/l{i + 1}"}} for _ in range(2)]} for i in range(levels)
    ]
    return {"$defs": {f"l{i}": each for i, each in enumerate(levels)} | {f"l{len(levels)}": {}}, "$ref": "#/$defs/l0"}


def test_alternatives_inside_alternatives_take_time_in_proportion(ask, call, create):
    """A type that contains itself twice, and data that fits none of the alternatives on any of many levels."""
    node = {
        "anyOf": [
            {"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}, "required": [name], "maxProperties": 1}
            for name in ("a", "b", "c")
        ]
    }
    assert create(json_schema={"$defs": {"n": node}, "$ref": "#/$defs/n"})["success"]
    text = '{"a": ' * 60 + "5" + "}" * 60
    ask("configure_lm", provider="scripted", answers=[f"[[ ## out ## ]]\n{text}\n\n[[ ## completed ## ]]"])
    started = time.process_time()
    reply = call("execute_program", program_id="p", inputs={"q": "?"})
    assert (reply["code"], reply["details"]["field"]) == ("lm_error", "out")
    assert time.process_time() - started < 10  # trying all alternatives would take until the end of the universe


def test_definitions_used_many_times(create):
    assert create(json_schema=laughs(10))["success"]
    assert "more than 32 levels" in create(json_schema=laughs(40))["error"]


@pytest.mark.parametrize("format", ["chat", "json", "baml", "xml"])
def test_definitions_used_many_times_on_each_level(ask, call, format):
    """Prompts contain each once, and the offline model gives up."""
    levels = {
        f"l{i}": {"type": "object", "properties": {f"p{j}": {"$ref": f"#/$defs/l{i + 1}"} for j in range(30)}}
        for i in range(12)
    }
    schema = {"$defs": {**levels, "l12": {"type": "string"}}, "$ref": "#/$defs/l0"}
    signature = {"inputs": [{"name": "q"}], "outputs": [{"name": "out", "json_schema": schema}]}
    ask("create_program", id="p", signature=signature, adapter=format)
    ask("configure_lm", provider="offline")
    reply = call("execute_program", program_id="p", inputs={"q": "Who is there?"})
    assert reply["success"] or reply["code"] == "lm_error"


@pytest.mark.parametrize("text", ["a" * 100_000 + "b", "[" * 5000])
def test_patterns_take_time_in_proportion_to_the_text(ask, call, create, text):
    """A backtracking engine would not return."""
    assert create(json_schema={"type": "string", "pattern": "^(a+)+$"})["success"]
    ask("configure_lm", provider="scripted", answers=[f"[[ ## out ## ]]\n{text}\n\n[[ ## completed ## ]]"])
    reply = call("execute_program", program_id="p", inputs={"q": "?"})
    assert reply["details"]["constraint"] == {"pattern": "^(a+)+$"}
