"""What litellm's errors leave out: that no provider has answered, and when it wants to be asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dspy import lm15
from dspy.clients._http import retry_after_seconds

from bridge.adapters.dspy.retries import causes


@contextmanager
def litellm_errors() -> Iterator[None]:
    """Complete the errors that are raised inside."""
    try:
        yield
    except lm15.LM15Error as error:
        import httpx  # only once litellm has loaded it

        failed = any(isinstance(cause, httpx.TransportError) for cause in causes(error))
        if failed and not isinstance(error, lm15.TimeoutError | lm15.TransportError):
            # litellm makes up a status of 500.
            raise lm15.TransportError(error.message, provider=error.provider) from error
        if error.retry_after is None:
            error.retry_after = _retry_after(error)
        raise


def _retry_after(error: lm15.LM15Error) -> float | None:
    for cause in causes(error):
        headers = getattr(getattr(cause, "response", None), "headers", None) or {}
        seconds: float | None = retry_after_seconds(headers.get("retry-after"))
        if seconds is not None:
            return seconds
    return None
