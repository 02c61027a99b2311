"""The closed table of error codes, with one exception class for each code.

A worker turns an exception into the error fields of a reply, and a client turns these fields into the same exception.
Categories, severities and recoveries tell the host how to react.
"""

from __future__ import annotations

from typing import Any, ClassVar

# How a host should treat an error: its severity and its recovery, see `BridgeError`.
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

RETRY_AFTER = 1.0  # seconds after which a host may ask an overloaded worker again: about as long as an LM call takes
SHOWN = 80  # characters of a value from outside that an error shows


class BridgeError(Exception):
    """Represents an error that a reply can carry. Only its subclasses are raised.

    message: one readable line. details: values that a program needs to react (`path`, `expected`, `retry_after` in
    seconds, …), of JSON types only.
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
            return  # it has the code of its base class
        if not cls.code or cls.code in CODES:
            raise TypeError(f"{cls.__name__} needs a unique error code, not {cls.code!r}")
        CODES[cls.code] = cls

    @property
    def severity(self) -> str:
        """Return how serious the error is: critical, major, minor or warning."""
        return (self.policy or CATEGORIES[self.category])[0]

    @property
    def recovery(self) -> str:
        """Return what the host should do: immediate_retry, backoff_retry, circuit_break, failover or abandon."""
        if "retry_after" in self.details or self.details.get("retryable"):
            return "backoff_retry"
        return (self.policy or CATEGORIES[self.category])[1]


class InvalidFrame(BridgeError):
    """The frame cannot be decoded in any known format."""

    code, category = "invalid_frame", "communication"


class FrameTooLarge(BridgeError):
    """The frame is longer than the receiver accepts."""

    code, category = "frame_too_large", "resource"

    @classmethod
    def announced(cls, length: int, limit: int) -> FrameTooLarge:
        return cls(
            f"frame of {length} bytes is longer than the limit of {limit} bytes",
            length=length,
            limit=limit,
        )


class ReplyTooLarge(BridgeError):
    """The reply would be longer than the limit for frames."""

    code, category = "reply_too_large", "resource"


class InvalidRequest(BridgeError):
    """The frame was decoded, but is not a valid request."""

    code, category = "invalid_request", "request"


class UnknownCommand(BridgeError):
    """This worker has no such command."""

    code, category = "unknown_command", "request"


class InvalidArgs(BridgeError):
    """The args of a command are missing, unknown, or of the wrong type."""

    code, category = "invalid_args", "request"


class NotEncodable(BridgeError):
    """The result contains a value that the format of the reply cannot represent."""

    code, category = "not_encodable", "python"


class DuplicateId(BridgeError):
    """A call with the same id has no reply yet."""

    code, category = "duplicate_id", "request"


class ProgramNotFound(BridgeError):
    """The session has no program with this id."""

    code, category = "program_not_found", "request"


class ProgramExists(BridgeError):
    """The session already has a program with this id."""

    code, category = "program_exists", "request"


class SessionNotFound(BridgeError):
    """There is no such session."""

    code, category = "session_not_found", "session"


class SessionLost(BridgeError):
    """Another worker has taken over the session."""

    code, category = "session_lost", "session"

    @classmethod
    def of(cls, session_id: str) -> SessionLost:
        return cls(f"session {session_id!r} belongs to another worker now")


class QuotaExceeded(BridgeError):
    """The session has reached its quota."""

    code, category = "quota_exceeded", "resource"


class StoreFailed(BridgeError):
    """The store of durable sessions, or its disk, has failed."""

    code, category, policy = "store_failed", "resource", ("major", "backoff_retry")


class OutcomeUnknown(StoreFailed):
    """The store became unreachable during a change, which it may have or not."""

    @classmethod
    def of(cls, reason: str) -> OutcomeUnknown:
        return cls(f"the store may have the change or not: {reason}", outcome="unknown")


class Overloaded(BridgeError):
    """The queue of the worker is full, or the worker does not have enough memory for the call."""

    code, category, policy = "overloaded", "resource", ("major", "failover")

    @classmethod
    def refused(cls, message: str, **details: Any) -> Overloaded:
        """Return the error for a call that was not started, so that it may be repeated whatever it does."""
        return cls(message, retry_after=RETRY_AFTER, started=False, **details)

    @classmethod
    def without_memory(cls, purpose: str) -> Overloaded:
        return cls(f"there is not enough memory {purpose}", retry_after=RETRY_AFTER)


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
    """The language model, or the connection to it, failed."""

    code, category = "lm_error", "python"


class HandlerError(BridgeError):
    """A handler raised an exception that has no error code."""

    code, category = "handler_error", "python"


class NotAllowed(BridgeError):
    """The operator has not allowed this."""

    code, category = "not_allowed", "request"


class WorkerCrashed(BridgeError):
    """The worker ended while a call was open, or before the call could be sent."""

    code, category = "worker_crashed", "connection"


class CircuitOpen(BridgeError):
    """Calls are not sent after repeated failures."""

    code, category, policy = "circuit_open", "resource", ("critical", "circuit_break")


class Internal(BridgeError):
    """A fault in this package."""

    code, category = "internal", "system"


def shown(value: Any) -> str:
    """Return a short description of a value from outside for an error: its repr if that is short and cannot fail,
    otherwise its beginning or its type."""
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
    """Return `text` with a question mark in place of each character that UTF-8 cannot encode."""
    if text.isascii():
        return text
    return text.encode("utf-8", "replace").decode()


def words_of(error: BaseException) -> str:
    """Return the text of an exception. Never raises, even if its `__str__` does."""
    try:
        return str(error)
    except BaseException:
        return "(its text cannot be read)"


def text_of(error: BaseException) -> str:
    """Return the first line of the text of an exception, with characters that UTF-8 cannot encode replaced."""
    return readable(words_of(error).strip().partition("\n")[0])


class CallEnded(BaseException):
    """Raised inside a handler whose call has ended: it was cancelled, is past its deadline, or its host is gone.

    It is not a subclass of Exception, so that `except Exception` in a handler or a library does not catch it.
    """


def from_reply(code: str, message: str, category: str, details: dict[str, Any]) -> BridgeError:
    """Return the exception for the error fields of a reply; an unknown code becomes Internal."""
    error = CODES.get(code, Internal)(message)
    error.details = details  # not as keyword arguments: the keys may be any text
    error.category = category if category in CATEGORIES else error.category
    return error
