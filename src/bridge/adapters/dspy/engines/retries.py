"""Retries of failed requests to models, and their timeouts."""

from __future__ import annotations

import random
import socket
import ssl
from collections.abc import Iterator

import msgspec
from dspy import lm15
from dspy._vendor.lm15.transports import ConnectError, ReadTimeout

# Few different timeouts, because DSPy creates an engine, and its connections, for each.
TIMEOUTS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0)  # seconds

# No server answers at the address, or the answer takes longer than the timeout: repeating would not help.
_FINAL_CAUSES = (
    ConnectError,
    ConnectionRefusedError,
    ReadTimeout,
    TimeoutError,
    socket.gaierror,
    ssl.SSLError,
)


class Retries(msgspec.Struct, frozen=True):
    """When failed requests are sent again.

    count: how many times. first_wait, longest_wait: seconds; each wait is twice as long as the one before, up to the
    longest.
    """

    count: int = 2
    first_wait: float = 0.5
    longest_wait: float = 10.0

    def wait(self, error: lm15.LM15Error, attempt: int, remaining: float | None) -> float | None:
        """Return how many seconds to wait after attempt number `attempt` (from 1), or None if it was the last one.

        remaining: seconds until the call's deadline.
        """
        if attempt > self.count or not is_transient(error):
            return None
        limit = self.longest_wait if remaining is None else min(self.longest_wait, remaining)
        if error.retry_after is not None:
            # The provider refuses earlier requests.
            return error.retry_after if error.retry_after <= limit else None
        longest = min(self.first_wait * 2.0 ** (attempt - 1), self.longest_wait)
        wait = longest * random.uniform(0.5, 1.0)  # so that calls that failed together do not repeat together
        return wait if wait <= limit else None


NO_RETRIES = Retries(count=0)


def is_transient(error: lm15.LM15Error) -> bool:
    """Return whether the same request may succeed a little later.

    True for the statuses 408, 409, 429 and 5xx, and for broken connections. False for unreachable addresses, for
    our own timeouts, and for refused requests.
    """
    if not isinstance(
        error,
        lm15.RateLimitError | lm15.ServerError | lm15.TimeoutError | lm15.TransportError | lm15.StreamAssemblyError,
    ):
        return bool(error.status == 409)
    return not any(isinstance(cause, _FINAL_CAUSES) for cause in causes(error))


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the causes of `error`, the nearest first."""
    seen: set[int] = set()
    cause = error.__cause__ or error.__context__
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def timeout_within(timeout: float, remaining: float | None) -> float:
    """Return a timeout in seconds that is at most `timeout`, and not much longer than `remaining`."""
    if remaining is None:
        return timeout
    return min(timeout, next((each for each in TIMEOUTS if each >= remaining), timeout))
