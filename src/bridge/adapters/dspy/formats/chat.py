"""The chat format: a section with a header for each field."""

from __future__ import annotations

import re
from typing import Any

import dspy

from bridge.adapters.dspy.formats.format import Format
from bridge.adapters.dspy.replies.chat import ChatReply

_HEADER = re.compile(r"^([ \t]*\[)(?=\[ ## \w+ ## \]\])", re.MULTILINE)


def section(label: str, text: str) -> str:
    """Return a section of a prompt."""
    return f"[[ ## {label} ## ]]\n{text}"


def escaped(text: str) -> str:
    """Return `text` with a blank in what looks like a header."""
    return _HEADER.sub(r"\1 ", text) if "[[ ## " in text else text


class ChatFormat(Format, dspy.ChatAdapter):  # type: ignore[misc]  # DSPy is not typed
    """DSPy's `ChatAdapter`."""

    reply = ChatReply
    section = staticmethod(section)
    escaped = staticmethod(escaped)

    def __init__(self, **more: Any) -> None:
        super().__init__(use_json_adapter_fallback=False, **more)
