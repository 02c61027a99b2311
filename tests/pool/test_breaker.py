"""The circuit breaker and the retry budget when several threads use them, and what they report and keep."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from bridge import errors
from bridge.pool.breaker import FAILURES, OPEN_FOR, PROBES, Breaker
from bridge.pool.budget import RetryBudget


def open_circuit(breaker, key="openai"):
    for _ in range(FAILURES):
        breaker.settle(key, breaker.admit(key), False)


def is_admitted(breaker, key="openai"):
    try:
        breaker.admit(key)
    except errors.CircuitOpen:
        return False
    return True


def test_threads_share_the_probes():
    now = [0]
    breaker = Breaker(clock=lambda: now[0])
    open_circuit(breaker)
    now[0] = OPEN_FOR
    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(lambda _: is_admitted(breaker), range(200))) == PROBES


def test_threads_share_the_retry_budget():
    budget = RetryBudget(clock=lambda: 0)
    for _ in range(100):
        budget.record_call()
    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(lambda _: budget.take(), range(200))) == 40


def test_each_change_is_reported():
    """With the key, the state before and the state after; a callback may use the breaker."""
    now, changes = [0], []
    breaker = Breaker(
        clock=lambda: now[0], on_change=lambda *change: changes.append((*change, breaker.state("openai")))
    )
    open_circuit(breaker)
    now[0] = OPEN_FOR
    for _ in range(3):
        breaker.settle("openai", breaker.admit("openai"), True)
    assert changes == [
        ("openai", "closed", "open", "open"),
        ("openai", "open", "half_open", "half_open"),
        ("openai", "half_open", "closed", "closed"),
    ]


def test_only_keys_with_recent_failures_are_kept():
    """Names of providers come from users, so there is no end to them."""
    breaker = Breaker()
    for number in range(1000):
        key = str(number)
        breaker.settle(key, breaker.admit(key), True)
        breaker.settle(key, breaker.admit(key), None)
    breaker.settle("a", breaker.admit("a"), False)
    assert list(breaker._circuits) == ["a"]
    breaker.settle("a", breaker.admit("a"), True)
    assert not breaker._circuits
    for number in range(2000):
        breaker.settle(str(number), breaker.admit(str(number)), False)
    assert list(breaker._circuits) == [str(number) for number in range(1000, 2000)]


def test_a_refusal_says_when_to_ask_again():
    breaker = Breaker(clock=lambda: 0)
    open_circuit(breaker)
    try:
        breaker.admit("openai")
    except errors.CircuitOpen as error:
        refusal = error
    assert refusal.details == {"retry_after": 60}
    assert str(refusal) == "calls of openai are not sent after 5 failures in a row"
