"""The views of a text that are searched for secrets: in lower case, without white space, and without escapes.

This is a separate module because the start of a worker does not need it.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from re import Match

MOST_PASSES = 4  # levels of escapes inside escapes, as of JSON in a URL

_DROPPED = r"\s\x00-\x20\x7f\xad\u200b-\u200f\u2060\ufeff"  # white space and invisible characters
_AS_IT_IS = re.compile(rf"[{_DROPPED}]+|([^\x00-\x7f{_DROPPED}]+)")
# Runs of \, of %25 and of &amp; are escapes that were escaped again in the same way, any number of times.
_UNESCAPED = re.compile(
    rf"""
    [{_DROPPED}]+ | =\r?\n
    | (?P<raw>[^\x00-\x7f{_DROPPED}]+)
    | \\+(?:u(?P<high>[dD][89abAB][0-9a-fA-F]{{2}})\\+u(?P<low>[dD][c-fC-F][0-9a-fA-F]{{2}})
        | u(?P<u4>[0-9a-fA-F]{{4}}) | u\{{(?P<u>[0-9a-fA-F]{{1,6}})\}} | U(?P<u8>[0-9a-fA-F]{{8}})
        | x(?P<x>[0-9a-fA-F]{{2}}) | [0abfnrtv])?
    | %(?:25)*(?P<percent>[0-9a-fA-F]{{2}})
    | &(?:amp;)*(?:\#(?P<decimal>[0-9]{{1,7}}) | \#[xX](?P<hex>[0-9a-fA-F]{{1,6}})
        | (?P<name>quot|lt|gt|apos));
    | (?P<amp>&(?:amp;)+)
    """,
    re.VERBOSE,
)
_ESCAPES = re.compile(r"[\\%&]|=\r?\n")
_BYTES = ("x", "percent")
_NAMES = {"quot": '"', "lt": "<", "gt": ">", "apos": "'"}
_INVISIBLE = re.compile(rf"[{_DROPPED}]")


class View:
    """Represents a text without escapes, and maps its positions to those of the original text.

    text: each character is one byte of the UTF-8 of the unescaped text.
    """

    __slots__ = ("_parent", "_spans", "_starts", "text")

    def __init__(
        self,
        text: str,
        pattern: re.Pattern[str],
        unescape: Callable[[Match[str]], str],
        parent: View | None = None,
    ) -> None:
        self._parent = parent
        self._starts: list[int] = []  # of each piece in self.text
        self._spans: list[tuple[int, int]] = []  # of each piece in `text`
        pieces: list[str] = []
        size = copied = 0

        def add(piece: str, start: int, end: int) -> None:
            nonlocal size
            if piece:
                pieces.append(piece)
                self._starts.append(size)
                self._spans.append((start, end))
                size += len(piece)

        for match in pattern.finditer(text):
            start, end = match.span()
            add(text[copied:start], copied, start)
            add(unescape(match), start, end)
            copied = end
        add(text[copied:], copied, len(text))
        self.text = "".join(pieces).lower()

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return the start and end in the original text of what is between `start` and `end` in this view."""
        first = bisect_right(self._starts, start) - 1
        last = bisect_left(self._starts, end) - 1
        begin, stop = self._spans[first][0], self._spans[last][1]
        if self._is_literal(first):
            begin += start - self._starts[first]
        if self._is_literal(last):
            stop = self._spans[last][0] + end - self._starts[last]
        return self._parent.span(begin, stop) if self._parent is not None else (begin, stop)

    def _is_literal(self, index: int) -> bool:
        begin, stop = self._spans[index]
        following = self._starts[index + 1 : index + 2] or [len(self.text)]
        return stop - begin == following[0] - self._starts[index]


def views(text: str) -> Iterator[View]:
    """Yield a view of the text as it is and, if the text may have escapes, one without them."""
    yield View(text, _AS_IT_IS, lambda match: _utf8(match[1]) if match[1] else "")
    if _ESCAPES.search(text) is None:
        return
    view = View(text, _UNESCAPED, _unescaped)
    for _ in range(MOST_PASSES - 1):
        if _ESCAPES.search(view.text) is None:
            break
        # The characters of a view are bytes already.
        inner = View(view.text, _UNESCAPED, _unescaped_bytes, view)
        if inner.text == view.text:
            break
        view = inner
    yield view


def _utf8(text: str) -> str:
    return text.encode("utf-8", "surrogatepass").decode("latin-1")


def _unescaped_bytes(match: Match[str]) -> str:
    return match["raw"] or _unescaped(match)


def _unescaped(match: Match[str]) -> str:
    kind = match.lastgroup
    if kind is None:
        return ""
    digits = match[kind]
    if kind == "raw":
        return _utf8(digits)
    if kind == "amp":
        return "&"
    if kind == "name":
        return _NAMES[digits]
    if kind == "low":
        pair = chr(int(match["high"], 16)) + chr(int(digits, 16))
        return _utf8(pair.encode("utf-16-le", "surrogatepass").decode("utf-16-le"))
    code = int(digits, 10 if kind == "decimal" else 16)
    if code > 0x10FFFF:
        return match[0]
    if kind in _BYTES:
        return chr(code) if code > 0x20 and code != 0x7F else ""
    character = chr(code)
    return "" if _INVISIBLE.match(character) else _utf8(character)
