"""Parses type names, as hosts and DSPy's prompts write them, to Python types.

DSPy's own parser imports names that it does not know. Here, a name that is not in a table below is an error.

    type    = single ("|" single)*
    single  = plain | list<T> | dict<K, V> | optional<T> | union<T, ...> | literal<value, ...> | code<language>
    value   = "text" | 'text' | word | integer | true | false | none

Square and angle brackets are equivalent. The values of a literal (or enum) are separated by "," or "|". Names are
case-insensitive and may begin with "typing." or "dspy.".
"""

from __future__ import annotations

import datetime
import decimal
import re
import uuid
from functools import lru_cache
from types import GenericAlias, NoneType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, Optional, Union, get_origin

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_LENGTH = 1000  # characters of one type name
MAX_DEPTH = 16  # types inside types


class Image:
    """Stands for images in types."""


class Audio:
    """Stands for recordings in types."""


class File:
    """Stands for files in types, such as PDF documents."""


class History:
    """Stands for the earlier turns of a conversation in types."""


class Reasoning:
    """Stands for the reasoning of a model in types."""


class Code:
    """Stands for source code in types. language: of a subclass that `code_in` has made."""

    language = "python"


@lru_cache(maxsize=256)
def code_in(language: str) -> type[Code]:
    """Return the type of source code in `language`."""
    return type("Code", (Code,), {"language": language})


class TypeNameError(ValueError):
    """Raised for a type name that the grammar does not accept. The message is one line and contains the position."""


@lru_cache(maxsize=1024)
def parse_type(text: str) -> Any:
    """Return the Python type that `text` names, as a pydantic annotation.

    Raises TypeNameError with the unexpected part, its position (from 0) and the known names.
    """
    if len(text) > MAX_LENGTH:
        raise TypeNameError(f"type name of {len(text)} characters, the limit is {MAX_LENGTH}")
    return _Parser(text).parse()


_PLAIN: dict[str, Any] = {
    "any": Any,
    "array": list[Any],
    "atom": str,
    "audio": Audio,
    "bool": bool,
    "boolean": bool,
    "code": Code,
    "confidence_score": float,
    "date": datetime.date,
    "datetime": datetime.datetime,
    "decimal": decimal.Decimal,
    "dict": dict[str, Any],
    "embedding": list[float],
    "file": File,
    "float": float,
    "history": History,
    "image": Image,
    "int": int,
    "integer": int,
    "list": list[Any],
    "map": dict[str, Any],
    "nil": NoneType,
    "none": NoneType,
    "nonetype": NoneType,
    "null": NoneType,
    "number": float,
    "object": dict[str, Any],
    "probability": float,
    "reasoning": Reasoning,
    "reasoning_chain": list[str],
    "str": str,
    "string": str,
    "text": str,
    "time": datetime.time,
    "uuid": uuid.UUID,
}

# As values, because mypy would read `Union[members]` as an annotation.
_literal: Any = Literal
_optional: Any = Optional
_union: Any = Union


def _list_of(item: Any) -> Any:
    return GenericAlias(list, (item,))


def _dict_of(key: Any, value: Any) -> Any:
    return GenericAlias(dict, (key, value))


def _union_of(*members: Any) -> Any:
    return _union[members]


class _Generic(NamedTuple):
    arity: int | None  # None: one or more
    build: Callable[..., Any]


_GENERIC = {
    "array": _Generic(1, _list_of),
    "dict": _Generic(2, _dict_of),
    "list": _Generic(1, _list_of),
    "map": _Generic(2, _dict_of),
    "optional": _Generic(1, _optional.__getitem__),
    "union": _Generic(None, _union_of),
}
_LITERAL = frozenset({"enum", "literal"})
_KNOWN = frozenset({*_PLAIN, *_GENERIC, *_LITERAL})

_WORDS = {"true": True, "false": False, "none": None, "null": None, "nil": None}
_LANGUAGE = re.compile(r"[A-Za-z][\w.+# -]{0,31}")
_BRACKETS = {"<": ">", "[": "]"}
_PREFIX = re.compile(r"(?:typing|dspy)\.")
_TOKEN = re.compile(
    r"""\s*(?:(?P<name>[A-Za-z_][\w.-]*)
          | (?P<integer>-?\d+)(?![\w.])
          | (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
          | (?P<mark>[<>\[\],|])
          | (?P<end>$))""",
    re.VERBOSE | re.DOTALL,
)


