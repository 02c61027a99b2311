"""Checks the arguments of a tool's call by the tool's JSON Schema.

The schema is the host's and the arguments are a model's, so patterns run in the engine of `schemas/texts.py`, which
takes time proportional to the text. Python's `re`, which jsonschema uses, may take years, and hold the GIL meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from jsonschema import ValidationError
from jsonschema.exceptions import best_match
from jsonschema.validators import extend, validator_for

from bridge.adapters.dspy.schemas.texts import matches, pattern_problem


def first_error(schema: dict[str, Any], value: Any) -> ValidationError | None:
    """Return the most relevant error of `value`, or None.

    Also if it is not known whether there is one: a pattern is not supported, `unevaluatedProperties` is false, or a
    part of the schema has a dialect of its own. Raises what a broken or circular reference raises.
    """
    if any("$schema" in part for part in _maps(schema) if part is not schema):
        return None  # the validator of a dialect uses `re`
    kind = _validator(validator_for(schema))
    error: ValidationError | None = best_match(
        kind({key: part for key, part in schema.items() if key != "$schema"}).iter_errors(value)
    )
    return error


@cache
def _validator(kind: Any) -> Any:
    """Return the validator `kind` of a dialect without `re`."""

    def additional(validator: Any, allowed: Any, value: Any, schema: dict[str, Any]) -> Iterator[ValidationError]:
        patterns = schema.get("patternProperties")
        if patterns and validator.is_type(value, "object"):
            value = {name: each for name, each in value.items() if not any(_may_match(name, one) for one in patterns)}
            schema = {key: part for key, part in schema.items() if key != "patternProperties"}
        yield from kind.VALIDATORS["additionalProperties"](validator, allowed, value, schema) or ()

    checks = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": additional,
        "unevaluatedProperties": _unchecked,
    }
    return extend(kind, checks)


def _pattern(validator: Any, pattern: str, value: Any, schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(value, "string") and not _may_match(value, pattern):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: dict[str, Any], value: Any, schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(value, "object"):
        for pattern, part in patterns.items():
            if pattern_problem(pattern) is None:
                for name in value:
                    if matches(name, pattern):
                        yield from validator.descend(value[name], part, path=name, schema_path=pattern)


def _unchecked(validator: Any, allowed: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
    yield from ()


def _may_match(text: str, pattern: str) -> bool:
    return pattern_problem(pattern) is not None or matches(text, pattern)


def _maps(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield all maps in `schema`, itself included."""
    waiting = [schema]
    while waiting:
        current = waiting.pop()
        if isinstance(current, dict):
            yield current
            waiting += current.values()
        elif isinstance(current, list | tuple):
            waiting += current
