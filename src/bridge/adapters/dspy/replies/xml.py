"""Reads replies in DSPy's XML format: an element for each field, with or without text around them.

The text of a field is streamed without its references (`&lt;`) and marks of CDATA sections, but with the tags of the
elements in it. Other elements are skipped with all that they contain. If a field occurs twice, the first one counts.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from xml.etree import ElementTree

from bridge.adapters.dspy.replies.text import LONGEST_NAME, Trimmed, well_formed
from bridge.adapters.dspy.schemas.objects import is_kind
from bridge.adapters.dspy.values.conversion import bare_type
from bridge.adapters.dspy.values.elements import value_of_element
from bridge.adapters.dspy.values.outputs import read_value
from bridge.adapters.type_names import Code, Reasoning

_TAG = re.compile(rf"<(?P<end>/?)(?P<name>\w{{1,{LONGEST_NAME}}})(?:\s[^<>]{{0,1000}}?)?(?P<empty>/?)>")
_TAG_PREFIX = re.compile(rf"</?(?:\w{{1,{LONGEST_NAME}}}(?:\s[^<>]*|/)?)?")
_LONGEST_TAG = LONGEST_NAME + 1004
_MARK = re.compile("[<&]")
_REFERENCE = re.compile(r"&(?:lt|gt|amp|quot|apos|#\d{1,7}|#[xX][0-9a-fA-F]{1,6});")
_REFERENCE_PREFIX = re.compile(r"&#?\w*")
_LONGEST_REFERENCE = 10
_BARE = re.compile(rf"&(?!{_REFERENCE.pattern[1:]})")
_CDATA, _END_OF_CDATA = "<![CDATA[", "]]>"


class XmlReply:
    """A reply with elements (see Reply).

    White space around a text is not part of it, except the indentation of its first line.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.headers: list[str] = []
        self._names = frozenset(names)
        self._pieces: dict[str, list[str]] = {}
        self._written: dict[str, list[str]] = {}
        self._whole: set[str] = set()  # the fields whose end has been read
        self._field: str | None = None
        self._element = ""  # the name of the element that is being read, also if it is not a field
        self._depth = 0  # open elements of this name inside of it
        self._text = ""
        self._at = 0  # what of the text has been read
        self._step: Callable[[list[tuple[str, str]]], bool] = self._between
        self._trimmed = Trimmed()

    @property
    def texts(self) -> dict[str, str]:
        return {name: "".join(pieces) for name, pieces in self._pieces.items()}

    def feed(self, text: str) -> list[tuple[str, str]]:
        self._text = self._text[self._at :] + text
        self._at = 0
        new: list[tuple[str, str]] = []
        while self._step(new):
            pass
        return new

    def finish(self) -> list[tuple[str, str]]:
        return []

    def value(self, name: str, type: Any) -> Any:
        if name not in self._whole:
            raise ValueError("its element has no end")
        text = "".join(self._pieces[name])
        if bare_type(type) in (str, Reasoning) or is_kind(type, Code):
            return read_value(text, type)
        written = "".join(self._written[name]).strip()
        if written and (written[0] != "<" or written.startswith(_CDATA)):
            return read_value(text, type)
        try:
            element = ElementTree.fromstring(f"<{name}>{_BARE.sub('&amp;', written)}</{name}>")
        except ElementTree.ParseError as error:
            raise ValueError(f"not well-formed XML: {error}") from None
        return value_of_element(element, type)

    @classmethod
    def written(cls, fields: Mapping[str, Any]) -> str:
        return "\n\n".join(f"<{name}>\n{_escaped(value)}\n</{name}>" for name, value in fields.items())

    # Each step reads a part of the text. It returns False if more text is needed.

    def _between(self, new: list[tuple[str, str]]) -> bool:
        """Find the next element."""
        start = self._text.find("<", self._at)
        self._at = len(self._text) if start < 0 else start
        if start < 0:
            return False
        tag = _TAG.match(self._text, start)
        if tag is None:
            rest = self._text[start : start + _LONGEST_TAG]
            is_open = len(rest) < _LONGEST_TAG and _TAG_PREFIX.fullmatch(rest) is not None
            self._at += not is_open
            return not is_open
        self._at = tag.end()
        if not tag["end"]:
            self._open(tag["name"])
            if tag["empty"]:
                self._close()
        return True

    def _open(self, name: str) -> None:
        self.headers.append(name)
        self._element, self._depth, self._trimmed = name, 0, Trimmed()
        self._field = name if name in self._names and name not in self._pieces else None
        if self._field is not None:
            self._pieces[name], self._written[name] = [], []
        self._step = self._within

    def _close(self) -> None:
        if self._field is not None:
            self._whole.add(self._field)
        self._step = self._between

    def _within(self, new: list[tuple[str, str]]) -> bool:
        """Read a part of an element, up to the next tag or reference."""
        found = _MARK.search(self._text, self._at)
        end = found.start() if found else len(self._text)
        self._add(self._text[self._at : end], new)
        self._at = end
        if found is None:
            return False
        return self._reference(new) if found[0] == "&" else self._tag(new)

    def _reference(self, new: list[tuple[str, str]]) -> bool:
        reference = _REFERENCE.match(self._text, self._at)
        if reference is None:
            rest = self._text[self._at : self._at + _LONGEST_REFERENCE]
            if len(rest) < _LONGEST_REFERENCE and _REFERENCE_PREFIX.fullmatch(rest):
                return False
        written = reference[0] if reference else "&"
        self._at += len(written)
        self._add(written, new, html.unescape(written) if reference else written)
        return True

    def _tag(self, new: list[tuple[str, str]]) -> bool:
        """Read a tag, or the mark of a CDATA section. All but the end of the element is a part of it."""
        if self._text.startswith(_CDATA, self._at):
            self._at += len(_CDATA)
            self._add(_CDATA, new, "")
            self._step = self._within_cdata
            return True
        tag = _TAG.match(self._text, self._at)
        if tag is None:
            rest = self._text[self._at : self._at + _LONGEST_TAG]
            if len(rest) < _LONGEST_TAG and (_CDATA.startswith(rest) or _TAG_PREFIX.fullmatch(rest)):
                return False
        written = tag[0] if tag else "<"
        self._at += len(written)
        if tag is not None and tag["name"] == self._element:
            if tag["end"] and not self._depth:
                self._close()
                return True
            self._depth += -1 if tag["end"] else not tag["empty"]
        self._add(written, new)
        return True

    def _within_cdata(self, new: list[tuple[str, str]]) -> bool:
        """Read a part of a CDATA section."""
        end = self._text.find(_END_OF_CDATA, self._at)
        if end >= 0:
            self._add(self._text[self._at : end], new)
            self._add(_END_OF_CDATA, new, "")
            self._at, self._step = end + len(_END_OF_CDATA), self._within
            return True
        certain = max(self._at, len(self._text) - len(_END_OF_CDATA) + 1)
        self._add(self._text[self._at : certain], new)
        self._at = certain
        return False

    def _add(self, written: str, new: list[tuple[str, str]], text: str | None = None) -> None:
        """Add to the field what is written, and the text that it means."""
        if self._field is None or not written:
            return
        self._written[self._field].append(written)
        text = self._trimmed.add(well_formed(written if text is None else text))
        if text:
            self._pieces[self._field].append(text)
            new.append((self._field, text))


def _escaped(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("&", "&amp;").replace("<", "&lt;")
