"""What the error of a row means for the others: go on, wait, or stop."""

from __future__ import annotations

import math
from enum import Enum

from bridge.errors import BridgeError

LONGEST_WAIT = 60.0  # seconds between two attempts, unless an error asks for more


class Verdict(Enum):
    """Tells what to do after an error.

    ROW: it is this row's result. WAIT: ask again later; other rows would fail, too. CRASH: ask again; the worker that
    had the row has ended. STOP: all rows would fail until somebody changes something.
    """

    ROW = "row"
    WAIT = "wait"
    CRASH = "crash"
    STOP = "stop"


WAITING = ("circuit_open", "overloaded", "store_failed")
STOPPING = ("lm_not_configured", "program_not_found", "unknown_command", "session_lost")
ACCOUNT = (401, 402, 403, 404)  # statuses of HTTP that do not depend on the row: the key, the credit, the model

TOO_MANY = 429
DOWN = (TOO_MANY, 502, 503, 504, 529)  # statuses of a provider that has not given the row to its model


def verdict_of(error: BridgeError, row_path: str) -> Verdict:
    """Return what to do after an error. row_path: where the row is in the args of the call."""
    details = error.details
    if error.code == "worker_crashed":
        return Verdict.WAIT if error.category == "initialization" else Verdict.CRASH
    if error.code in WAITING:
        return Verdict.WAIT
    if error.code == "lm_error":
        if details.get("status") in ACCOUNT or details.get("lm_code") == "not_configured":  # there is no key
            return Verdict.STOP
        return Verdict.WAIT if error.recovery == "backoff_retry" else Verdict.ROW
    if error.code == "invalid_args":
        path = details.get("path")
        return Verdict.STOP if isinstance(path, str) and not path.startswith(row_path) else Verdict.ROW
    is_of_metric = error.code == "handler_error" and "row" in details  # as `evaluate` reports it
    return Verdict.STOP if is_of_metric or error.code in STOPPING else Verdict.ROW


def is_rate_limit(error: BridgeError) -> bool:
    """Return whether a model refuses requests because there are too many."""
    return error.details.get("status") == TOO_MANY or error.details.get("lm_code") == "rate_limit"


def may_be_outage(error: BridgeError) -> bool:
    """Return whether other rows would probably have the error, too: no model has read this one."""
    return error.details.get("status") in (None, *DOWN)


def blame_of(error: BridgeError) -> float:
    """Return how much it says against a row, from 0 to 1, that it has an error to wait after while others succeed."""
    if error.code == "circuit_open":  # the row was not sent
        return 0.0
    return 0.1 if is_rate_limit(error) else 1.0


def wait_after(error: BridgeError, failures: int) -> float:
    """Return the seconds to wait after an error: what it asks for, or more after each failure in a row."""
    after = error.details.get("retry_after")
    if isinstance(after, int | float) and not isinstance(after, bool) and 0 <= after < math.inf:
        return max(float(after), 0.1)
    return min(LONGEST_WAIT, 2.0 ** min(failures, 10))
