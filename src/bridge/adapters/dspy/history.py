"""The last calls of each session's models, with their prompts and replies. They are in memory only, and end with it."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from bridge._dispatch import timestamp

if TYPE_CHECKING:
    from bridge.adapters.dspy.recorder import Exchange

LARGEST = 16 << 20  # bytes of all calls of a session; the oldest are dropped first


class History:
    """The last calls of one session's models, without secrets. Usable from several threads."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._calls: deque[tuple[int, bytes]] = deque()  # encoded, so that their sizes are known
        self._size = 0
        self._lock = threading.Lock()

    def add(self, exchange: Exchange, program_id: str | None, most: int) -> None:
        """Add a call, and drop the oldest ones until there are no more than `most`."""
        call = {
            "timestamp": timestamp(),
            "program_id": program_id,
            **exchange.usage,
            "cost": exchange.cost,
            "execution_time": exchange.seconds,
            **exchange.prompt,
        }
        encoded = msgspec.json.encode(call)
        with self._lock:
            self._calls.append((next(self._ids), encoded))
            self._size += len(encoded)
            while len(self._calls) > most or self._size > LARGEST:
                self._size -= len(self._calls.popleft()[1])

    def calls(self, limit: int) -> list[dict[str, Any]]:
        """Return the last `limit` calls, the newest last."""
        with self._lock:
            kept = list(self._calls)
        return [_decoded(*call) for call in kept[max(0, len(kept) - limit) :]]

    def find(self, call_id: int) -> dict[str, Any] | None:
        """Return the call of that id, or None if there is none any more."""
        with self._lock:
            encoded = dict(self._calls).get(call_id)
        return None if encoded is None else _decoded(call_id, encoded)


def history_of(session: object) -> History:
    """Return the history of a session."""
    with _creating:
        return _histories.setdefault(session, History())


_histories: weakref.WeakKeyDictionary[object, History] = weakref.WeakKeyDictionary()
_creating = threading.Lock()
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def _decoded(call_id: int, encoded: bytes) -> dict[str, Any]:
    return {"id": call_id, **_decode(encoded)}


def as_text(call: dict[str, Any]) -> str:
    """Return the messages and the reply of a call as a text to read."""
    sections = [(message["role"], message["content"]) for message in call["messages"]]
    sections += [(name, call[name]) for name in ("reply", "other_parts", "error") if call.get(name)]
    return "\n\n".join(f"{title}:\n\n{_shown(content)}" for title, content in sections)


def _shown(content: Any) -> str:
    if isinstance(content, str):
        return content
    return msgspec.json.format(msgspec.json.encode(content)).decode()
