"""Constraints on values, by the keywords of JSON Schema: one row in `KEYWORDS` for each."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from fractions import Fraction
from typing import Annotated, Any, NamedTuple, get_args, get_origin

import msgspec

from bridge.adapters.dspy.schemas.texts import FORMATS, is_of_format, matches, pattern_problem

_LARGEST_SIZE = 1 << 53
_LARGEST_NUMBER = 1e300
_LARGEST_EXPONENT = 5000  # of a number that is divided
_LONGEST_SHOWN = 80  # characters of a value in an error


class Violation(ValueError):
    """Raised for a value that does not meet a constraint. keyword, bound: the constraint. words: what it demands."""

    def __init__(self, value: Any, keyword: str, bound: Any, words: str) -> None:
        shown = json.dumps(value, ensure_ascii=False, default=str)
        cut = shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}…"
        super().__init__(f"expected {words}, not {cut}")
        self.value = value
        self.keyword = keyword
        self.bound = bound


class Constraint(msgspec.Struct, frozen=True):
    """A constraint on a value, as a part of a type: `Annotated[int, Constraint("minimum", 1)]`."""

    keyword: str
    bound: Any

    def __str__(self) -> str:
        return KEYWORDS[self.keyword].words.format(self.bound)

    def check(self, value: Any) -> None:
        """Raise Violation if `value`, to whose kind the constraint applies, does not meet it."""
        if not KEYWORDS[self.keyword].is_met(value, self.bound):
            raise Violation(value, self.keyword, self.bound, str(self))


def constrained(type: Any, constraints: tuple[Constraint, ...]) -> Any:
    """Return `type` with constraints."""
    return Annotated[(type, *constraints)] if constraints else type


def unconstrained(type: Any) -> tuple[Any, tuple[Constraint, ...]]:
    """Return a type without its constraints, and these."""
    if get_origin(type) is not Annotated:
        return type, ()
    base, *constraints = get_args(type)
    return base, tuple(constraints)


def exact(number: Any) -> Decimal:
    """Return a number as the decimal that was written."""
    return Decimal(repr(number)) if isinstance(number, float) else Decimal(number)


def _is_multiple(value: Any, bound: Any) -> bool:
    number = exact(value)
    return abs(number.adjusted()) <= _LARGEST_EXPONENT and Fraction(number) % Fraction(exact(bound)) == 0


def _is_unique(value: list[Any], wanted: bool) -> bool:
    return not wanted or len({comparable(each) for each in value}) == len(value)


def comparable(value: Any) -> str:
    """Return a text that is equal for values that are equal in JSON."""
    return json.dumps(_with_plain_numbers(value), sort_keys=True, default=str)


def _with_plain_numbers(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_with_plain_numbers(each) for each in value]
    if isinstance(value, dict):
        return {key: _with_plain_numbers(each) for key, each in value.items()}
    return value


def _number_problem(bound: Any) -> str | None:
    is_number = isinstance(bound, int | float) and not isinstance(bound, bool)
    return None if is_number and abs(bound) <= _LARGEST_NUMBER else "expected a number"


def _divisor_problem(bound: Any) -> str | None:
    return _number_problem(bound) or (None if bound > 0 else "expected a number above 0")


def _size_problem(bound: Any) -> str | None:
    is_size = isinstance(bound, int) and not isinstance(bound, bool) and 0 <= bound <= _LARGEST_SIZE
    return None if is_size else "expected a whole number from 0"


def _pattern_problem(bound: Any) -> str | None:
    return pattern_problem(bound) if isinstance(bound, str) else "expected a text"


def _format_problem(bound: Any) -> str | None:
    return None if isinstance(bound, str) and bound in FORMATS else f"expected one of {', '.join(sorted(FORMATS))}"


def _truth_problem(bound: Any) -> str | None:
    return None if isinstance(bound, bool) else "expected true or false"


class Keyword(NamedTuple):
    """A keyword of JSON Schema.

    kind: of the values that it applies to. is_met: whether a value meets a bound. words: what it demands, with {} for
    the bound. problem: what is wrong with a bound, or None.
    """

    kind: str
    is_met: Callable[[Any, Any], bool]
    words: str
    problem: Callable[[Any], str | None]


KEYWORDS: dict[str, Keyword] = {
    "minimum": Keyword("number", lambda v, b: exact(v) >= exact(b), "a number of at least {}", _number_problem),
    "maximum": Keyword("number", lambda v, b: exact(v) <= exact(b), "a number of at most {}", _number_problem),
    "exclusiveMinimum": Keyword("number", lambda v, b: exact(v) > exact(b), "a number above {}", _number_problem),
    "exclusiveMaximum": Keyword("number", lambda v, b: exact(v) < exact(b), "a number below {}", _number_problem),
    "multipleOf": Keyword("number", _is_multiple, "a multiple of {}", _divisor_problem),
    "minLength": Keyword("text", lambda v, b: len(v) >= b, "a text of at least {} characters", _size_problem),
    "maxLength": Keyword("text", lambda v, b: len(v) <= b, "a text of at most {} characters", _size_problem),
    "pattern": Keyword("text", matches, "a text that matches {}", _pattern_problem),
    "format": Keyword("text", is_of_format, "a text of the format {}", _format_problem),
    "minItems": Keyword("list", lambda v, b: len(v) >= b, "a list of at least {} items", _size_problem),
    "maxItems": Keyword("list", lambda v, b: len(v) <= b, "a list of at most {} items", _size_problem),
    "uniqueItems": Keyword("list", _is_unique, "a list without equal items", _truth_problem),
    "minProperties": Keyword("map", lambda v, b: len(v) >= b, "a map of at least {} keys", _size_problem),
    "maxProperties": Keyword("map", lambda v, b: len(v) <= b, "a map of at most {} keys", _size_problem),
}

# The least bound and the greatest, of which the second must not be less.
_RANGES = (
    *(("minimum", "maximum"), ("minimum", "exclusiveMaximum"), ("exclusiveMinimum", "maximum")),
    *(("exclusiveMinimum", "exclusiveMaximum"), ("minLength", "maxLength"), ("minItems", "maxItems")),
    ("minProperties", "maxProperties"),
)


def contradiction(constraints: dict[str, Any], *, is_integer: bool = False) -> str | None:
    """Return the reason why no value can meet the constraints, bounds by keyword, or None."""
    for least, most in _RANGES:
        if least not in constraints or most not in constraints:
            continue
        low, high = exact(constraints[least]), exact(constraints[most])
        if is_integer:
            low = low.to_integral_value(ROUND_CEILING) + (least == "exclusiveMinimum" and low == int(low))
            high = high.to_integral_value(ROUND_FLOOR) - (most == "exclusiveMaximum" and high == int(high))
        if low > high or (low == high and not is_integer and "exclusive" in f"{least} {most}"):
            return f"{least} {constraints[least]} and {most} {constraints[most]} allow no value"
    return None
