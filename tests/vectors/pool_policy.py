"""What a pool does after an error, as data that `make.py` writes into policy.json: decisions, delays, the breaker and
the retry budget. Nothing here is computed by the code that it tests. Times are in ms.
"""

from __future__ import annotations

from typing import Any

ABANDONED = "critical abandon"
# Of calls that may run twice, while other slots take calls and the random number is 0.5. Category, whom the failure
# counts against, and what is decided after attempt 1, 2, …; the last entry holds from then on.
BY_CODE: dict[str, tuple[str, str, list[str]]] = {
    "invalid_frame": ("communication", "", ["major immediate_retry another_slot 0", *["major circuit_break"] * 2,
                                            ABANDONED]),
    "frame_too_large": ("resource", "", [*["minor abandon"] * 3, "major failover"]),
    "reply_too_large": ("resource", "", [*["minor abandon"] * 3, "major failover"]),
    "quota_exceeded": ("resource", "", [*["minor abandon"] * 3, "major failover"]),
    "store_failed": ("resource", "", ["major backoff_retry same_slot 1000", "major backoff_retry same_slot 2000",
                                      "major backoff_retry same_slot 4000", ABANDONED]),
    "overloaded": ("resource", "", ["major failover another_slot 0", *["major failover"] * 2, ABANDONED]),
    "circuit_open": ("resource", "", [*["critical circuit_break"] * 2, ABANDONED]),
    "invalid_request": ("request", "", [*["warning abandon"] * 3, "minor abandon"]),
    "unknown_command": ("request", "", [*["warning abandon"] * 3, "minor abandon"]),
    "invalid_args": ("request", "", [*["warning abandon"] * 3, "minor abandon"]),
    "duplicate_id": ("request", "", [*["warning abandon"] * 3, "minor abandon"]),
    "program_not_found": ("request", "", [*["warning abandon"] * 3, "minor abandon"]),
    "program_exists": ("request", "", [*["warning abandon"] * 3, "minor abandon"]),
    "lm_not_configured": ("request", "", [*["warning abandon"] * 3, "minor abandon"]),
    "cancelled": ("request", "", [*["warning abandon"] * 3, "minor abandon"]),
    "not_allowed": ("request", "", [*["warning abandon"] * 3, "minor abandon"]),
    "not_encodable": ("python", "", [*["major abandon"] * 3, ABANDONED]),
    "handler_error": ("python", "", [*["major abandon"] * 3, ABANDONED]),
    "lm_error": ("python", "", [*["major abandon"] * 3, ABANDONED]),
    "session_not_found": ("session", "", ["minor immediate_retry same_slot 0", "minor immediate_retry same_slot 100",
                                          "minor immediate_retry same_slot 200", "major immediate_retry"]),
    "session_lost": ("session", "", ["minor immediate_retry same_slot 0", "minor immediate_retry same_slot 100",
                                     "minor immediate_retry same_slot 200", "major immediate_retry"]),
    "deadline_exceeded": ("timeout", "breaker", ["major backoff_retry same_slot 1000",
                                                 "major backoff_retry same_slot 2000",
                                                 "major backoff_retry same_slot 4000", ABANDONED]),
    "worker_crashed": ("connection", "slot", ["major backoff_retry another_slot 0",
                                              "major backoff_retry another_slot 2000",
                                              "major backoff_retry another_slot 4000", ABANDONED]),
    "internal": ("system", "", [*["critical abandon"] * 2, ABANDONED]),
}  # fmt: skip
ATTEMPTS = 7

CRASH = {"code": "worker_crashed"}
KILLED = {"code": "worker_crashed", "details": {"exit_status": 137}}
LATE = {"code": "deadline_exceeded"}
OVERLOADED = {"code": "overloaded", "details": {"retry_after": 1.0, "started": False}}
START = {"code": "worker_crashed", "category": "initialization"}
HEALTH = {"code": "worker_crashed", "category": "health_check"}
TWICE = {"idempotent": True}


