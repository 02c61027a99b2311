"""The policy after an error, the delays, the breaker and the retry budget are those of tests/vectors/policy.json."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest

from bridge import errors
from bridge.pool import backoff, policy
from bridge.pool.breaker import Breaker
from bridge.pool.budget import RetryBudget

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "policy.json").read_text())
MS = 1000


def error_of(code, category=None, details=None):
    return errors.from_reply(code, "an error", category or errors.CODES[code].category, details or {})


def decided(error, random=0.5, remaining=None, **circumstances):
    """Return the decision as the vectors have it, with the delay in ms."""
    if remaining is not None:
        circumstances["remaining"] = remaining / MS
    decision = policy.decide(error_of(**error), random=lambda: random, **circumstances)
    found = {name: getattr(decision, name) for name in policy.Decision.__slots__}
    return found | {"delay": round(found["delay"] * MS)}


@pytest.mark.parametrize("code", errors.CODES)
def test_decisions(code):
    cases = [case for case in VECTORS["decisions"] if case["error"]["code"] == code]
    assert len(cases) >= 7
    for case in cases:
        assert decided(case["error"], **case["circumstances"]) == case["expected"], case


def test_every_code_and_category_has_a_rule():
    """A rule by code is for a code that the table of errors treats differently from its category."""
    own = {code for code, error in errors.CODES.items() if error.policy}
    assert set(policy.RULES) == {*errors.CATEGORIES, *own}


@pytest.mark.parametrize("kind", ["immediate", "exponential", "linear", "decorrelated"])
def test_delays(kind):
    rows = [row for row in VECTORS["delays"] if row["kind"] == kind]
    assert rows
    for row in rows:
        after = row["after"] / MS if kind == "decorrelated" else row["after"]
        random = () if kind == "immediate" else (lambda row=row: row["random"],)
        assert round(getattr(backoff, kind)(after, *random) * MS) == row["delay"], row


@pytest.mark.parametrize("name", VECTORS["breaker"])
def test_the_breaker(name):
    now, permits = [Fraction(0)], {}
    breaker = Breaker(clock=lambda: now[0])
    for step in VECTORS["breaker"][name]:
        now[0] = Fraction(step["at"], MS)  # exact, unlike floats
        if "end" in step:
            breaker.settle("openai", permits.pop(step["end"]), step["succeeded"])
        elif step["admit"]:
            permits[step["admit"]] = breaker.admit("openai")
        else:
            with pytest.raises(errors.CircuitOpen) as raised:
                breaker.admit("openai")
            assert round(raised.value.details["retry_after"] * MS) == step["retry_after"], step
            continue
        assert breaker.state("openai") == step["state"], step
        assert breaker.state("gemini") == "closed"


@pytest.mark.parametrize("name", VECTORS["budget"])
def test_the_retry_budget(name):
    now = [0.0]
    budget = RetryBudget(clock=lambda: now[0])
    for step in VECTORS["budget"][name]:
        now[0] = step["at"] / MS
        for _ in range(step["calls"]):
            budget.record_call()
        assert sum(budget.take() for _ in range(step["asked"])) == step["allowed"], step


def test_names_of_severities():
    """High and medium are other names; what is no severity raises ValueError."""
    assert {word: policy.severity_of(word) for word in VECTORS["severities"]} == VECTORS["severities"]
    for word in ("low", "", "Critical"):
        with pytest.raises(ValueError, match="critical, major, minor, warning, not"):
            policy.severity_of(word)
    for words in ({"severity": "low"}, {"recovery": "retry"}):
        with pytest.raises(ValueError, match="must be one of"):
            policy.decide(errors.Internal("x"), **words)
