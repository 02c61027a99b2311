"""Laws of a pool's policy: what is never repeated, how long a delay is, how many calls a breaker and a budget admit."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bridge import errors
from bridge.pool import backoff
from bridge.pool.breaker import FAILURES, OPEN_FOR, PROBES, Breaker
from bridge.pool.budget import CALLS_PER_RETRY, RETRIES_PER_SECOND, WINDOW, RetryBudget
from bridge.pool.policy import RECOVERIES, REPEATS, SEVERITIES, decide

RANDOM = st.floats(0, 1, exclude_max=True)
HINTS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3))
DETAILS = st.fixed_dictionaries(
    {},
    optional={
        "retry_after": HINTS,
        "retryable": HINTS,
        "exit_status": HINTS,
        "signal": HINTS,
        "started": HINTS,
    },
)
CODES = st.sampled_from([*errors.CODES, "new"])
CATEGORIES = st.sampled_from([*errors.CATEGORIES, "new"])
ERRORS = st.builds(errors.from_reply, CODES, st.just("x"), CATEGORIES, DETAILS)
CIRCUMSTANCES = st.fixed_dictionaries(
    {
        "attempts": st.integers(1, 9),
        "idempotent": st.booleans(),
        "started": st.booleans(),
        "deaths": st.integers(0, 3),
        "others": st.booleans(),
        "all_affected": st.booleans(),
        "severity": st.sampled_from([None, *SEVERITIES]),
        "recovery": st.sampled_from([None, *RECOVERIES]),
        "remaining": st.floats(0, allow_nan=False),
        "random": st.builds(lambda number: lambda: number, RANDOM),
    }
)


@given(ERRORS, CIRCUMSTANCES)
def test_decisions(error, circumstances):
    """Whatever the details of the error are, which another process has written."""
    decision = decide(error, **circumstances)
    assert (decision.severity in SEVERITIES, decision.recovery in RECOVERIES) == (True, True)
    assert 0 <= decision.delay <= backoff.CAP
    if decision.repeat is None:
        assert decision.delay == 0
        return
    assert circumstances["idempotent"] or not circumstances["started"] or error.details.get("started") is False
    assert circumstances["attempts"] <= REPEATS[decision.recovery]
    assert circumstances["deaths"] < 2
    assert decision.delay < circumstances["remaining"]
    assert decision.repeat == "same_slot" or circumstances["others"]
    assert not (decision.severity == "critical" and circumstances["attempts"] > 2)


@given(ERRORS, CIRCUMSTANCES)
def test_what_counts(error, circumstances):
    """A mistake of a user counts against nobody, and no failure against both the slot and the provider."""
    decision = decide(error, **circumstances)
    assert not (decision.against_slot and decision.against_breaker)
    if error.category == "request":
        assert (decision.against_slot, decision.against_breaker) == (False, False)


@given(ERRORS, st.booleans(), RANDOM)
def test_a_call_is_repeated_at_most_five_times(error, others, random):
    attempts = 1
    while decide(error, attempts=attempts, idempotent=True, others=others, random=lambda: random).repeat:
        attempts += 1
    assert attempts <= 6


@given(st.integers(1, 10**6), RANDOM, st.floats(0, backoff.CAP))
def test_delays(attempt, random, previous):
    """A delay is at most CAP, and differs from the usual one by a quarter at most."""
    exponential = backoff.exponential(attempt, lambda: random)
    usual = backoff.exponential(attempt, lambda: 0.5)
    assert 0.75 * usual <= exponential <= min(1.25 * usual, backoff.CAP)
    assert 0.75 <= backoff.linear(attempt, lambda: random) <= backoff.CAP
    assert backoff.BASE <= backoff.decorrelated(previous, lambda: random) <= max(backoff.BASE, 3 * previous)
    assert backoff.decorrelated(previous, lambda: random) <= backoff.CAP
    assert backoff.immediate(attempt) in backoff.IMMEDIATE


@given(
    st.lists(st.tuples(st.sampled_from(["call", "take"]), st.floats(0, 4), st.integers(1, 60))), st.floats(-1e5, 1e5)
)
def test_retries_are_a_tenth_of_the_calls_and_three_a_second(steps, now):
    """Of the last ten seconds, the current one included. A retry is refused only if it would be too many."""
    clock = [now]
    budget = RetryBudget(clock=lambda: clock[0])
    calls, retries = [], []
    for kind, pause, number in steps:
        clock[0] += pause
        for _ in range(number):
            second = math.floor(clock[0])
            if kind == "call":
                budget.record_call()
                calls.append(second)
                continue
            recent_calls, recent_retries = (sum(of > second - WINDOW for of in counted) for counted in (calls, retries))
            beyond = recent_retries + 1 - RETRIES_PER_SECOND * WINDOW
            allowed = beyond * CALLS_PER_RETRY <= recent_calls
            assert budget.take() == allowed
            retries += [second] * allowed


class BreakerLaws(RuleBasedStateMachine):
    """A breaker with two keys, beside a count of the probes that run."""

    def __init__(self):
        super().__init__()
        self.now = 0
        self.changes = []
        self.breaker = Breaker(clock=lambda: self.now, on_change=lambda *change: self.changes.append(change))
        self.permits = []

    @rule(seconds=st.sampled_from([0, 1, 59, 60]))
    def wait(self, seconds):
        self.now += seconds

    @rule(key=st.sampled_from("ab"))
    def admit(self, key):
        before, wait = self.breaker.state(key), 0
        try:
            self.permits.append((key, self.breaker.admit(key)))
        except errors.CircuitOpen as error:
            wait = error.details["retry_after"]
        assert 0 <= wait <= OPEN_FOR
        assert not wait or before != "closed"

    @precondition(lambda self: self.permits)
    @rule(data=st.data(), succeeded=st.sampled_from([True, False, False, None]))
    def settle(self, data, succeeded):
        key, permit = self.permits.pop(data.draw(st.integers(0, len(self.permits) - 1)))
        before = self.breaker.state(key)
        self.breaker.settle(key, permit, succeeded)
        if succeeded is None:
            assert self.breaker.state(key) == before

    @invariant()
    def at_most_three_probes(self):
        for key in "ab":
            if self.breaker.state(key) == "half_open":
                since = self.breaker._circuits[key].since
                assert self.permits.count((key, since)) <= PROBES

    @invariant()
    def changes_follow_each_other(self):
        for key in "ab":
            state = "closed"
            for changed, before, after in self.changes:
                if changed == key:
                    assert before == state != after
                    assert (before, after) != ("closed", "half_open")
                    assert (before, after) != ("open", "closed")
                    state = after
            assert state == self.breaker.state(key)


TestBreaker = BreakerLaws.TestCase


@given(st.lists(st.booleans(), max_size=40))
def test_a_closed_circuit_opens_with_the_fifth_failure_in_a_row(ends):
    breaker = Breaker(clock=lambda: 0)
    in_a_row = 0
    for succeeded in ends:
        breaker.settle("a", breaker.admit("a"), succeeded)
        in_a_row = 0 if succeeded else in_a_row + 1
        assert (breaker.state("a") == "open") == (in_a_row == FAILURES)
        if in_a_row == FAILURES:
            return