def lm(**details: Any) -> dict[str, Any]:
    return {"code": "lm_error", "details": details}


# Error, circumstances, decision, whom the failure counts against.
CASES: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    # What may have run is repeated only if it may run twice.
    (CRASH, {}, "major backoff_retry", "slot"),
    (CRASH, {"started": False}, "major backoff_retry another_slot 0", "slot"),
    (KILLED, {"started": False}, "major backoff_retry another_slot 0", "slot"),
    (KILLED, {}, "major backoff_retry", "slot"),
    (KILLED, {**TWICE, "deaths": 1}, "major backoff_retry another_slot 0", "slot"),
    (KILLED, {**TWICE, "deaths": 2}, "major abandon", "slot"),
    (KILLED, {"started": False, "deaths": 2}, "major abandon", "slot"),
    (LATE, {}, "major backoff_retry", "breaker"),
    (LATE, {"started": False}, "major backoff_retry same_slot 1000", ""),
    ({"code": "session_lost"}, {}, "minor immediate_retry", ""),
    ({"code": "store_failed"}, {}, "major backoff_retry", ""),
    (OVERLOADED, {}, "major failover another_slot 0", ""),
    (OVERLOADED, {"others": False}, "major failover", ""),
    (OVERLOADED, {"attempts": 2}, "major failover", ""),
    (OVERLOADED, {"all_affected": True}, "critical circuit_break", ""),
    ({"code": "overloaded", "details": {"retry_after": 1.0}}, {}, "major failover", ""),
    ({"code": "overloaded", "details": {"started": True}}, {}, "major failover", ""),
    ({"code": "overloaded", "details": {"started": 0}}, {}, "major failover", ""),
    # Other slots, and all of them.
    (CRASH, {**TWICE, "others": False}, "major backoff_retry same_slot 0", "slot"),
    (CRASH, {**TWICE, "others": False, "attempts": 2}, "major backoff_retry same_slot 2000", "slot"),
    (CRASH, {**TWICE, "all_affected": True}, "critical circuit_break", "slot"),
    (CRASH, {**TWICE, "all_affected": True, "attempts": 3}, "critical abandon", "slot"),
    (LATE, {**TWICE, "all_affected": True}, "critical backoff_retry same_slot 1000", "breaker"),
    ({"code": "invalid_args"}, {**TWICE, "all_affected": True}, "critical abandon", ""),
    # A worker that ended in order has not failed.
    ({"code": "worker_crashed", "details": {"exit_status": 0}}, TWICE, "major backoff_retry another_slot 0", ""),
    ({"code": "worker_crashed", "details": {"exit_status": 75}}, TWICE, "major backoff_retry another_slot 0", "slot"),
    ({"code": "worker_crashed", "details": {"exit_status": None, "signal": "SIGKILL"}}, TWICE,
     "major backoff_retry another_slot 0", "slot"),
    # Categories that a code has from its error only.
    (START, TWICE, "critical immediate_retry another_slot 0", "slot"),
    (START, {"started": False}, "critical immediate_retry another_slot 0", "slot"),
    (START, {**TWICE, "others": False}, "critical immediate_retry same_slot 0", "slot"),
    (START, {**TWICE, "attempts": 2}, "critical circuit_break", "slot"),
    (START, {**TWICE, "attempts": 3}, "critical abandon", "slot"),
    (HEALTH, TWICE, "minor backoff_retry same_slot 1000", "slot"),
    (HEALTH, {**TWICE, "attempts": 2}, "minor backoff_retry same_slot 2000", "slot"),
    (HEALTH, {**TWICE, "attempts": 3}, "minor failover", "slot"),
    # Errors of models.
    (lm(retryable=True), TWICE, "major backoff_retry same_slot 1000", "breaker"),
    (lm(retryable=True), {}, "major backoff_retry", "breaker"),
    (lm(retryable=True), {**TWICE, "attempts": 4}, "critical abandon", "breaker"),
    (lm(retryable=False), TWICE, "major abandon", ""),
    (lm(retryable="yes"), TWICE, "major abandon", ""),
    (lm(retryable=1), TWICE, "major abandon", ""),
    (lm(retryable=False, retry_after=2), TWICE, "major abandon", ""),
    (lm(retry_after=0.5), TWICE, "major backoff_retry same_slot 1000", "breaker"),
    (lm(retry_after=0), TWICE, "major backoff_retry same_slot 1000", "breaker"),
    (lm(retry_after=17.25), TWICE, "major backoff_retry same_slot 17250", "breaker"),
    (lm(retry_after=30), TWICE, "major backoff_retry same_slot 30000", "breaker"),
    (lm(retry_after=30.5), TWICE, "major backoff_retry", "breaker"),
    (lm(retry_after=1e300), TWICE, "major backoff_retry", "breaker"),
    (lm(retry_after=10**30), TWICE, "major backoff_retry", "breaker"),
    *((lm(retry_after=hint), TWICE, "major abandon", "") for hint in (-1, "2", True, None, [1])),
    ({"code": "handler_error", "details": {"retry_after": 2}}, TWICE, "major backoff_retry same_slot 2000", "breaker"),
    ({"code": "session_lost", "details": {"retryable": False}}, TWICE, "minor abandon", ""),
    ({"code": "session_lost", "details": {"retry_after": 0.5}}, TWICE, "minor immediate_retry same_slot 500", ""),
    ({"code": "invalid_args", "details": {"retryable": True, "retry_after": 1}}, TWICE, "warning abandon", ""),
    ({"code": "circuit_open", "details": {"retry_after": 2}}, TWICE, "critical circuit_break", ""),
    # The deadline.
    (CRASH, {**TWICE, "remaining": 0}, "major backoff_retry", "slot"),
    (CRASH, {**TWICE, "remaining": 1}, "major backoff_retry another_slot 0", "slot"),
    (LATE, {**TWICE, "remaining": 1000}, "major backoff_retry", "breaker"),
    (LATE, {**TWICE, "remaining": 1001}, "major backoff_retry same_slot 1000", "breaker"),
    # Jitter.
    (LATE, {**TWICE, "random": 0.0}, "major backoff_retry same_slot 750", "breaker"),
    (LATE, {**TWICE, "random": 0.999}, "major backoff_retry same_slot 1250", "breaker"),
    # Explicit words.
    (LATE, {**TWICE, "severity": "minor", "all_affected": True, "attempts": 5},
     "minor backoff_retry same_slot 16000", "breaker"),
    (LATE, {**TWICE, "severity": "minor", "attempts": 6}, "minor backoff_retry", "breaker"),
    (LATE, {**TWICE, "severity": "high"}, "major backoff_retry same_slot 1000", "breaker"),
    (LATE, {**TWICE, "severity": "critical", "attempts": 3}, "critical abandon", "breaker"),
    ({"code": "quota_exceeded"}, {**TWICE, "severity": "high"}, "major failover another_slot 0", ""),
    ({"code": "quota_exceeded"}, {**TWICE, "severity": "critical"}, "critical circuit_break", ""),
    ({"code": "overloaded"}, {**TWICE, "severity": "medium"}, "minor failover another_slot 0", ""),
    (CRASH, {**TWICE, "severity": "critical"}, "critical circuit_break", "slot"),
    ({"code": "handler_error"}, {**TWICE, "recovery": "immediate_retry"}, "major immediate_retry same_slot 0", ""),
    ({"code": "handler_error"}, {"recovery": "immediate_retry"}, "major immediate_retry", ""),
    (CRASH, {**TWICE, "recovery": "abandon"}, "major abandon", "slot"),
]  # fmt: skip

