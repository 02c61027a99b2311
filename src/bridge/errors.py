"""The closed table of error codes, and one exception class for each.

Both ends share it: a worker turns an exception into the error half of a reply, a client turns
that half into the same exception. Categories, severities and recoveries are the failure policy's.
"""

from __future__ import annotations

from typing import Any, ClassVar

# What a host should make of an error: how bad (critical, major, minor, warning), and what to do
# (immediate_retry, backoff_retry, circuit_break, failover, abandon).
Policy = tuple[str, str]

CATEGORIES: dict[str, Policy] = {
    "initialization": ("critical", "immediate_retry"),
    "connection": ("major", "backoff_retry"),
    "communication": ("major", "immediate_retry"),
    "timeout": ("major", "backoff_retry"),
    "resource": ("minor", "abandon"),
    "health_check": ("minor", "backoff_retry"),
    "session": ("minor", "immediate_retry"),
    "python": ("major", "abandon"),
    "request": ("warning", "abandon"),
    "system": ("critical", "abandon"),
}

CODES: dict[str, type[BridgeError]] = {}

RETRY_AFTER = 1.0  # seconds until an overloaded worker is asked again: about that of an LM call
SHOWN = 80  # characters of a foreign text that an error shows


class BridgeError(Exception):
    """Root of all errors that a reply can carry; never raised itself.

    message: one readable line. details: what a program needs to react (`path`, `expected`,
    `retry_after` in seconds, …), of JSON types only.
    """

    code: ClassVar[str] = ""
    category: str = "system"
    policy: ClassVar[Policy | None] = None

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    def __init_subclass__(cls) -> None:
        if cls.code and "code" not in vars(cls):
            return  # a special case of the error that it derives from
        if not cls.code or cls.code in CODES:
            raise TypeError(f"{cls.__name__} needs an error code of its own, not {cls.code!r}")
        CODES[cls.code] = cls

    @property
    def severity(self) -> str:
        return (self.policy or CATEGORIES[self.category])[0]

    @property
    def recovery(self) -> str:
        if "retry_after" in self.details or self.details.get("retryable"):
            return "backoff_retry"
        return (self.policy or CATEGORIES[self.category])[1]


class InvalidFrame(BridgeError):
    """A frame that no codec can read."""

    code, category = "invalid_frame", "communication"


class FrameTooLarge(BridgeError):
    """A frame announced more bytes than the receiver accepts."""

    code, category = "frame_too_large", "resource"

    @classmethod
    def announced(cls, length: int, limit: int) -> FrameTooLarge:
        return cls(
            f"frame of {length} bytes is longer than the limit of {limit} bytes",
            length=length,
            limit=limit,
        )


class ReplyTooLarge(BridgeError):
    """A reply would be longer than the limit for frames."""

    code, category = "reply_too_large", "resource"


class InvalidRequest(BridgeError):
    """A frame was read, but its envelope is not that of a request."""

    code, category = "invalid_request", "request"


class UnknownCommand(BridgeError):
    """No adapter of this worker has such a command."""

    code, category = "unknown_command", "request"


class InvalidArgs(BridgeError):
    """The args of a command are missing, unknown, or of the wrong type."""

    code, category = "invalid_args", "request"


class NotEncodable(BridgeError):
    """A result holds what the reply's format cannot carry."""

    code, category = "not_encodable", "python"


class DuplicateId(BridgeError):
    """A request reused the id of one that has no reply yet."""

    code, category = "duplicate_id", "request"


class ProgramNotFound(BridgeError):
    """The session has no program of that id."""

    code, category = "program_not_found", "request"


class ProgramExists(BridgeError):
    """The session already has a program of that id."""

    code, category = "program_exists", "request"


class SessionNotFound(BridgeError):
    """No such session."""

    code, category = "session_not_found", "session"


class SessionLost(BridgeError):
    """The session belongs to another worker now."""

    code, category = "session_lost", "session"

    @classmethod
    def of(cls, session_id: str) -> SessionLost:
        return cls(f"session {session_id!r} belongs to another worker now")


class QuotaExceeded(BridgeError):
    """The session may not hold more."""

    code, category = "quota_exceeded", "resource"


class StoreFailed(BridgeError):
    """The disk, or the file that durable sessions are kept in, fails."""

    code, category, policy = "store_failed", "resource", ("major", "backoff_retry")


class Overloaded(BridgeError):
    """The worker's queue is full, or it has no memory for the call."""

    code, category, policy = "overloaded", "resource", ("major", "failover")

    @classmethod
    def without_memory(cls, purpose: str) -> Overloaded:
        return cls(f"there is no memory {purpose}", retry_after=RETRY_AFTER)


class DeadlineExceeded(BridgeError):
    """The call's deadline has passed."""

    code, category = "deadline_exceeded", "timeout"


class Cancelled(BridgeError):
    """The caller cancelled the call."""

    code, category = "cancelled", "request"


class LMNotConfigured(BridgeError):
    """The session has no language model."""

    code, category = "lm_not_configured", "request"


class LMError(BridgeError):
    """The language model, or the way to it, failed."""

    code, category = "lm_error", "python"


class HandlerError(BridgeError):
    """A handler raised something that is not one of these errors."""

    code, category = "handler_error", "python"


class NotAllowed(BridgeError):
    """The operator has not allowed that."""

    code, category = "not_allowed", "request"


class WorkerCrashed(BridgeError):
    """The worker ended while a call was open, or before it could be made."""

    code, category = "worker_crashed", "connection"


class CircuitOpen(BridgeError):
    """Calls are held back after repeated failures."""

    code, category, policy = "circuit_open", "resource", ("critical", "circuit_break")


class Internal(BridgeError):
    """A fault of this package."""

    code, category = "internal", "system"


def shown(value: Any) -> str:
    """What an error's text says of a foreign value: its repr where that is short and cannot fail,
    else its beginning or its type."""
    kind = type(value)
    if value is None or kind is bool or kind is float:
        return repr(value)
    if isinstance(value, str):
        return repr(readable(value[:SHOWN])) + ("…" if len(value) > SHOWN else "")
    if kind is int:
        return repr(value) if value.bit_length() <= 256 else f"an integer of {value.bit_length()} bits"
    if kind is bytes:
        return repr(value[:SHOWN]) + ("…" if len(value) > SHOWN else "")
    return f"a value of type {kind.__name__}"


def readable(text: str) -> str:
    """`text` with a question mark in place of each character that UTF-8 cannot hold."""
    if text.isascii():
        return text
    return text.encode("utf-8", "replace").decode()


def words_of(error: BaseException) -> str:
    """The text of an exception, whatever its `__str__` does."""
    try:
        return str(error)
    except BaseException:
        return "(its text cannot be read)"


def text_of(error: BaseException) -> str:
    """The first line of that, readable."""
    return readable(words_of(error).strip().partition("\n")[0])


class CallEnded(BaseException):
    """Raised inside a handler whose call is over: cancelled, late, or its host is gone.

    No Exception, so that nothing on the way to the dispatcher takes it for a fault to go on from.
    """


def from_reply(code: str, message: str, category: str, details: dict[str, Any]) -> BridgeError:
    """The exception for the error half of a reply; unknown codes become Internal."""
    error = CODES.get(code, Internal)(message)
    error.details = details  # of any keys
    error.category = category if category in CATEGORIES else error.category
    return error
