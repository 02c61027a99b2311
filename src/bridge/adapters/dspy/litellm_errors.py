"""What litellm's errors leave out: that no provider has answered, and when it wants to be asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
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
        for cause in causes(error):
            if isinstance(cause, httpx.HTTPStatusError):
                _complete(error, cause.response)
                break
        raise


def _complete(error: lm15.LM15Error, response: Any) -> None:
    """Add what the provider's `response` says and litellm's error does not."""
    if error.retry_after is None:
        error.retry_after = retry_after_seconds(response.headers.get("retry-after"))
    if error.provider_code is None:
        try:
            code = msgspec.json.decode(response.text, type=_Body).error.code
        except Exception:  # nothing that has such a code
            return
        error.provider_code = code


class _Failure(msgspec.Struct):
    code: str


class _Body(msgspec.Struct):
    error: _Failure
