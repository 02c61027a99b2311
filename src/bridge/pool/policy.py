"""What a pool does after an error: how serious it is, whether to repeat the call, where, and when.

`bridge.errors` has the severity and the recovery of each error as the wire carries them, which is what a host with one
worker goes by. `RULES` has what a host with several workers does beyond that: other slots, what follows when the
recovery did not help, and whom the failure counts against. The Elixir client has the same rules in
`pool_error_handler.ex`; tests/vectors/policy.json holds both to them.
"""

from __future__ import annotations

import math
import random as standard
from collections.abc import Mapping
from dataclasses import dataclass, field

from bridge.errors import CATEGORIES, BridgeError
from bridge.pool import backoff
from bridge.pool.backoff import Random

SEVERITIES = ("warning", "minor", "major", "critical")  # in ascending order
RECOVERIES = ("immediate_retry", "backoff_retry", "circuit_break", "failover", "abandon")
ALIASES = {"high": "major", "medium": "minor"}
REPEATS = {"immediate_retry": 3, "backoff_retry": 5, "failover": 1}  # how often a call is repeated at most

SAME_SLOT = "same_slot"
ANOTHER_SLOT = "another_slot"

RAISED_AFTER = 3  # attempts after which an error is one step more serious
ABANDONED_AFTER = 2  # attempts after which a critical error is final
MOST_DEATHS = 2  # workers that may end while they have the same call; the call may be the reason
LONGEST_HINT = 1e6  # seconds: a longer `retry_after` is read as this


@dataclass(frozen=True, slots=True)
class Rule:
    """What a pool does after the errors of a category or of a code, where `bridge.errors` does not say it.

    later: the recoveries after attempt 2, 3, …; the last one holds from then on. by_severity: recoveries that take the
    place of all others. moves: a repeated call goes to another slot. slot: counts against the slot. breaker: counts
    against the breaker of the model's provider, if the call was started and may be repeated.
    """

    later: tuple[str, ...] = ()
    by_severity: Mapping[str, str] = field(default_factory=dict)
    moves: bool = False
    slot: bool = False
    breaker: bool = False


RESOURCE = Rule(by_severity={"critical": "circuit_break", "major": "failover"})

