"""What reading a JSON Schema needs besides the schema: references, bounds, defaults, errors."""

from __future__ import annotations

from typing import Any

from bridge.adapters.dspy.schemas.constraints import KEYWORDS, Constraint, constrained, contradiction
from bridge.adapters.dspy.values.conversion import convert, exact_numbers
from bridge.errors import InvalidArgs


def target(root: Any, reference: str) -> Any:
    """Return the part of `root` that a reference (#/$defs/Name) means. Raises KeyError if there is none."""
    current = root
    for part in reference.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(current, dict):
            raise KeyError(reference)
        current = current[key]
    return current


def with_constraints(type: Any, constraints: dict[str, Any], path: str, *, is_integer: bool = False) -> Any:
    """Return `type` with constraints, bounds by keyword. Raises InvalidArgs for wrong and contradictory bounds."""
    for keyword, bound in constraints.items():
        refuse_if(f"{path}.{keyword}", KEYWORDS[keyword].problem(bound))
    refuse_if(path, contradiction(constraints, is_integer=is_integer))
    return constrained(type, tuple(Constraint(*each) for each in constraints.items()))


def default_problem(value: Any, type: Any) -> str | None:
    """Return why `value`, which is plain data, is not of `type`, or None."""
    try:
        convert(exact_numbers(value), type)
    except (ValueError, RecursionError) as error:
        return str(error)
    return None


def refuse_if(path: str, problem: str | None) -> None:
    """Raise InvalidArgs if there is a problem with the part of a schema at `path`."""
    if problem is not None:
        raise invalid(path, problem)


def invalid(path: str, reason: str) -> InvalidArgs:
    """Return the error for the part of a schema at `path`."""
    return InvalidArgs(f"{path}: {reason}", path=path, expected="a JSON Schema")
