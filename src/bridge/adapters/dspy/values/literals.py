"""Reads data that a model wrote as JSON or as a Python literal; every number stays exact."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Any

_FENCE = re.compile(r"```[\w-]*[ \t]*\r?\n(.*?)```", re.DOTALL)
_BULLET = re.compile(r"[ \t]*(?:[-*•]|\d{1,4}[.)])[ \t]+(\S.*)")
_OPENING = re.compile(r"(?:^|:)[ \t]*([\[{])", re.MULTILINE)
_NEITHER = "neither JSON nor a Python literal"
_BRACKETS = ("[", "{", "(")
# One string, not several adjacent ones, which Python would join.
_ONE_TEXT = re.compile(
    r"""[rRuU]?(?:"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')"""
    r"""|[rRuU]?(?:\"{3}(?:[^"\\]|\\.|"(?!""))*\"{3}|'{3}(?:[^'\\]|\\.|'(?!''))*'{3})""",
    re.DOTALL,
)
# A backslash before a character without an escape sequence, for which Python would print a warning.
_NO_ESCAPE = re.compile(r"""\\[^\n\\'"abfnrtv0-7xNuU]""")
_CONSTANTS = {"true": True, "false": False, "null": None}


class NotData(ValueError):
    """Raised for text that is neither JSON nor a Python literal."""


def read_data(text: str) -> Any:
    """Return the value of `text` if all of it is JSON or a Python literal. Fractions become Decimal.

    Raises NotData, and ValueError for a repeated key and for integers of too many digits.
    """
    try:
        return _JSON.decode(text)
    except json.JSONDecodeError:
        return _python_literal(text)


def unfenced(text: str) -> str:
    """Return `text` without the fence of a code block, the backquotes or the asterisks that enclose all of it."""
    text = text.strip()
    fenced = _FENCE.fullmatch(text)
    if fenced:
        return fenced[1].strip()
    for mark in ("`", "**"):
        inner = text[len(mark) : -len(mark)]
        if len(text) > 2 * len(mark) and text == f"{mark}{inner}{mark}" and mark not in inner:
            return inner.strip()
    return text


def within_prose(text: str) -> Iterator[str]:
    """Yield the part of `text` that is probably data, if there is one.

    That is the only code block, or the part that begins with a bracket, at the start of a line or after a colon, and
    ends at the end of a line.
    """
    blocks = _FENCE.findall(text)
    if blocks:
        if len(blocks) == 1:
            yield blocks[0].strip()
        return
    openings = [*_OPENING.finditer(text)]
    if openings:
        start = openings[0].start(1)
        closing = {"[": "]", "{": "}"}[text[start]]
        end = text.rfind(closing)
        rest = text[end + 1 :]
        if end > start and (not rest.strip() or re.match(r"[ \t]*\.?[ \t]*\r?\n", rest)):
            yield text[start : end + 1]


def list_items(text: str) -> list[str] | None:
    """Return the items of a bulleted or numbered list with one item per line; None if `text` is not such a list."""
    lines = [line for line in text.split("\n") if line.strip()]
    found = [_BULLET.fullmatch(line.rstrip()) for line in lines]
    if not found or not all(found):
        return None
    return [match[1] for match in found if match]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in made if names.count(name) > 1)
        raise ValueError(f"the key {twice[:50]!r} is repeated")
    return made


def _fraction(written: str) -> Decimal:
    try:
        return Decimal(written)
    except InvalidOperation:
        raise ValueError(f"{written[:50]} is not a finite number") from None


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a finite number")


_JSON = json.JSONDecoder(
    object_pairs_hook=_unique,
    parse_float=_fraction,
    parse_constant=_constant,
    strict=False,  # models often write line breaks unescaped
)


def _python_literal(text: str) -> Any:
    source = text.strip().replace("\r\n", "\n").replace("\r", "\n")
    source = source.removesuffix(",").rstrip()  # after a list, it would make a tuple of the list
    is_one = source[:1] in _BRACKETS or source in ("None", "True", "False")
    if not is_one or _NO_ESCAPE.search(source):
        raise NotData(_NEITHER)
    try:
        tree = ast.parse(source, mode="eval")
    except (SyntaxError, ValueError, MemoryError):
        raise NotData(_NEITHER) from None
    return _Literal(source).value(tree.body)


class _Literal:
    """Reads values from a syntax tree, of which nothing is executed."""

    def __init__(self, source: str) -> None:
        self._lines = [line.encode() for line in source.split("\n")]

    def value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=float()):
                return self._decimal(node)
            case ast.Constant(value=int() | None):
                return node.value
            case ast.Constant(value=str()) if _ONE_TEXT.fullmatch(self._written(node)):
                return node.value
            case ast.List() | ast.Tuple() | ast.Set():
                return [self.value(item) for item in node.elts]
            case ast.Dict():
                return _unique([(self._key(k), self.value(v)) for k, v in self._pairs(node)])
            case ast.Name(id=name) if name in _CONSTANTS:
                return _CONSTANTS[name]
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
                number = self.value(operand)
                if isinstance(number, int | Decimal) and not isinstance(number, bool):
                    return -number if isinstance(sign, ast.USub) else number
        raise NotData(_NEITHER)

    def _pairs(self, node: ast.Dict) -> Iterator[tuple[ast.expr, ast.expr]]:
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                raise NotData(_NEITHER)
            yield key, value

    def _key(self, node: ast.expr) -> str:
        """Return a key as text, as in JSON, so that keys that are equal there count as repeated."""
        if isinstance(node, ast.Name) and node.id not in _CONSTANTS:
            return node.id  # keys without quotes, as in JavaScript
        key = self.value(node)
        if isinstance(key, bool):
            return str(key).lower()
        if not isinstance(key, str | int | Decimal):
            raise NotData("a key that is neither text nor a number")
        return str(key)

    def _decimal(self, node: ast.expr) -> Decimal:
        written = self._written(node)
        try:
            return Decimal(written.replace("_", ""))
        except InvalidOperation:
            raise NotData(f"{written[:50]!r} is not a number") from None

    def _written(self, node: ast.expr) -> str:
        """Return the source of a node. ast counts columns in bytes."""
        first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
        lines = self._lines[first : last + 1]
        lines[-1] = lines[-1][: node.end_col_offset]
        lines[0] = lines[0][node.col_offset :]
        return b"\n".join(lines).decode()
