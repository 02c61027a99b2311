"""The XML format: an element for each field."""

from __future__ import annotations

import re
from typing import Any
from xml.sax.saxutils import escape

import dspy
from dspy.adapters.utils import format_field_value

from bridge.adapters.dspy.formats.format import Format
from bridge.adapters.dspy.replies.xml import XmlReply

_MARKUP = re.compile(r"<(?=[\w/!?])")


class XmlFormat(Format, dspy.XMLAdapter):  # type: ignore[misc]  # DSPy is not typed
    """DSPy's `XMLAdapter`."""

    reply = XmlReply

    def __init__(self, **more: Any) -> None:
        super().__init__(use_json_adapter_fallback=False, **more)

    def section(self, label: str, text: str) -> str:
        return f"<{label}>\n{text}\n</{label}>"

    def escaped(self, text: str) -> str:
        return _MARKUP.sub("&lt;", text) if "<" in text else text

    def output(self, field: Any, value: Any) -> Any:
        if field.annotation is str or self._uses_nested_xml(field.annotation):
            return value  # DSPy escapes it
        return escape(format_field_value(field, value))
