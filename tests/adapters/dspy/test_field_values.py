"""The texts that models write for fields of each type, and the values that the host gets."""

from __future__ import annotations

import pytest

UUID = "12345678-1234-5678-1234-567812345678"


WRONG = object()  # the reply is an error


FENCE = "```"


# type -> what the model writes -> the output, as JSON carries it
VALUES = {
    "string": {
        "plain": "plain",
        '"quoted"': '"quoted"',
        "null": "null",
        "  indented\n    more": "  indented\n    more",
        "a\u2028b\u0085c\x0bd\x0ce": "a\u2028b\u0085c\x0bd\x0ce",
        "a\r\nb\rc": "a\r\nb\rc",
        "a\n\n\nb": "a\n\n\nb",
        "\u00a0a\u00a0": "\u00a0a\u00a0",
        "[1, 2]": "[1, 2]",
        "`code`": "`code`",
        "\U0001f600 e\u0301": "\U0001f600 e\u0301",
    },
    "optional<string>": {
        "null": None,
        "None": None,
        "`null`": None,
        '"null"': "null",
        "none of these": "none of these",
        "null and void": "null and void",
        "plain": "plain",
        '"quoted"': "quoted",
        '"To be" or "not"': '"To be" or "not"',
        '"a" "b"': '"a" "b"',
        "NaN": "NaN",
        "5": "5",
        '{"a": 1}': '{"a": 1}',
        "  indented": "  indented",
    },
    "integer": {
        "5": 5,
        "-5": -5,
        "+5": 5,
        '"5"': 5,
        "'5'": 5,
        "5.0": 5,
        "5.": 5,
        "1e3": 1000,
        "1,234,567": 1234567,
        "1_000": 1000,
        "`5`": 5,
        "**5**": 5,
        f"{FENCE}json\n5\n{FENCE}": 5,
        str(2**200 + 1): 2**200 + 1,
        "12345678901234567891.0": 12345678901234567891,
        "5.5": WRONG,
        "1,5": WRONG,
        "5 apples": WRONG,
        "The answer is 5.": WRONG,
        "true": WRONG,
        "[5]": WRONG,
        "null": WRONG,
        "0x10": WRONG,
        "1" + "0" * 5000: WRONG,
        "1e5000": WRONG,
    },
    "code": {
        "print(1)": "print(1)",
        f"Here:\n{FENCE}python\n  if x:\n    y()\n{FENCE}\nDone.": "  if x:\n    y()",
        f"{FENCE}\na\n{FENCE}\n{FENCE}\nb\n{FENCE}": "a",
        '"text"': '"text"',
        "[1]": "[1]",
    },
    "optional<integer>": {"5": 5, '"5"': 5, "null": None, "None": None, "x": WRONG},
    "float": {
        "1e-400": WRONG,
        "0.5": 0.5,
        ".5": 0.5,
        "5": 5.0,
        "-1e-3": -0.001,
        '"0.5"': 0.5,
        "1,000.5": 1000.5,
        "1.7976931348623157e308": 1.7976931348623157e308,
        "1e400": WRONG,
        "NaN": WRONG,
        "Infinity": WRONG,
        "50%": WRONG,
        "about 0.5": WRONG,
        "false": WRONG,
    },
    "probability": {"0.95": 0.95, "high": WRONG},
    "decimal": {
        "1234567890123456.78": "1234567890123456.78",
        "0.10": "0.10",
        "'0.10'": "0.10",
        "-0.10": "-0.10",
        "1,234.50": "1234.50",
        "5": "5",
        "12345678901234567890123456789.123456789": "12345678901234567890123456789.123456789",
        "1e400": "1E+400",
        f"{FENCE}\n0.10\n{FENCE}": "0.10",
        "NaN": WRONG,
        "Infinity": WRONG,
        "$5": WRONG,
        "null": WRONG,
    },
    "optional<decimal>": {
        "0.10": "0.10",
        "null": None,
        "1234567890123456.78": "1234567890123456.78",
    },
    "list<decimal>": {
        '[0.10, 1234567890123456.78, "0.30", 2]': ["0.10", "1234567890123456.78", "0.30", "2"],
        "[0.10, 0.20,]": ["0.10", "0.20"],
        "(0.10, -0.20)": ["0.10", "-0.20"],
        "- 0.10\n- 0.20": ["0.10", "0.20"],
        "[NaN]": WRONG,
    },
    "dict<string, decimal>": {
        '{"a": 0.10}': {"a": "0.10"},
        "{'a': 1234567890123456.78}": {"a": "1234567890123456.78"},
        '{"a": "x"}': WRONG,
    },
    "dict<string, dict<string, list<decimal>>>": {
        '{"a": {"b": [0.10]}}': {"a": {"b": ["0.10"]}},
        '{"a": {"b": 0.10}}': WRONG,
    },
    "boolean": {
        **dict.fromkeys(("true", "True", '"true"', "yes", "Yes.", "1", "on"), True),
        **dict.fromkeys(("false", "False", "no", "NO", "0", "`false`"), False),
        "maybe": WRONG,
        "null": WRONG,
        "yes and no": WRONG,
    },
    "date": {
        "2024-02-29": "2024-02-29",
        '"2024-02-29"': "2024-02-29",
        "2024-02-29T00:00:00": "2024-02-29",
        "20240229": "2024-02-29",
        "2023-02-29": WRONG,
        "2024-02-29T10:00:00": WRONG,
        "1709164800": WRONG,
        "February 29, 2024": WRONG,
    },
    "datetime": {
        "2024-02-29T10:11:12+02:00:30": WRONG,
        "2024-02-29T10.5": WRONG,
        "2024-02-29 10:11,5Z": WRONG,
        "2024-02-29T10:11:12+02:00": "2024-02-29T10:11:12+02:00",
        "2024-02-29T10:11:12-03:30": "2024-02-29T10:11:12-03:30",
        "2024-02-29 10:11:12.123456": "2024-02-29T10:11:12.123456",
        "2024-02-29T10:11:12Z": "2024-02-29T10:11:12Z",
        "2024-02-29 10:11:12 UTC": "2024-02-29T10:11:12Z",
        "2024-02-29T10:11:12.1234567": WRONG,
        "2024-02-30T10:11:12": WRONG,
        "1709164800": WRONG,
        "tomorrow": WRONG,
    },
    "time": {
        "12.5": WRONG,
        "1230.5": WRONG,
        "12:30.5": WRONG,
        "12:30+02:00:30": WRONG,
        "10:11": "10:11:00",
        '"10:11:12.5"': "10:11:12.500000",
        "10:11:12Z": "10:11:12Z",
        "25:00": WRONG,
        "10": "10:00:00",
    },
    "uuid": {UUID: UUID, f'"{UUID}"': UUID, UUID.upper(): UUID, "x": WRONG},
    "null": {"null": None, "None": None, "nothing": WRONG},
    'enum<"yes"|"no">': {
        **dict.fromkeys(("yes", '"yes"', "'yes'", "Yes", "yes.", "`yes`", "Literal[yes]"), "yes"),
        "maybe": WRONG,
        "yes or no": WRONG,
        "null": WRONG,
    },
    'enum<"1"|"2">': {"1": "1", '"2"': "2", "3": WRONG},
    "Literal[1, 2, 'a', None, True]": {"1": 1, "a": "a", "null": None, "True": True, "3": WRONG},
    'enum<"it\'s"|\'say "hi"\'>': {"it's": "it's", 'say "hi"': 'say "hi"'},
    'enum<1|true|none|" e "|"\n">': {
        "1": 1,
        '"1"': 1,
        "'True'": True,
        "1.0": WRONG,
        '"null"': None,
        "e": " e ",
        "": "\n",
    },
    "union<date|time|string>": {
        "2024-02-29": "2024-02-29",
        "12:30": "12:30:00",
        "20240229": "20240229",
        "1230": "1230",
        "12": "12",
    },
    "list<list<string>>": {
        '["a"],': WRONG,
        '[["a"]],': [["a"]],
        '["a"], ["b"]': [["a"], ["b"]],
    },
    "list<string>": {
        '["a"],': ["a"],
        '["a", "b"]': ["a", "b"],
        "['a', \"it's\"]": ["a", "it's"],
        '["a", "b",]': ["a", "b"],
        '["a\nb"]': ["a\nb"],
        '["a\u2028b"]': ["a\u2028b"],
        '["1", 2]': ["1", "2"],
        "[]": [],
        "- a\n- b c": ["a", "b c"],
        "* a\n* b": ["a", "b"],
        "1. a\n2. b": ["a", "b"],
        f'{FENCE}json\n["a"]\n{FENCE}': ["a"],
        f'Here it is:\n{FENCE}\n["a"]\n{FENCE}\nDone.': ["a"],
        'Here it is:\n["a"]': ["a"],
        'Here it is: ["a"]': ["a"],
        "see [1] for more": WRONG,
        "a, b": WRONG,
        "['a' 'b']": WRONG,
        '["a", null]': WRONG,
        '["a"': WRONG,
        "null": WRONG,
        "open('/etc/passwd')": WRONG,
        "[__import__('os')]": WRONG,
        "[f'{1}']": WRONG,
        "[" * 3000: WRONG,
    },
    "list<integer>": {
        "[1, 2]": [1, 2],
        '["1", 2.0]': [1, 2],
        f"[{2**80}]": [2**80],
        "- 1\n- 2": [1, 2],
        "[1.5]": WRONG,
        "[true]": WRONG,
    },
    "list<list<integer>>": {"[[1], [2, 3]]": [[1], [2, 3]], "[[1], 2]": WRONG},
    "list<boolean>": {'[true, False, "no"]': [True, False, False], "[2]": WRONG},
    "list<datetime>": {'["2024-02-29T10:11:12+02:00"]': ["2024-02-29T10:11:12+02:00"]},
    "optional<list<string>>": {"null": None, '["a"]': ["a"], "- a": ["a"], "a": WRONG},
    "list": {'[1, "a", null, {"b": 0.5}]': [1, "a", None, {"b": 0.5}], "x": WRONG},
    "embedding": {"[0.5, 1]": [0.5, 1.0], "[1e400]": WRONG},
    "reasoning_chain": {"1. first\n2. then": ["first", "then"]},
    "dict": {
        '{"a": 1},': {"a": 1},
        "{1: 2, true: 3}": {"1": 2, "true": 3},
        "{1: 2, '1': 3}": WRONG,
        "{null: 1}": WRONG,
        '{"a": {"b": [1, true, null]}}': {"a": {"b": [1, True, None]}},
        "{'a': None, 'b': True,}": {"a": None, "b": True},
        '{a: 1, "b": 2}': {"a": 1, "b": 2},
        f'Here:\n{FENCE}json\n{{"a": 1}}\n{FENCE}': {"a": 1},
        '{"n": 12345678901234567891}': {"n": 12345678901234567891},
        '{"n": 1234567890123456.78}': {"n": "1234567890123456.78"},
        '{"a": 1, "a": 2}': WRONG,
        "[1]": WRONG,
        "a: 1": WRONG,
    },
    "dict<integer, float>": {
        '{"1": 0.5}': {"1": 0.5},
        "{1: 2}": {"1": 2.0},
        '{"1": 1, "01": 2}': WRONG,
        '{"x": 1}': WRONG,
    },
    "union<integer|string>": {
        "5": 5,
        '"5"': "5",
        "five": "five",
        "5.5": "5.5",
        "1,000": "1,000",
        "null": "null",
    },
    "union<float|integer>": {"5": 5, "5.5": 5.5, "x": WRONG},
    "union<float|string>": {"5": 5.0, "x": "x"},
    "union<boolean|integer>": {"true": True, "1": 1, "yes": True},
    "union<date|string>": {"2024-02-29": "2024-02-29", "2024": "2024", "soon": "soon"},
    "union<list<string>|string>": {'["a"]': ["a"], "a": "a", "see [1]": "see [1]"},
    "list<union<integer|string>>": {'[1, "1", "a"]': [1, "1", "a"]},
    "list<optional<decimal>>": {"[0.10, null]": ["0.10", None]},
    "any": {
        '["a"],': ["a"],
        '["a"], ["b"]': [["a"], ["b"]],
        "{True: 1, 'true': 2}": "{True: 1, 'true': 2}",
        "5": 5,
        "0.10": 0.1,
        "1234567890123456.78": "1234567890123456.78",
        str(2**100): 2**100,
        "plain text": "plain text",
        "see [1] for more": "see [1] for more",
        '{"a": [1, 0.5, null]}': {"a": [1, 0.5, None]},
        "{'a': None}": {"a": None},
        '"quoted"': "quoted",
        f'{FENCE}json\n{{"a": 1}}\n{FENCE}': {"a": 1},
        "null": None,
        "true": True,
        "NaN": "NaN",
        "2024-02-29": "2024-02-29",
        "[1, 2": "[1, 2",
    },
}


