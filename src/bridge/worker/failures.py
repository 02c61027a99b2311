"""The errors that a host gets for exceptions: one function for each kind of code that raises them."""

from __future__ import annotations

import msgspec

from bridge import errors
from bridge.security.redaction import first_line

LONGEST_LINE = 1000  # characters of an exception's text


def of_frame(error: Exception) -> errors.BridgeError:
    """Return the error for a frame that could not be decoded as a message."""
    if isinstance(error, errors.BridgeError):
        return error
    if isinstance(error, MemoryError):
        return errors.Overloaded.without_memory("to decode the request")
    if isinstance(error, RecursionError):
        return errors.InvalidRequest("the request is nested too deeply")
    if isinstance(error, msgspec.ValidationError):
        return errors.InvalidRequest(f"not a request: {errors.text_of(error)}")
    return errors.InvalidFrame(f"the frame does not decode: {errors.text_of(error)}")


def of_handler(error: BaseException) -> errors.BridgeError:
    """Return the error for what a handler raised."""
    if isinstance(error, errors.BridgeError):
        return error
    return errors.HandlerError(_one_line(error), type=type(error).__name__)


def of_result(error: BaseException, command: str, format: str) -> errors.BridgeError:
    """Return the error for a result that could not be encoded."""
    if isinstance(error, MemoryError):
        return errors.Overloaded.without_memory(f"to encode the result of {command}")
    if isinstance(error, errors.BridgeError):
        return error
    return errors.NotEncodable(f"the result of {command} cannot be encoded as {format}: {_one_line(error)}")


def of_worker(error: BaseException) -> errors.BridgeError:
    """Return the error for a fault in the worker itself."""
    if isinstance(error, MemoryError):
        return errors.Overloaded.without_memory("to answer the call")
    return errors.Internal(f"a fault of the worker: {type(error).__name__}")


def _one_line(error: BaseException) -> str:
    """Return the type of an exception and the first line of its text."""
    name, text = type(error).__name__, first_line(errors.words_of(error), LONGEST_LINE)
    return f"{name}: {text}" if text else name
