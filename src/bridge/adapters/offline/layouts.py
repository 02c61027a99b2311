"""How DSPy's formats lay out prompts and replies: the sections of a text, and a reply with these sections.

A format is recognized by the rules for the reply that it writes into a prompt.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Schema = Mapping[str, Any]


class Layout(NamedTuple):
    """A format.

    opening: returns the text that precedes the value of a field in a prompt; closing: of the one that follows it.
    section: a pattern of a field with its value in a text that consists of fields. reply: returns a reply with values,
    given the schema of each.
    """

    opening: Callable[[str], str]
    closing: Callable[[str], str]
    section: re.Pattern[str]
    reply: Callable[[Mapping[str, Any], Mapping[str, Schema]], str]


def layout_of(system: str, message: str) -> Layout:
    """Return the layout of a prompt."""
    if system.startswith(PROSE_SYSTEM):
        return _PROSE
    rules = REPLY_RULES.findall(message)
    return _LAYOUTS[rules[-1]] if rules else _LAYOUTS[_CHAT]


def sections(text: str) -> list[tuple[str, str]]:
    """Return the (name, text) of each field in a text that consists of fields, in any format."""
    for layout in _LAYOUTS.values():
        found = layout.section.findall(text)
        if found:
            return [(name, value.strip()) for name, value in found]
    return [(name, value.strip()) for name, value in _PROSE.section.findall(text)]


def fields_in_prose(text: str, schemas: Mapping[str, Schema]) -> dict[str, Any]:
    """Return the values of fields in a reply in prose that this model has written."""
    found = {}
    for name, value in _PROSE.section.findall(text):
        # The prompt of the first step does not have the properties of objects.
        if name in schemas and "properties" not in schemas[name] and "$ref" not in schemas[name]:
            found[name] = value.strip() if _is_text(schemas[name]) else _decoded(value.strip())
    return found


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


# Replies


def _chat(values: Mapping[str, Any], schemas: Mapping[str, Schema]) -> str:
    parts = [
        f"[[ ## {name} ## ]]\n{_printed(value, schemas[name])}"
        for name, value in values.items()
        # In the chat format a missing section means None.
        if value is not None or "enum" in schemas[name]
    ]
    return "\n\n".join([*parts, "[[ ## completed ## ]]"])


def _json(values: Mapping[str, Any], schemas: Mapping[str, Schema]) -> str:
    return json.dumps(values, ensure_ascii=False)


def _xml(values: Mapping[str, Any], schemas: Mapping[str, Schema]) -> str:
    return "\n\n".join(_element(name, value) for name, value in values.items() if value is not None)


def _element(name: str, value: Any) -> str:
    if isinstance(value, list):
        return f"<{name}>{''.join(_element('item', each) for each in value)}</{name}>"
    if isinstance(value, dict):
        return f"<{name}>{''.join(_entry(key, each) for key, each in value.items())}</{name}>"
    if value is None:
        return f"<{name} />"
    text = value if isinstance(value, str) else json.dumps(value)
    return f"<{name}>{html.escape(text, quote=False)}</{name}>"


def _entry(key: str, value: Any) -> str:
    """Return an element for the entry of a map, whose key may be no name."""
    if key.isidentifier():
        return _element(key, value)
    return _element("entry", value).replace("<entry", f'<entry key="{html.escape(key)}"', 1)


def _prose(values: Mapping[str, Any], schemas: Mapping[str, Schema]) -> str:
    return "\n\n".join(f"{name}: {_printed(value, schemas[name])}" for name, value in values.items())


def _printed(value: Any, schema: Schema) -> str:
    is_bare = isinstance(value, str) and _is_text(schema)
    return value if is_bare else json.dumps(value, ensure_ascii=False)


def _is_text(schema: Schema) -> bool:
    """Return whether DSPy takes the section for text, not for JSON."""
    alternatives = schema.get("anyOf", ())
    if {"type": "null"} in alternatives:
        return {"type": "string"} in alternatives
    return "enum" in schema or (schema.get("type") == "string" and "format" not in schema)


# The formats, by what follows "Respond with" in their prompts.
_CHAT, _JSON = "the corresponding output fields, starting", "a JSON object"
_XML = "the corresponding output fields wrapped"
REPLY_RULES = re.compile(rf"(?:\A|\n\n)Respond with ({_CHAT}|{_JSON}|{_XML})")
_CHAT_SECTION = re.compile(r"^\[\[ ## (\w+) ## \]\]\n(.*?)(?=^\[\[ ## |\Z)", re.DOTALL | re.MULTILINE)
_LAYOUTS: dict[str, Layout] = {
    _CHAT: Layout("[[ ## {} ## ]]\n".format, "".format, _CHAT_SECTION, _chat),
    _JSON: Layout("[[ ## {} ## ]]\n".format, "".format, _CHAT_SECTION, _json),
    _XML: Layout("<{}>\n".format, "\n</{}>".format, re.compile(r"^<(\w+)>(.*?)</\1>", re.DOTALL | re.MULTILINE), _xml),
}
# The format in two steps has no rules for the reply, but a system message of its own.
PROSE_SYSTEM = "You are a helpful assistant that can solve tasks based on user input.\n"
_PROSE = Layout(
    "{}: ".format, "".format, re.compile(r"^(\w+): (.*?)(?=\n\n\w+: |\Z)", re.DOTALL | re.MULTILINE), _prose
)
