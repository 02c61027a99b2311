"""Reads replies in DSPy's chat format.

A field begins with the header `[[ ## name ## ]]` at the start of a line. A header elsewhere in a line is text. If
several sections have the same name, the first one counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from bridge.adapters.dspy.replies.text import LONGEST_NAME, FieldTexts, Pieces
from bridge.adapters.dspy.values.outputs import read_value

_HEADER = re.compile(rf"^[ \t]*\[\[ ## (\w{{1,{LONGEST_NAME}}}) ## \]\]", re.MULTILINE)
_BLANKS = " \t"


def _prefix_pattern() -> str:
    """Return a pattern that matches every incomplete header."""
    parts = [r"\[", r"\[", " ", "#", "#", " ", rf"\w{{1,{LONGEST_NAME}}}", " ", "#", "#", " "]
    pattern = r"\]?"
    for part in reversed(parts[1:]):
        pattern = f"(?:{part}{pattern})?"
    return parts[0] + pattern


_HEADER_PREFIX = re.compile(_prefix_pattern())


class ChatReply(FieldTexts):
    """A reply with sections (see Reply).

    White space around a text is not part of it, except the indentation of its first line.
    """

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(names)
        self._held = ""  # the beginning of a line that may become a header
        self._at_line_start = True

    def feed(self, text: str) -> Pieces:
        text = self._held + text
        self._held = ""
        new: Pieces = []
        begin = 0
        for header in _HEADER.finditer(text):
            if header.start() == 0 and not self._at_line_start:
                continue
            self._add(text[begin : header.start()], new)
            self._begin(header[1])
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

    def finish(self) -> Pieces:
        new: Pieces = []
        self._add(self._held, new)
        self._held = ""
        return new

    def value(self, name: str, type: Any) -> Any:
        return read_value("".join(self._pieces[name]), type)

    @classmethod
    def written(cls, fields: Mapping[str, Any]) -> str:
        sections = (
            f"[[ ## {name} ## ]]\n{value if isinstance(value, str) else json.dumps(value)}"
            for name, value in fields.items()
        )
        return "\n\n".join([*sections, "[[ ## completed ## ]]"])

    def _add(self, text: str, new: Pieces) -> None:
        if self._field is not None and text:
            self._append(self._trimmed.add(text), new)


def _skip_blanks(text: str, start: int) -> int:
    while start < len(text) and text[start] in _BLANKS:
        start += 1
    return start
