"""A reply without a form: another model extracts its fields."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any


class ProseReply:
    """A reply of which no field is read or streamed (see Reply)."""

    def __init__(self, names: Iterable[str]) -> None:
        self.headers: list[str] = []
        self.texts: dict[str, str] = {}

    def feed(self, text: str) -> list[tuple[str, str]]:
        return []

    def finish(self) -> list[tuple[str, str]]:
        return []

    def value(self, name: str, type: Any) -> Any:
        raise ValueError("the reply has no fields")

    @classmethod
    def written(cls, fields: Mapping[str, Any]) -> str:
        lines = (
            f"{name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
            for name, value in fields.items()
        )
        return "\n\n".join(lines)
