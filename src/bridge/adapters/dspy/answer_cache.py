"""Answers of language models, kept for requests that come again: `cache` of configure_lm."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from typing import Any

from dspy._vendor.lm15.serde import request_to_dict


class Answers:
    """The last `size` answers to requests of one session to one model, by all that the requests
    hold. In memory; the one that was not asked for the longest goes first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[bytes, Any] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, request: Any) -> Any:
        """The lm15.Response to that lm15.Request, or None."""
        key = _key(request)
        with self._lock:
            response = self._kept.get(key)
            if response is not None:
                self._kept.move_to_end(key)
            return response

    def keep(self, request: Any, response: Any) -> None:
        """From now on `find` has it."""
        key = _key(request)
        with self._lock:
            self._kept[key] = response
            self._kept.move_to_end(key)
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)


def _key(request: Any) -> bytes:
    # Messages, tools, settings: all of it. DSPy's own cache is keyed by the same.
    text = json.dumps(request_to_dict(request), sort_keys=True)
    return hashlib.sha256(text.encode()).digest()
