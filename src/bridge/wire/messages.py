"""What stands in a frame: request, reply, failure. Field names are the wire's."""

from __future__ import annotations

from typing import Any

import msgspec

from bridge.errors import BridgeError, ReplyTooLarge, readable, words_of
from bridge.security.redaction import redact_in, shorten

Id = int | str

LONGEST_TEXT = 4000  # characters of an error


class Envelope(msgspec.Struct, gc=False):
    """Represents a message from a host: a request (it has a `command`), the reply to a call of the worker
    (`success`), or a negotiation of the format (`type`).

    args: undecoded until the command is known. session_id: takes precedence over the one in `args`.
    timeout_ms: counts from the moment the frame is read. stream: the host wants events. timing: the
    host wants to know how long each step took. success, type: only whether they are there; such a
    message is decoded as what it is.
    """

    id: Id | None = None
    command: str | None = None
    args: msgspec.Raw = msgspec.Raw()
    session_id: str | None = None
    timeout_ms: float | None = None
    stream: bool = False
    timing: bool = False
    traceparent: str | None = None
    success: msgspec.Raw = msgspec.Raw()
    type: msgspec.Raw = msgspec.Raw()


class Reply(msgspec.Struct, gc=False):
    """The reply of a command that succeeded. timestamp: ISO 8601, UTC."""

    id: Id | None
    success: bool
    result: Any
    timestamp: str


class Failure(msgspec.Struct, gc=False):
    """The reply of one that did not. `error` is one readable line."""

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
    """A reply that says what it took: queue_us, decode_us, run_us, encode_us, bytes_in, bytes_out.

    encode_us and bytes_out are those of the reply without this.
    """

    timing: dict[str, float]


class Event(msgspec.Struct, gc=False):
    """Something of a call that is not its reply; only where the request asked with `stream`, or
    for `log` events (id: that of the request logged about, if any) in `hello`."""

    id: Id | None
    event: str
    data: Any


class ReceivedReply(msgspec.Struct, gc=False):
    """Represents a reply to one's own call, whether it succeeded or failed."""

    id: Id | None
    success: bool | None = None
    result: Any = None
    error: str = ""
    code: str = "internal"
    category: str = ""
    details: dict[str, Any] = {}


class Incoming(ReceivedReply, gc=False):
    """Represents a message from a worker: a reply (it has `success`), an event (`event`), or a call to
    the host (`command`)."""

    timing: dict[str, float] = {}
    event: str | None = None
    data: Any = None
    command: str | None = None
    args: dict[str, Any] = {}


class Negotiation(msgspec.Struct, gc=False):
    """The first frame of a host that asks which format to speak."""

    type: str
    supported: list[str] = []
    preferred: str | None = None


class Selection(msgspec.Struct, gc=False):
    """The answer to it."""

    type: str
    protocol: str
    timestamp: str


def failure(request_id: Id | None, error: BridgeError, timestamp: str) -> Failure:
    """`error` as the reply to the request `request_id` (None where its id is unknown).

    All text of errors passes here on its way out, and secrets are redacted. Details that cannot be
    searched for them are left out.
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
    """`failed` without details and with only the beginning of its text: a frame holds it with any
    id that is not long itself."""
    text = failed.error
    if len(text) > max_frame // 16:  # a character takes at most 6 bytes, in JSON
        text = text[: max_frame // 16] + "…"
    return msgspec.structs.replace(failed, error=text, details={})


def without_id(timestamp: str) -> Failure:
    """Return the reply in place of a failure whose id is too long for a frame."""
    return failure(None, ReplyTooLarge("the id of the request is too long for a reply"), timestamp)
