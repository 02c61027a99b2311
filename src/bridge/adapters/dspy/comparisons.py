"""How the metrics of `metrics.METRICS` compare values: functions of DSPy, and models that judge with prompts of DSPy.

DSPy is imported when one is first used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

# Runs a DSPy module with keyword arguments on the model that judges, and returns its prediction.
Judge = Callable[[Any, dict[str, Any]], Any]

_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


class Compared(NamedTuple):
    """What one of METRICS compares. question, context: the values of these fields, if the metric takes them."""

    expected: Any
    actual: Any
    question: Any
    context: Any
    judge: Judge


def exact_match(compared: Compared) -> float:
    """Return whether the texts are equal without case, punctuation and articles, and other values by their value."""

    def matches(expected: Any, actual: Any) -> bool:
        if isinstance(expected, list) and not isinstance(actual, list):
            return any(matches(each, actual) for each in expected)
        if isinstance(expected, list) and isinstance(actual, list):
            return len(expected) == len(actual) and all(map(matches, expected, actual))
        if isinstance(expected, dict) and isinstance(actual, dict):
            return expected.keys() == actual.keys() and all(matches(expected[key], actual[key]) for key in expected)
        if isinstance(expected, str) or isinstance(actual, str):
            return _normalized(actual) == _normalized(expected)
        return is_equal(expected, actual)

    return matches(compared.expected, compared.actual)


def f1(compared: Compared) -> float:
    """Return the harmonic mean of the shares of words that both texts have."""
    from dspy.evaluate.metrics import F1, normalize_text

    answers = [text for text in _answers(compared) if normalize_text(text)]
    # DSPy prints a line if both texts are empty.
    return float(F1(_text(compared.actual), answers)) if answers else float(exact_match(compared))


def contains(compared: Compared) -> float:
    """Return whether the output contains the expected text, or all expected items if it is a list."""
    from dspy.evaluate.metrics import normalize_text

    expected, actual = compared.expected, compared.actual
    if isinstance(actual, list):
        items = [_normalized(item) for item in actual]
        wanted = expected if isinstance(expected, list) else [expected]
        return all(_normalized(each) in items for each in wanted)
    texts = _normalized(actual), _text(actual)  # the latter for an answer of punctuation only
    return any(_normalized(answer) in texts[not normalize_text(answer)] for answer in _answers(compared))


def passage_match(compared: Compared) -> float:
    """Return whether a passage of the context contains the expected text."""
    import dspy
    from dspy.evaluate import answer_passage_match

    found = compared.context
    passages = [_text(each) for each in (found if isinstance(found, list) else [found])]
    return bool(answer_passage_match(dspy.Example(answer=_answers(compared)), dspy.Prediction(context=passages)))


def json_equal(compared: Compared) -> float:
    """Return whether the values are equal as JSON, where a text may be JSON, too."""
    return is_equal(_json(compared.expected), _json(compared.actual))


def semantic_f1(compared: Compared) -> tuple[float, str]:
    """Return the mean of what a model says about the precision and the recall of a text, and its reasoning."""
    from dspy.evaluate.auto_evaluation import f1_score

    response = {"ground_truth": _text(compared.expected), "system_response": _text(compared.actual)}
    found = compared.judge(_judges().semantic, {"question": _text(compared.question), **response})
    return f1_score(found.precision, found.recall), found.reasoning


def complete_and_grounded(compared: Compared) -> tuple[float, str]:
    """Return the mean of how complete and how grounded a text is, as a model says, and its discussions."""
    from dspy.evaluate.auto_evaluation import f1_score

    judges = _judges()
    answer = {"question": _text(compared.question), "system_response": _text(compared.actual)}
    complete = compared.judge(judges.complete, {**answer, "ground_truth": _text(compared.expected)})
    grounded = compared.judge(judges.grounded, {**answer, "retrieved_context": _text(compared.context)})
    return f1_score(grounded.groundedness, complete.completeness), f"{complete.discussion}\n{grounded.discussion}"


class _Judges(NamedTuple):
    """DSPy's modules that compare texts. All metrics share them."""

    semantic: Any
    complete: Any
    grounded: Any


@cache
def _judges() -> _Judges:
    from dspy.evaluate import CompleteAndGrounded, SemanticF1

    both = CompleteAndGrounded()
    return _Judges(SemanticF1().module, both.completeness_module, both.groundedness_module)


def is_equal(one: Any, other: Any) -> bool:
    """Return whether two values of JSON are equal: numbers by their value, and true is not 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_equal, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _answers(compared: Compared) -> list[str]:
    """Return the texts of which any one is right: those of a list, if the output is not a list itself."""
    expected = compared.expected
    if isinstance(expected, list) and not isinstance(compared.actual, list):
        return [_text(each) for each in expected]
    return [_text(expected)]


def _normalized(value: Any) -> str:
    """Return a value as text without case, punctuation and articles; its punctuation if there is nothing else."""
    from dspy.evaluate.metrics import normalize_text

    text = _text(value)
    normalized: str = normalize_text(text)
    return normalized or "".join(_ARTICLE.sub("", text.lower()).split())


def _text(value: Any) -> str:
    """Return the text of a value as it is compared and as judges read it."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, list):
        return "\n".join(map(_text, value))
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _json(value: Any) -> Any:
    """Return the value of a text that is JSON, and every other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
