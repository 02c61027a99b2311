"""Tools of the host, as data that a session stores, and the names by which models call them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec


class Tool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tool of the host. args: the JSON Schema of each argument by name, or one schema of the object of all."""

    name: str
    description: str = ""
    args: dict[str, Any] = {}


DEFAULT_FOUND = 5  # texts
MOST_FOUND = 50
_SEARCH_ARGS = {
    "query": {"type": "string", "description": "what to look for, in the words that the texts may contain"},
    "k": {
        "type": "integer",
        "minimum": 1,
        "maximum": MOST_FOUND,
        "default": DEFAULT_FOUND,
        "description": "how many texts to return",
    },
}


class SearchTool(Tool, frozen=True):
    """A tool that searches an index of the session, without the host. index_id: of the index."""

    index_id: str = ""

    @classmethod
    def of(cls, index_id: str) -> SearchTool:
        """Return the tool that searches the index of that id."""
        description = f"Return the texts in {index_id} that match a query best."
        return cls(f"search_{index_id}", description, _SEARCH_ARGS, index_id)


def model_names(tools: Iterable[Tool], taken: Iterable[str]) -> list[str]:
    """Return the name by which a model calls each tool.

    That is the host's name if providers accept it and it is not among `taken`, else a similar one.
    """
    found: list[str] = []
    names = [*tools]
    used = {*taken, *(tool.name for tool in names if _is_accepted(tool.name))}
    for tool in names:
        name = tool.name
        if not _is_accepted(name) or name in taken:
            stem = "".join(char if _is_accepted(char) else "_" for char in name)[:50]
            name, count = stem, 1
            while name in used:
                count += 1
                name = f"{stem}_{count}"
        used.add(name)
        found.append(name)
    return found


def _is_accepted(name: str) -> bool:
    """Return whether OpenAI, Anthropic and Gemini all accept `name` as a tool's."""
    word = name.replace("_", "").replace("-", "")
    return 0 < len(name) <= 64 and name.isascii() and (word.isalnum() or not word)