CASES = [
    pytest.param(type, text, value, id=f"{type}-{text[:30]!r}")
    for type, values in VALUES.items()
    for text, value in values.items()
]


@pytest.mark.parametrize(("type", "text", "value"), CASES)
def test_what_a_model_writes(run, type, text, value):
    """The output is the exact value, or an error that names the field, never a similar value."""
    reply = run(type, text)
    if value is WRONG:
        assert (reply["success"], reply["code"]) == (False, "lm_error"), reply
        assert reply["details"]["lm_code"] == "adapter_parse_error"
        assert "out" in reply["error"]
        assert "\n" not in reply["error"]
        assert len(reply["error"]) < 1000
    else:
        assert reply["success"], reply
        found = reply["result"]["outputs"]["out"]
        assert (found, found.__class__) == (value, value.__class__)


LONG = 200_000  # characters: what takes a time that grows with their square does not end


@pytest.mark.parametrize(
    "type",
    [
        *("string", "optional<string>", "any", "integer", "decimal", "boolean", "datetime", "uuid"),
        *("list<string>", "dict", "union<integer|string>", 'enum<"yes"|"no">'),
    ],
)
@pytest.mark.parametrize(
    "text",
    [
        "1" * LONG + "x",
        "2024-01-01" + " " * LONG + "x",
        f"{FENCE}\n" + " " * LONG + "x",
        FENCE * LONG,
        "0." + "0" * LONG + "x",
        "- " * LONG + "x",
        ("- a" + " " * 1000 + "\n") * 200 + "x",
        "'" * LONG,
        '"' + "\\\\" * LONG,
        ": [" * 30_000,
        "[" * LONG,
        "{" * LONG,
        "1e99999999999999999999999",
        "[1e99999999999999999999999]",
    ],
    ids=lambda text: repr(text[:12]),
)
def test_long_texts_are_read_quickly(run, type, text):
    """A long text is a value if its type allows text, else an error of the model."""
    reply = run(type, text)
    if type in ("string", "optional<string>", "any"):
        assert reply["result"]["outputs"]["out"] == text
    elif not reply["success"]:
        assert (reply["code"], reply["details"]["lm_code"]) == ("lm_error", "adapter_parse_error")
        assert "decimal." not in reply["error"]


def test_every_type_is_tried():
    """The cases include each type that docs/dspy.md lists, except for synonyms."""
    from bridge.adapters.type_names import _GENERIC, _PLAIN, parse_type

    tried = {repr(parse_type(type)) for type in VALUES}
    media = {"audio", "file", "history", "image", "reasoning"}  # see test_media.py and test_history_inputs.py
    assert {repr(type) for name, type in _PLAIN.items() if name not in media} <= tried
    for name in _GENERIC.keys() - {"array", "map"}:
        assert any(name in type for type in VALUES)
