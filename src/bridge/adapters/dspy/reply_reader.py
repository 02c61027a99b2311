"""Reads the fields of replies in DSPy's chat format, for streams and for results.

A field begins with the header `[[ ## name ## ]]` at the start of a line. A header elsewhere in a line is text. If
several sections have the same name, the first one counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_LONGEST_NAME = 100
_HEADER = re.compile(rf"^[ \t]*\[\[ ## (\w{{1,{_LONGEST_NAME}}}) ## \]\]", re.MULTILINE)
_BLANKS = " \t"
_WHITE_SPACE = " \t\r\n"


def _prefix_pattern() -> str:
    """Return a pattern that matches every incomplete header."""
    parts = [r"\[", r"\[", " ", "#", "#", " ", rf"\w{{1,{_LONGEST_NAME}}}", " ", "#", "#", " "]
    pattern = r"\]?"
    for part in reversed(parts[1:]):
        pattern = f"(?:{part}{pattern})?"
    return parts[0] + pattern


_HEADER_PREFIX = re.compile(_prefix_pattern())


class FieldReader:
    """Reads the texts of fields from a reply that arrives in pieces.

    names: the fields to read; other sections are skipped. texts: each field's text so far. headers: the names of all
    sections, in order. White space around a text is not part of it, except the indentation of its first line.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.headers: list[str] = []
        self._names = frozenset(names)
        self._pieces: dict[str, list[str]] = {}
        self._field: str | None = None
        self._begun = False  # whether the field has text yet
        self._spaces: list[str] = []  # white space that belongs to the text if more text follows
        self._held = ""  # the beginning of a line that may become a header
        self._at_line_start = True

    @property
    def texts(self) -> dict[str, str]:
        return {name: "".join(pieces) for name, pieces in self._pieces.items()}

    def feed(self, text: str) -> list[tuple[str, str]]:
        """Read the next piece. Return (field, text) for the text that is certain by now."""
        text = self._held + text
        self._held = ""
        new: list[tuple[str, str]] = []
        begin = 0
        for header in _HEADER.finditer(text):
            if header.start() == 0 and not self._at_line_start:
                continue
            self._add(text[begin : header.start()], new)
            self._open(header[1])
            begin = header.end()
            self._at_line_start = False
        line = text.rfind("\n", begin) + 1
        if line or (begin == 0 and self._at_line_start):
            start = _skip_blanks(text, max(line, begin))
            self._at_line_start = start == len(text)
            if _HEADER_PREFIX.fullmatch(text, start):
                self._at_line_start = True
                self._held = text[start:]
                text = text[:start]
        self._add(text[begin:], new)
        return new

    def finish(self) -> list[tuple[str, str]]:
        """End the reply. Return the text that was held back."""
        new: list[tuple[str, str]] = []
        self._add(self._held, new)
        self._held = ""
        return new

    def _open(self, name: str) -> None:
        self.headers.append(name)
        self._spaces = []
        self._begun = False
        self._field = name if name in self._names and name not in self._pieces else None
        if self._field is not None:
            self._pieces[self._field] = []

    def _add(self, text: str, new: list[tuple[str, str]]) -> None:
        if self._field is None or not text:
            return
        body = text.rstrip(_WHITE_SPACE)
        if not body:
            self._spaces.append(text)
            return
        spaces, self._spaces = "".join(self._spaces), [text[len(body) :]]
        if self._begun:
            body = spaces + body
        else:
            self._begun = True
            body = _without_blank_lines(spaces + body)
        self._pieces[self._field].append(body)
        new.append((self._field, body))


def read_fields(reply: str, names: Iterable[str]) -> FieldReader:
    """Return the reader of a whole reply."""
    reader = FieldReader(names)
    reader.feed(reply)
    reader.finish()
    return reader


def well_formed(text: str) -> str:
    """Return `text` with surrogate pairs joined, and U+FFFD for half a pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def well_formed_in(value: Any) -> Any:
    """Return `value` with all texts in lists and maps well formed."""
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, dict):
        return {well_formed_in(key): well_formed_in(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(well_formed_in, value))
    return value


def _skip_blanks(text: str, start: int) -> int:
    while start < len(text) and text[start] in _BLANKS:
        start += 1
    return start


def _without_blank_lines(text: str) -> str:
    """Return the `text` after a header without leading blank lines and without blanks on the header's line."""
    start = len(text) - len(text.lstrip(_WHITE_SPACE))
    line = text.rfind("\n", 0, start) + 1
    return text[line or start :]
