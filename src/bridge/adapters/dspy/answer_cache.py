"""Cached responses of language models, for requests that are repeated: `cache` of configure_lm."""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections import OrderedDict

import msgspec
from dspy import lm15

from bridge.adapters.dspy.settings import Model

AnswerKey = bytes


class AnswerCache:
    """The last `size` responses of one model to one session, in memory; the least recently used is dropped first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._responses: OrderedDict[AnswerKey, lm15.Response] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, key: AnswerKey) -> lm15.Response | None:
        """Return the response to an equal request, or None."""
        with self._lock:
            response = self._responses.get(key)
            if response is not None:
                self._responses.move_to_end(key)
            return response

    def add(self, key: AnswerKey, response: lm15.Response) -> None:
        """Add `response`, or replace the response to an equal request."""
        with self._lock:
            self._responses[key] = response
            self._responses.move_to_end(key)
            while len(self._responses) > self._size:
                self._responses.popitem(last=False)


def cache_of(model: Model, session: object) -> AnswerCache | None:
    """Return the cache of a session's answers of `model`; None if the model has no cache.

    session: an object that lives as long as the session's state.
    """
    if not model.cache:
        return None
    with _creating:
        caches = _caches.setdefault(model, weakref.WeakKeyDictionary())
        return caches.setdefault(session, AnswerCache(model.cache))


_caches: weakref.WeakKeyDictionary[Model, weakref.WeakKeyDictionary[object, AnswerCache]] = weakref.WeakKeyDictionary()
_creating = threading.Lock()


# All of the request counts: messages, tools and settings, as in DSPy's own cache. The order of a map's keys does not.
_encode = msgspec.msgpack.Encoder(order="deterministic", enc_hook=str).encode


def key_of(request: lm15.Request, *numbers: int | None) -> AnswerKey:
    """Return the key of a request's response: equal for requests that are equal.

    numbers: tell apart equal requests that are to have answers of their own.
    """
    return hashlib.sha256(_encode((request, numbers))).digest()
