"""Reads replies in DSPy's XML format: an element for each field, with or without text around them.

The text of a field is streamed without its references (`&lt;`) and marks of CDATA sections, but with the tags of the
elements in it. Other elements are skipped with all that they contain. If a field occurs twice, the first one counts.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from xml.etree import ElementTree

from bridge.adapters.dspy.replies.text import LONGEST_NAME, Pieces, SteppedTexts, well_formed
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


class XmlReply(SteppedTexts):
    """A reply with elements (see Reply).

    White space around a text is not part of it, except the indentation of its first line.
    """

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(names, self._between)
        self._written: dict[str, list[str]] = {}
        self._element = ""  # the name of the element that is being read, also if it is not a field
        self._depth = 0  # open elements of this name inside of it

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

    def _between(self, new: Pieces) -> bool:
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
                self._end(self._between)
        return True

    def _open(self, name: str) -> None:
        self._begin(name)
        self._element, self._depth = name, 0
        if self._field is not None:
            self._written[name] = []
        self._step = self._within

    def _within(self, new: Pieces) -> bool:
        """Read a part of an element, up to the next tag or reference."""
        found = _MARK.search(self._text, self._at)
        end = found.start() if found else len(self._text)
        self._add(self._text[self._at : end], new)
        self._at = end
        if found is None:
            return False
        return self._reference(new) if found[0] == "&" else self._tag(new)

    def _reference(self, new: Pieces) -> bool:
        reference = _REFERENCE.match(self._text, self._at)
        if reference is None:
            rest = self._text[self._at : self._at + _LONGEST_REFERENCE]
            if len(rest) < _LONGEST_REFERENCE and _REFERENCE_PREFIX.fullmatch(rest):
                return False
        written = reference[0] if reference else "&"
        self._at += len(written)
        self._add(written, new, html.unescape(written) if reference else written)
        return True

    def _tag(self, new: Pieces) -> bool:
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
                self._end(self._between)
                return True
            self._depth += -1 if tag["end"] else not tag["empty"]
        self._add(written, new)
        return True

    def _within_cdata(self, new: Pieces) -> bool:
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

    def _add(self, written: str, new: Pieces, text: str | None = None) -> None:
        """Add to the field what is written, and the text that it means."""
        if self._field is None or not written:
            return
        self._written[self._field].append(written)
        self._append(self._trimmed.add(well_formed(written if text is None else text)), new)


def _escaped(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("&", "&amp;").replace("<", "&lt;")