class _Token(NamedTuple):
    kind: str
    text: str
    position: int


class _Parser:
    """Parses one type name by recursive descent, with one token of lookahead."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._depth = 0
        self._token = self._scan(0)

    def parse(self) -> Any:
        parsed = self._type()
        if self._token.kind != "end":
            self._fail("expected the end of the type")
        return parsed

    def _type(self) -> Any:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._fail(f"more than {MAX_DEPTH} nested types")
        members = [self._single()]
        while self._take("|"):
            members.append(self._single())
        self._depth -= 1
        return _union_of(*members)

    def _single(self) -> Any:
        token = self._advance()
        name = _PREFIX.sub("", token.text.lower(), count=1)
        if token.kind != "name":
            self._fail("expected a type", token)
        if name not in _KNOWN:
            self._fail("unknown type", token)
        if self._token.text in _BRACKETS:
            return self._bracketed(token, name)
        if name not in _PLAIN:
            self._fail(f"missing inner types in <> after {name}")
        return _PLAIN[name]

    def _bracketed(self, token: _Token, name: str) -> Any:
        if name not in _GENERIC and name not in _LITERAL and name != "code":
            self._fail(f"no inner types allowed after {name}")
        closing = _BRACKETS[self._advance().text]
        if name == "code":
            parsed = code_in(self._language())
        else:
            parsed = self._literal() if name in _LITERAL else self._generic(token, name)
        if not self._take(closing):
            self._fail(f"expected {closing!r}")
        return parsed

    def _generic(self, token: _Token, name: str) -> Any:
        members = [self._type()]
        while self._take(","):
            members.append(self._type())
        arity, build = _GENERIC[name]
        if arity not in (None, len(members)):
            self._fail(f"{len(members)} inner type(s) where {name} takes {arity}", token)
        if build is _dict_of and not _is_key(members[0]):
            self._fail("the keys of a dict must be of a plain type", token)
        return build(*members)

    def _literal(self) -> Any:
        values = [self._value()]
        while self._take(",") or self._take("|"):
            values.append(self._value())
        return _literal[tuple(values)]

    def _language(self) -> str:
        token = self._advance()
        language = token.text.strip("\"'")
        if token.kind not in ("name", "text") or not _LANGUAGE.fullmatch(language):
            self._fail("expected the name of a programming language", token)
        return language

    def _value(self) -> Any:
        token = self._advance()
        match token.kind:
            case "text":
                # DSPy escapes only quotes when it prints the values of a Literal.
                return re.sub(r"\\(['\"])", r"\1", token.text[1:-1])
            case "integer":
                return int(token.text)
            case "name":
                return _WORDS.get(token.text.lower(), token.text)
        self._fail("expected a text, a word or an integer", token)

    def _take(self, mark: str) -> bool:
        taken = self._token.kind == "mark" and self._token.text == mark
        if taken:
            self._advance()
        return taken

    def _advance(self) -> _Token:
        token = self._token
        if token.kind != "end":
            self._token = self._scan(token.position + len(token.text))
        return token

    def _scan(self, position: int) -> _Token:
        found = _TOKEN.match(self._text, position)
        if found is None or found.lastgroup is None:
            rest = self._text[position:].lstrip()
            self._fail("not part of a type", _Token("mark", rest, len(self._text) - len(rest)))
        return _Token(found.lastgroup, found[found.lastgroup], found.start(found.lastgroup))

    def _fail(self, reason: str, token: _Token | None = None) -> NoReturn:
        token = token or self._token
        part = repr(token.text[:40]) if token.text else "the end"
        known = ", ".join(sorted(_KNOWN))
        raise TypeNameError(f"{reason}: {part} at position {token.position}; known: {known}")


def _is_key(key: Any) -> bool:
    return key in (str, int, float, bool, Any) or get_origin(key) is Literal
