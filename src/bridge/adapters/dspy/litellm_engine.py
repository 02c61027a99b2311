"""What litellm's errors leave out: that no provider has answered, and when it wants to be asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
    try:
        said = json.loads(response.text)["error"]
        message, code = said["message"], said.get("code")
    except Exception:  # of a body in some other shape, or none
        return
    if isinstance(message, str):
        error.message = message
    if isinstance(code, str) and error.provider_code is None:
        error.provider_code = code
