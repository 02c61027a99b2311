"""The messages in a frame: requests, replies, events, negotiation. Field names are those on the wire."""

from __future__ import annotations

from typing import Any

import msgspec

from bridge.errors import BridgeError, ReplyTooLarge, readable, words_of
from bridge.security.redaction import redact_in, shorten

Id = int | str

LONGEST_TEXT = 4000  # characters of an error in a reply


class Envelope(msgspec.Struct, gc=False):
    """Represents a message from a host. A request has `id` and `command`; other messages are decoded again as
    what they are.

    args: undecoded until the command is known. session_id: takes precedence over the one in `args`.
    timeout_ms: counts from when the frame was read. stream: whether the host wants events. timing: whether the
    host wants to know how long each step took.
    """

    id: Id | msgspec.UnsetType = msgspec.UNSET
    command: str | msgspec.UnsetType = msgspec.UNSET
    args: msgspec.Raw = msgspec.Raw()
    session_id: str | None = None
    timeout_ms: float | None = None
    stream: bool = False
    timing: bool = False
    traceparent: str | None = None


class Reply(msgspec.Struct, gc=False):
    """Represents the reply to a request that succeeded. timestamp: ISO 8601, UTC."""

    id: Id | None
    success: bool
    result: Any
    timestamp: str


class Failure(msgspec.Struct, gc=False):
    """Represents the reply to a request that failed. error: one readable line."""

    id: Id | None
    success: bool
    error: str
    code: str
    category: str
    severity: str
    recovery: str
    details: dict[str, Any]
    timestamp: str


class TimedReply(Reply, gc=False):
    """Represents a reply with the time of each step, in microseconds, and its bytes: queue_us, decode_us,
    run_us, encode_us, bytes_in, bytes_out.

    encode_us and bytes_out do not include `timing` itself.
    """

    timing: dict[str, float]


class Event(msgspec.Struct, gc=False):
    """Represents progress of a call before its reply, sent if the request set `stream`; or a log record, sent
    if `hello` offered `logs` (id: of the request that the record is about, if any)."""

    id: Id | None
    event: str
    data: Any


class ReceivedReply(msgspec.Struct, gc=False):
    """Represents a reply as its receiver decodes it, whether the call succeeded or failed."""

    id: Id | None
    success: bool | None = None
    result: Any = None
    error: str = ""
    code: str = "internal"
    category: str = ""
    details: dict[str, Any] = {}


class ReceivedEvent(msgspec.Struct, gc=False):
    """Represents an event of the host before its reply to a call."""

    id: Id
    event: str
    data: Any = None


class Incoming(ReceivedReply, gc=False):
    """Represents a message from a worker: a reply (it has `success`), an event (`event`), or a call to
    the host (`command`), for which `call_id` is the request that the worker makes it for."""

    timing: dict[str, float] = {}
    event: str | None = None
    data: Any = None
    command: str | None = None
    args: dict[str, Any] = {}
    call_id: Id | None = None


class Negotiation(msgspec.Struct, gc=False):
    """Represents a host's offer of formats, in its first frame."""

    type: str
    supported: list[str] = []
    preferred: str | None = None


class Selection(msgspec.Struct, gc=False):
    """Represents the worker's choice of a format, its answer to a Negotiation."""

    type: str
    protocol: str
    timestamp: str


def failure(request_id: Id | None, error: BridgeError, timestamp: str) -> Failure:
    """Return `error` as the reply to the request `request_id` (None if its id is unknown).

    Every error of a worker passes through this function: secrets are redacted, and details that cannot be
    searched for secrets are omitted.
    """
    try:
        details: dict[str, Any] = redact_in(error.details)
    except Exception:  # of a handler's own values
        details = {}
    text = error.message if isinstance(error.message, str) else words_of(error)
    return Failure(
        request_id,
        False,
        readable(shorten(text, LONGEST_TEXT)),
        error.code,
        error.category,
        error.severity,
        error.recovery,
        details,
        timestamp,
    )


def shortened(failed: Failure, max_frame: int) -> Failure:
    """Return `failed` without details and with the beginning of its text, so that it fits in a frame of
    `max_frame` bytes unless its id is too long."""
    text = failed.error
    if len(text) > max_frame // 16:  # a character takes at most 6 bytes, in JSON
        text = text[: max_frame // 16] + "…"
    return msgspec.structs.replace(failed, error=text, details={})


def without_id(timestamp: str) -> Failure:
    """Return the reply in place of a failure whose id is too long for a frame."""
    return failure(None, ReplyTooLarge("the id of the request is too long for a reply"), timestamp)
