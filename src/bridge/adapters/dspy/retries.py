"""When a request to a model is sent again, and after how long."""

from __future__ import annotations

import random
import socket
import ssl
from collections.abc import Iterator

import msgspec
from dspy import lm15
from dspy._vendor.lm15.transports import ConnectError, ReadTimeout

# Nobody answers there, or the time that an answer may take is over: both would be so again.
_FINAL_CAUSES = (
    ConnectError,
    ConnectionRefusedError,
    ReadTimeout,
    TimeoutError,
    socket.gaierror,
    ssl.SSLError,
)


class Retries(msgspec.Struct, frozen=True):
    """count: how often a failed request is sent again. first_wait, longest_wait: in seconds; each
    wait is twice as long as the one before, up to the longest."""

    count: int = 2
    first_wait: float = 0.5
    longest_wait: float = 10.0

    def wait(self, error: lm15.LM15Error, attempt: int, remaining: float | None) -> float | None:
        """Return how long to wait after the attempt of that number (from 1), or None where that
        was the last one. remaining: seconds until the call's deadline."""
        if attempt > self.count or not is_transient(error):
            return None
        limit = self.longest_wait if remaining is None else min(self.longest_wait, remaining)
        if error.retry_after is not None:
            # The provider will not answer sooner, so a shorter wait would be in vain.
            return error.retry_after if error.retry_after <= limit else None
        longest = min(self.first_wait * 2.0 ** (attempt - 1), self.longest_wait)
        wait = longest * random.uniform(0.5, 1.0)  # calls that failed together come back apart
        return wait if wait <= limit else None


NO_RETRIES = Retries(count=0)


def is_transient(error: lm15.LM15Error) -> bool:
    """Return whether the same request may succeed a little later.

    True for the statuses 408, 409, 429 and 5xx, and for connections that break. False for addresses
    that cannot be reached, for timeouts of our own, and for requests that are refused.
    """
    if not isinstance(
        error,
        lm15.RateLimitError | lm15.ServerError | lm15.TimeoutError | lm15.TransportError | lm15.StreamAssemblyError,
    ):
        return bool(error.status == 409)
    return not any(isinstance(cause, _FINAL_CAUSES) for cause in causes(error))


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield what `error` was raised from, the nearest first."""
    seen: set[int] = set()
    cause = error.__cause__ or error.__context__
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
