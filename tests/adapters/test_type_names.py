"""Type names of the wire and of DSPy's prompts."""

from __future__ import annotations

import datetime
import decimal
import sys
import uuid
from types import NoneType
from typing import Any, Literal

import pydantic
import pytest

from bridge.adapters.type_names import MAX_DEPTH, MAX_LENGTH, TypeNameError, parse_type

NAMED = {
    "string": str,
    "str": str,
    "text": str,
    "Atom": str,
    "integer": int,
    "INT": int,
    "number": float,
    "probability": float,
    "confidence_score": float,
    "boolean": bool,
    "any": Any,
    "Any": Any,
    "dict": dict[str, Any],
    "map": dict[str, Any],
    "object": dict[str, Any],
    "list": list[Any],
    "embedding": list[float],
    "reasoning_chain": list[str],
    "nil": NoneType,
    "NoneType": NoneType,
    "date": datetime.date,
    "datetime": datetime.datetime,
    "time": datetime.time,
    "UUID": uuid.UUID,
    "Decimal": decimal.Decimal,
    "list<string>": list[str],
    "array[int]": list[int],
    "typing.List[typing.Optional[str]]": list[str | None],
    "dspy.embedding": list[float],
    "Dict[str, List[int]]": dict[str, list[int]],
    "map<string, any>": dict[str, Any],
    "dict<enum[a, b], float>": dict[Literal["a", "b"], float],
    "optional<date>": datetime.date | None,
    "union<integer|string>": int | str,
    "Union[int, str, NoneType]": int | str | None,
    "int | None": int | None,
    " list < int > ": list[int],
    "Literal[\"a\", 'b', 3, True, None]": Literal["a", "b", 3, True, None],
    "Literal['it\\'s \"x\"', -1]": Literal['it\'s "x"', -1],
    'enum<"yes"|"no">': Literal["yes", "no"],
    "enum[in-progress, done]": Literal["in-progress", "done"],
}


@pytest.mark.parametrize(("text", "expected"), NAMED.items())
def test_known_names(text, expected):
    """Each spelling gives its type, and pydantic accepts it as an annotation."""
    assert parse_type(text) == expected
    pydantic.TypeAdapter(parse_type(text)).json_schema()


REFUSED = {
    "": "expected a type: the end at position 0",
    "foo": "unknown type: 'foo' at position 0",
    "list<foo.bar>": "unknown type: 'foo.bar' at position 5",
    "os.system": "unknown type: 'os.system'",
    "typing.foo": "unknown type: 'typing.foo'",
    "__import__('os')": "not part of a type: \"('os')\" at position 10",
    "int; import this": "not part of a type: '; import this' at position 3",
    "list<é>": "not part of a type: 'é>'",
    "list[]": "expected a type: ']' at position 5",
    "list<int]": "expected '>': ']' at position 8",
    "list<int": "expected '>': the end at position 8",
    "list<int, str>": "2 inner type(s) where list takes 1",
    "str<int>": "no inner types allowed after str",
    "optional": "missing inner types in <> after optional",
    "dict<list<int>, str>": "the keys of a dict must be of a plain type",
    "int str": "expected the end of the type: 'str' at position 4",
    "Literal[1.5]": "not part of a type: '1.5]'",
    "Literal[list<int>]": "expected ']': '<'",
    "'text'": "expected a type: \"'text'\"",
    "list<int>\nint": "expected the end of the type: 'int' at position 10",
}


@pytest.mark.parametrize(("text", "reason"), REFUSED.items())
def test_refused_names(text, reason):
    """The message is one line with the part, its position and the known names."""
    with pytest.raises(TypeNameError) as refused:
        parse_type(text)
    message = str(refused.value)
    assert message.startswith(reason)
    assert "\n" not in message
    assert "; known: any, array, atom" in message


def test_limits():
    """Neither depth nor length of a name exhausts the parser."""
    deep = "list<" * (MAX_DEPTH - 1) + "int" + ">" * (MAX_DEPTH - 1)
    assert parse_type(deep)
    with pytest.raises(TypeNameError, match=f"more than {MAX_DEPTH} nested types"):
        parse_type(f"list<{deep}>")
    assert parse_type("int".ljust(MAX_LENGTH))
    with pytest.raises(TypeNameError, match=f"the limit is {MAX_LENGTH}"):
        parse_type("int".ljust(MAX_LENGTH + 1))


def test_no_name_is_imported(capsys):
    """The name of a module is an unknown type, and the module is not imported."""
    sys.modules.pop("this", None)
    with pytest.raises(TypeNameError):
        parse_type("this")
    assert "this" not in sys.modules
    assert not capsys.readouterr().out
