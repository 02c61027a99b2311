"""Messages to frames, as a client sends them, or errors for what no frame can hold."""

from __future__ import annotations

from typing import Any

from bridge import errors
from bridge._framing import Outbox
from bridge.wire._walk import FORGED, LONG, NOT_FINITE, OTHER, TOO_LARGE, survey
from bridge.wire.codec import Format, refuse_non_finite
from bridge.wire.tensors import collecting, set_apart

HEADER_BYTES = 4


def encoded(message: dict[str, Any], name: str, format: Format, max_frame: int) -> Outbox:
    """Encode `message` as a frame; `name` is the part of it that the caller made. Raises
    NotEncodable, FrameTooLarge."""
    outbox = Outbox()
    try:
        found = survey(message, max_frame)
        if found & TOO_LARGE:
            raise errors.FrameTooLarge(f"{name} takes more than the {max_frame} bytes of a frame", limit=max_frame)
        if found & NOT_FINITE and not format.carries_nan:
            refuse_non_finite(message[name], name)
        if not found & (LONG | OTHER):
            outbox.append(format.encode_into, message)
        elif found & FORGED:
            raise ValueError("a map of $buffer or $tensor alone is how arrays are named")
        else:
            buffers: list[Any] = []
            encode_into = collecting(format.encode_into, buffers)
            outbox.append_multipart(encode_into, set_apart(message), buffers)
    except (errors.BridgeError, MemoryError):
        raise
    except Exception as error:  # of every kind that a value's own code raises
        if isinstance(error, ValueError):  # says where, if that is what it was
            refuse_non_finite(message.get(name), name)
        text = f"{name} cannot be encoded as {format.name}: {errors.text_of(error)}"
        raise errors.NotEncodable(text) from error
    length = len(outbox) - HEADER_BYTES
    if length > max_frame:
        raise errors.FrameTooLarge.announced(length, max_frame)
    return outbox