# By category, and by code for those that `bridge.errors` treats differently from their category.
RULES = {
    "initialization": Rule(later=("circuit_break",), moves=True, slot=True),
    "connection": Rule(by_severity={"critical": "circuit_break"}, moves=True, slot=True),
    # A worker whose frames cannot be read is killed, which is `connection`. A single frame that was refused, or a reply
    # that does not decode, may be due to the values in it, so it does not count against the slot.
    "communication": Rule(later=("circuit_break",), moves=True),
    "timeout": Rule(breaker=True),
    "resource": RESOURCE,
    "health_check": Rule(later=("backoff_retry", "failover"), slot=True),
    "session": Rule(),
    "python": Rule(breaker=True),
    "request": Rule(),
    "system": Rule(),
    "overloaded": RESOURCE,
    "store_failed": Rule(),
    "circuit_open": Rule(),
}


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do after an error.

    repeat: where to repeat the call, `SAME_SLOT` or `ANOTHER_SLOT`; None: the error is final. delay: how long to wait
    before that, in seconds. against_slot: the failure counts towards the ejection of the slot. against_breaker: it
    counts in the circuit breaker of the model's provider.
    """

    category: str
    severity: str
    recovery: str
    repeat: str | None
    delay: float
    against_slot: bool
    against_breaker: bool


def decide(
    error: BridgeError,
    *,
    attempts: int = 1,
    idempotent: bool = False,
    started: bool = True,
    deaths: int = 0,
    others: bool = True,
    all_affected: bool = False,
    severity: str | None = None,
    recovery: str | None = None,
    remaining: float = math.inf,
    random: Random = standard.random,
) -> Decision:
    """Return what to do after `error`.

    attempts: how often the call was tried, this time included. idempotent: its command may run twice. started: the call
    was sent, so it may have run, unless the error says `started: false` in its details. deaths: how many workers have
    ended while they had it, this one included. others: another slot takes calls. all_affected: all workers fail in this
    way. severity, recovery: take the place of those of the rules. remaining: seconds until the call's deadline.
    random: returns a number in [0, 1), for the jitter.

    A call that may have run is repeated only if it is idempotent. Raises ValueError for unknown words.
    """
    rule = RULES.get(error.code) or RULES[error.category]
    usual = error.policy or CATEGORIES[error.category]
    severity = severity_of(severity) if severity is not None else _raised(usual[0], attempts, all_affected)
    after = _retry_after(error)
    first = usual[1]
    if error.category == "python" and _is_retryable(error):
        first = "backoff_retry"
    if recovery is None:
        recovery = rule.by_severity.get(severity) or _by_attempt(first, rule.later, attempts)
    elif recovery not in RECOVERIES:
        raise ValueError(f"recovery must be one of {', '.join(RECOVERIES)}, not {recovery!r}")
    if _is_final(error, severity, attempts, deaths):
        recovery = "abandon"

    started = started and error.details.get("started") is not False
    repeat, delay = None, 0.0
    if (idempotent or not started) and attempts <= REPEATS.get(recovery, 0):
        repeat = _where(rule, recovery, others)
        delay = _delay(rule, recovery, attempts, after or 0.0, random)
        if repeat is None or delay > backoff.CAP or delay >= remaining:
            repeat, delay = None, 0.0
    return Decision(
        category=error.category,
        severity=severity,
        recovery=recovery,
        repeat=repeat,
        delay=delay,
        against_slot=rule.slot and error.details.get("exit_status") != 0,
        against_breaker=rule.breaker and started and first != "abandon",
    )


def severity_of(word: str) -> str:
    """Return the severity that a word names; "high" and "medium" are other names of major and minor.

    Raises ValueError for any other word.
    """
    severity = ALIASES.get(word, word)
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be one of {', '.join(reversed(SEVERITIES))}, not {word!r}")
    return severity


def _is_retryable(error: BridgeError) -> bool:
    retryable = error.details.get("retryable")
    return retryable is True or (retryable is not False and _retry_after(error) is not None)


def _retry_after(error: BridgeError) -> float | None:
    """Return the seconds that the error asks to wait, or None. Its details come from another process."""
    seconds = error.details.get("retry_after")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        return None
    return float(min(seconds, LONGEST_HINT))


def _raised(severity: str, attempts: int, all_affected: bool) -> str:
    if all_affected:
        return "critical"
    if attempts > RAISED_AFTER:
        return SEVERITIES[min(SEVERITIES.index(severity) + 1, len(SEVERITIES) - 1)]
    return severity


def _is_final(error: BridgeError, severity: str, attempts: int, deaths: int) -> bool:
    return (
        deaths >= MOST_DEATHS
        or (severity == "critical" and attempts > ABANDONED_AFTER)
        or error.details.get("retryable") is False
    )


def _by_attempt(first: str, later: tuple[str, ...], attempts: int) -> str:
    return later[min(attempts - 1, len(later)) - 1] if later and attempts > 1 else first


def _where(rule: Rule, recovery: str, others: bool) -> str | None:
    if recovery == "failover":
        return ANOTHER_SLOT if others else None
    return ANOTHER_SLOT if rule.moves and others else SAME_SLOT


def _delay(rule: Rule, recovery: str, attempts: int, after: float, random: Random) -> float:
    if recovery == "immediate_retry":
        delay = backoff.immediate(attempts)
    elif recovery == "failover":
        return 0.0
    elif rule.moves and attempts == 1:
        return 0.0  # a backoff gives time to what has failed, and that worker will not be used again
    else:
        delay = backoff.exponential(attempts, random)
    return max(delay, after)