# Kind, attempt (of decorrelated: the previous delay), random number, delay.
DELAYS: list[tuple[str, int, float, int]] = [
    *(("immediate", attempt, 0.5, delay) for attempt, delay in enumerate((0, 100, 200, 200), 1)),
    *(("exponential", attempt, 0.5, delay)
      for attempt, delay in enumerate((1000, 2000, 4000, 8000, 16000, 30000, 30000), 1)),
    ("exponential", 1, 0.0, 750),
    ("exponential", 1, 0.75, 1125),
    ("exponential", 3, 0.25, 3500),
    ("exponential", 5, 0.999, 19992),
    ("exponential", 6, 0.0, 22500),
    ("exponential", 6, 0.9, 30000),
    ("exponential", 1_000_000, 0.999, 30000),
    *(("linear", attempt, 0.5, delay) for attempt, delay in ((1, 1000), (2, 2000), (30, 30000), (31, 30000))),
    ("linear", 3, 0.0, 2250),
    ("linear", 30, 0.75, 30000),
    ("decorrelated", 0, 0.7, 1000),
    ("decorrelated", 1000, 0.0, 1000),
    ("decorrelated", 1000, 0.5, 2000),
    ("decorrelated", 2000, 0.5, 3500),
    ("decorrelated", 30000, 0.25, 23250),
    ("decorrelated", 30000, 0.9, 30000),
]  # fmt: skip

