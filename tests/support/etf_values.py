"""Values and terms in Erlang's external term format, for its tests."""

from __future__ import annotations

import zlib


def compressed(data: bytes, announced: int | None = None) -> bytes:
    size = len(data) if announced is None else announced
    return b"\x83P" + size.to_bytes(4, "big") + zlib.compress(data)
