"""Reads replies in DSPy's JSON format: an object whose keys are the fields, with or without text around it.

A text is streamed as it is meant, a value of another type as it is written. Besides JSON, the object may be written as
a Python literal or with keys without quotes. If a field occurs twice, the first one counts. Text after the object is
searched for fields that are missing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from bridge.adapters.dspy.replies.text import LONGEST_NAME, Pieces, SteppedTexts, well_formed
from bridge.adapters.dspy.values.conversion import bare_type
from bridge.adapters.dspy.values.outputs import read_text, read_value

_SPACES = re.compile(r"\s*")
_KEY = re.compile(
    rf"""(?:"(?P<double>[^"\\\n]{{0,{LONGEST_NAME}}})"|'(?P<single>[^'\\\n]{{0,{LONGEST_NAME}}})'"""
    rf"""|(?P<bare>\w{{1,{LONGEST_NAME}}}))\s{{0,100}}:"""
)
_KEY_PREFIX = re.compile(
    rf"""(?:"[^"\\\n]{{0,{LONGEST_NAME}}}(?:"\s{{0,100}})?"""
    rf"""|'[^'\\\n]{{0,{LONGEST_NAME}}}(?:'\s{{0,100}})?|\w{{1,{LONGEST_NAME}}}\s{{0,100}})"""
)
# A part of a string with all of its escape sequences, up to the closing quote or to the end.
_TEXT = {
    '"': re.compile(r'[^"\\]*(?:\\(?:u[0-9a-fA-F]{4}|[^u])[^"\\]*)*', re.DOTALL),
    "'": re.compile(r"[^'\\]*(?:\\(?:u[0-9a-fA-F]{4}|[^u])[^'\\]*)*", re.DOTALL),
}
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", '"': '"', "'": "'", "\\": "\\", "/": "/"}
_LENGTH_OF_ESCAPE = 6  # \uXXXX
_STRUCTURE = re.compile(r"""["'\[\]{}(),]""")
_NULLS = ("null", "None")


class JsonReply(SteppedTexts):
    """A reply with an object (see Reply)."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(names, self._search)
        self._strings: set[str] = set()  # the fields that are written as strings
        self._quote = ""
        self._half = ""  # the first half of a surrogate pair
        self._depth = 0

    def value(self, name: str, type: Any) -> Any:
        text = "".join(self._pieces[name])
        if name not in self._whole:
            raise ValueError("it does not end as a value of JSON does")
        if name in self._strings:
            return read_text(text, type)
        if bare_type(type) is str and text in _NULLS:
            raise ValueError(f"expected text, not {text}")
        return read_value(text, type)

    @classmethod
    def written(cls, fields: Mapping[str, Any]) -> str:
        return json.dumps(fields, ensure_ascii=False)

    def _search(self, new: Pieces) -> bool:
        """Find the beginning of an object."""
        brace = self._text.find("{", self._at)
        self._at = len(self._text) if brace < 0 else brace + 1
        if brace >= 0:
            self._step = self._key
        return brace >= 0

    def _key(self, new: Pieces) -> bool:
        """Read a key and the colon, or the end of the object. Anything else is not an object of fields."""
        self._skip_spaces()
        key = _KEY.match(self._text, self._at)
        if key is None:
            is_open = self._at == len(self._text) or _KEY_PREFIX.fullmatch(self._text, self._at) is not None
            if not is_open:
                self._step = self._search
            return not is_open
        self._at = key.end()
        self._open(next(name for name in key.groups() if name is not None))
        return True

    def _open(self, name: str) -> None:
        self._begin(name)
        self._depth, self._half = 0, ""
        self._step = self._value

    def _value(self, new: Pieces) -> bool:
        """Find the beginning of a value."""
        self._skip_spaces()
        first = self._text[self._at : self._at + 1]
        self._step = self._value if not first else self._other
        if first and first in _TEXT:
            self._at += 1
            self._quote, self._step = first, self._string
            if self._field is not None:
                self._strings.add(self._field)
        return bool(first)

    def _string(self, new: Pieces) -> bool:
        """Read a part of a field that is a string."""
        text, is_closed = self._quoted()
        text = self._half + _ESCAPE.sub(_unescaped, text) if "\\" in text else self._half + text
        self._half = text[-1:] if not is_closed and "\ud800" <= text[-1:] <= "\udbff" else ""
        self._append(well_formed(text[: len(text) - len(self._half)]), new)
        if is_closed:
            self._end(self._after_string)
        return is_closed

    def _after_string(self, new: Pieces) -> bool:
        """Read what ends a field. Anything else follows a quote inside of the text that should have been escaped."""
        self._skip_spaces()
        first = self._text[self._at : self._at + 1]
        if first and first not in ",}" and self._field is not None:
            self._whole.discard(self._field)
        self._step = self._after_string if not first else self._next
        return bool(first)

    def _next(self, new: Pieces) -> bool:
        """Go on after the comma behind a field, or after the object."""
        self._step = self._key if self._text[self._at] == "," else self._search
        self._at += 1
        return True

    def _quoted(self) -> tuple[str, bool]:
        """Read a part of a string. Return it as it is written, and whether it has been read to its closing quote."""
        start = self._at
        while True:
            part = _TEXT[self._quote].match(self._text, self._at)
            self._at = part.end() if part else self._at
            if self._text[self._at : self._at + 1] == self._quote:
                self._at += 1
                return self._text[start : self._at - 1], True
            if len(self._text) - self._at < _LENGTH_OF_ESCAPE:
                return self._text[start : self._at], False
            self._at += 1  # a backslash that begins no escape sequence

    def _other(self, new: Pieces) -> bool:
        """Read a part of a field that is not a string, up to the next quote or bracket."""
        start = self._at
        found = _STRUCTURE.search(self._text, start)
        self._at = found.start() if found else len(self._text)
        if found is None:
            self._append(self._trimmed.add(self._text[start:]), new)
            return False
        character = found[0]
        if not self._depth and character in ",}":
            self._append(self._trimmed.add(self._text[start : self._at]), new)
            self._end(self._next)
            return True
        self._at += 1
        if character in _TEXT:
            self._quote, self._step = character, self._string_within
        elif character in "[{(":
            self._depth += 1
        elif character in "]})":
            self._depth = max(0, self._depth - 1)
        self._append(self._trimmed.add(self._text[start : self._at]), new)
        return True

    def _string_within(self, new: Pieces) -> bool:
        """Read a part of a string that is in a list or a map."""
        text, is_closed = self._quoted()
        self._append(self._trimmed.add(text + self._quote if is_closed else text), new)
        if is_closed:
            self._step = self._other
        return is_closed

    def _skip_spaces(self) -> None:
        spaces = _SPACES.match(self._text, self._at)
        self._at = spaces.end() if spaces else self._at


def _unescaped(escape: re.Match[str]) -> str:
    if escape[1]:
        return chr(int(escape[1], 16))
    return _ESCAPED.get(escape[2], escape[0])