OPENED = [*(f"0 + {call}" for call in "abcde"), *(f"{time} {call} failed closed" for time, call in enumerate("abcd")),
          "5 e failed open"]  # fmt: skip
HALF_OPENED = [*OPENED, "60005 + p half_open"]
# The life of a key: `TIME + CALL [STATE]` admits a call, `TIME - RETRY_AFTER` refuses one, and `TIME CALL END STATE`
# is its end (ok, failed, or neither). States are those afterwards.
BREAKER: dict[str, list[str]] = {
    "opens after five failures": [*OPENED, "5 - 60000", "1005 - 59000"],
    "a success starts the count anew": [
        *(f"0 + {call}" for call in "abcdefghi"), *(f"1 {call} failed closed" for call in "abcd"), "2 e ok closed",
        *(f"3 {call} failed closed" for call in "fghi"), "3 + j closed", "3 j failed open",
    ],
    "what says nothing about the provider does not count": [
        *(f"0 + {call}" for call in "abcdef"), *(f"1 {call} failed closed" for call in "abcd"), "2 e neither closed",
        "3 f failed open",
    ],
    "stays open for a minute": [*OPENED, "60004 - 1", "60005 + p half_open"],
    "a late end does not prolong it": [
        "0 + x", "0 + y", *OPENED, "59000 x failed open", "59001 y ok open", "60004 - 1", "60005 + p half_open",
    ],
    "admits three probes at once": [
        *HALF_OPENED, "60005 + q half_open", "60006 + r half_open", "60007 - 1000", "60008 q ok half_open",
        "60009 + s half_open", "60009 - 1000",
    ],
    "closes after three successes": [
        *HALF_OPENED, "60006 p ok half_open", "60006 + q half_open", "60007 q ok half_open", "60007 + r half_open",
        "60008 r ok closed", "60009 + a closed", "60009 a failed closed",
    ],
    "opens after one failure": [
        *HALF_OPENED, "60006 + q half_open", "60007 q ok half_open", "60008 p failed open", "60008 - 60000",
        "120007 - 1", "120008 + s half_open",
    ],
    "a probe that ends with neither makes room": [
        *HALF_OPENED, "60005 + q half_open", "60005 + r half_open", "60006 - 1000", "60007 p neither half_open",
        "60008 + s half_open", "60008 - 1000", "60009 q ok half_open", "60009 r ok half_open", "60009 s ok closed",
    ],
    "calls of an earlier state do not count": [
        "0 + x", "0 + y", *HALF_OPENED, "60006 x failed half_open", "60006 y ok half_open", "60006 + q half_open",
        "60006 + r half_open", "60006 - 1000",
    ],
    "probes of an earlier state do not count": [
        *HALF_OPENED, "60005 + q half_open", "60005 + r half_open", "60006 p failed open", "120006 + s half_open",
        "120007 q failed half_open", "120007 r ok half_open", "120008 s ok half_open", "120009 + t half_open",
        "120009 t ok half_open", "120009 + u half_open", "120010 u ok closed",
    ],
    "a probe that outlives the half-open state": [
        *HALF_OPENED, "60005 + q half_open", "60006 q ok half_open", "60006 + r half_open", "60006 r ok half_open",
        "60006 + s half_open", "60007 s ok closed", "60008 p failed closed",
        *(f"60009 + {call} closed" for call in "klmno"), *(f"60010 {call} failed closed" for call in "klmn"),
        "60010 o failed open",
    ],
}  # fmt: skip

# Steps: time, calls that are recorded, retries that are asked for, retries that are allowed.
BUDGET: dict[str, list[tuple[int, int, int, int]]] = {
    "three a second without calls": [(0, 0, 40, 30), (9999, 0, 1, 0), (10000, 0, 40, 30)],
    "a tenth of the calls": [(0, 100, 100, 40), (0, 9, 1, 0), (0, 1, 2, 1)],
    "calls are forgotten after ten seconds": [(500, 1000, 0, 0), (9999, 0, 500, 130), (10000, 0, 1, 0)],
    "retries are forgotten after ten seconds": [(2000, 0, 30, 30), (7000, 0, 5, 0), (11999, 0, 5, 0), (12000, 0, 5, 5)],
    "seconds that follow each other": [
        (0, 10, 5, 5), (1000, 10, 5, 5), (2000, 10, 40, 23), (3000, 10, 2, 1), (10500, 0, 9, 4),
    ],
    "a long pause": [(1000, 50, 50, 35), (1_000_000_000, 20, 50, 32)],
    "times before zero": [(-20_000, 10, 50, 31), (-19_001, 0, 1, 0), (-10_001, 0, 50, 0), (-10_000, 0, 50, 30)],
}  # fmt: skip

SEVERITIES = {
    **{word: word for word in ("critical", "major", "minor", "warning")}, "high": "major", "medium": "minor",
}  # fmt: skip


def policy() -> dict[str, Any]:
    """Return the content of policy.json."""
    decisions = [
        decision({"code": code}, {**TWICE, "attempts": attempts}, after[min(attempts, len(after)) - 1], against)
        for code, (_, against, after) in BY_CODE.items()
        for attempts in range(1, ATTEMPTS + 1)
    ]
    decisions += [decision(*case) for case in CASES]
    delays = [dict(zip(("kind", "after", "random", "delay"), row, strict=True)) for row in DELAYS]
    budget = {
        name: [dict(zip(("at", "calls", "asked", "allowed"), step, strict=True)) for step in steps]
        for name, steps in BUDGET.items()
    }
    return {
        "decisions": decisions,
        "delays": delays,
        "breaker": {name: [breaker_step(step) for step in steps] for name, steps in BREAKER.items()},
        "budget": budget,
        "severities": SEVERITIES,
    }


def decision(error: dict[str, Any], circumstances: dict[str, Any], decided: str, against: str) -> dict[str, Any]:
    severity, recovery, repeat, delay = [*decided.split(), None, 0][:4]
    expected = {
        "category": error.get("category", BY_CODE[error["code"]][0]),
        "severity": severity,
        "recovery": recovery,
        "repeat": repeat,
        "delay": int(delay),
        "against_slot": against == "slot",
        "against_breaker": against == "breaker",
    }
    return {"error": error, "circumstances": {"random": 0.5, **circumstances}, "expected": expected}


def breaker_step(text: str) -> dict[str, Any]:
    match text.split():
        case [time, "+", call]:
            return {"at": int(time), "admit": call, "state": "closed"}
        case [time, "+", call, state]:
            return {"at": int(time), "admit": call, "state": state}
        case [time, "-", wait]:
            return {"at": int(time), "admit": None, "retry_after": int(wait)}
        case [time, call, end, state]:
            ends = {"ok": True, "failed": False, "neither": None}
            return {"at": int(time), "end": call, "succeeded": ends[end], "state": state}
    raise ValueError(text)
