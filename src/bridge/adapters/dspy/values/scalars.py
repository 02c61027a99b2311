"""Values that are neither text nor collections: numbers, dates, choices, as a model or a host wrote them.

Integers and decimals are exact.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import re
import types
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any, Literal, get_args, get_origin

from bridge.adapters.dspy.values.literals import read_data

MAX_MOMENT = 100  # characters of a date, a time, or both
MAX_DIGITS = 4300  # of an integer, Python's own limit
NULLS = ("null", "None")
_YES = frozenset({"true", "yes", "y", "t", "on", "1"})
_NO = frozenset({"false", "no", "n", "f", "off", "0"})
_GROUPED = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:_\d+)*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,9})?")
_TOO_FINE = re.compile(r"[.,]\d{6}\d*[1-9]")
_ZONE = re.compile(r"\s+(?=[+-]\d\d:?\d\d$|Z$)")
# Python reads a fraction of an hour or of a minute as one of a second.
_WITHOUT_SECONDS = re.compile(r"(?:.*[T ])?(?:\d\d|\d\d:\d\d|\d{4})[.,].*", re.IGNORECASE)


def read_scalar(value: Any, type: Any) -> Any:
    """Return `value`, which is text or decoded data, as a scalar type. Raises ValueError."""
    if is_literal(type):
        return _choice(value, get_args(type))
    if isinstance(value, str) and len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        value = value[1:-1].strip()
    if isinstance(value, list | dict):
        raise mismatch(name_of(type), value)
    return SCALARS[type](value)


def read_choice(value: Any, choices: tuple[Any, ...]) -> Any:
    """Return the choice that the text `value` means, or `value` itself if it means none."""
    if isinstance(value, str) and value not in choices:
        with contextlib.suppress(ValueError):
            return [*_equal(read_data(value), choices), value][0]
    return value


def read_moment(value: Any, type: Any) -> Any:
    """Return a date, a time, or both, from ISO 8601. Raises ValueError."""
    return value if isinstance(value, datetime.date | datetime.time) else SCALARS[type](value)


def _integer(value: Any) -> int:
    number = _exact(value, "an integer")
    if number.adjusted() >= MAX_DIGITS:
        raise ValueError(f"an integer of more than {MAX_DIGITS} digits")
    if number != number.to_integral_value():
        raise mismatch("an integer", value)
    return int(number)


def _float(value: Any) -> float:
    exact = _exact(value, "a number")
    number = float(exact)
    if not math.isfinite(number) or (exact and not number):
        size = "small" if exact and not number else "large"
        raise ValueError(f"{_shown(value)} is too {size} for a float")
    return number


def _decimal(value: Any) -> Decimal:
    return _exact(value, "a decimal number")


def _exact(value: Any, expected: str) -> Decimal:
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        return Decimal(value)
    if isinstance(value, str):
        text = value.strip()
        if _GROUPED.fullmatch(text):
            return Decimal(text.replace(",", ""))
        if _NUMBER.fullmatch(text):
            return Decimal(text.replace("_", ""))
    raise mismatch(expected, value)


def _boolean(value: Any) -> bool:
    word = value if isinstance(value, bool) else str(value).strip().removesuffix(".").lower()
    if word is True or word in _YES:
        return True
    if word is False or word in _NO:
        return False
    raise mismatch("a boolean", value)


def _null(value: Any) -> None:
    if value is not None and str(value).strip() not in (*NULLS, "nil", ""):
        raise mismatch("null", value)


def _date(value: Any) -> datetime.date:
    text = _iso(value, "a date")
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        moment = _moment(text, "a date")
        if moment.time() != datetime.time() or moment.tzinfo is not None:
            raise ValueError(f"expected a date without a time, not {_shown(value)}") from None
        return moment.date()


def _datetime(value: Any) -> datetime.datetime:
    return _moment(_iso(value, "a date and time"), "a date and time")


def _moment(text: str, expected: str) -> datetime.datetime:
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise mismatch(expected, text) from None
    _check_zone(moment.utcoffset(), text)
    return moment


def _time(value: Any) -> datetime.time:
    text = _iso(value, "a time")
    try:
        moment = datetime.time.fromisoformat(text)
    except ValueError:
        raise mismatch("a time", value) from None
    _check_zone(moment.utcoffset(), text)
    return moment


def _check_zone(offset: datetime.timedelta | None, text: str) -> None:
    if offset is not None and offset.total_seconds() % 60:
        raise ValueError(f"the zone of {_shown(text)} has seconds, which ISO 8601 cannot express")


def _iso(value: Any, expected: str) -> str:
    """Return the text of a date or a time in a form that Python reads. Raises ValueError."""
    if not isinstance(value, str) or len(value) > MAX_MOMENT:
        raise mismatch(expected, value)
    if _TOO_FINE.search(value):
        raise ValueError(f"{_shown(value)} is finer than a microsecond")
    if _WITHOUT_SECONDS.fullmatch(value.strip()):
        raise ValueError(f"{_shown(value)} has a fraction, but no seconds")
    text = value.strip().removesuffix(" UTC").removesuffix(" GMT")
    text += "Z" if text != value.strip() else ""
    return _ZONE.sub("", text)


def _uuid(value: Any) -> uuid.UUID:
    try:
        return uuid.UUID(value)
    except (ValueError, AttributeError, TypeError):
        raise mismatch("a UUID", value) from None


SCALARS: dict[Any, Callable[[Any], Any]] = {
    int: _integer,
    float: _float,
    bool: _boolean,
    Decimal: _decimal,
    datetime.date: _date,
    datetime.datetime: _datetime,
    datetime.time: _time,
    uuid.UUID: _uuid,
    types.NoneType: _null,
}


def _choice(value: Any, allowed: tuple[Any, ...]) -> Any:
    if not isinstance(value, str):
        # The choices may be texts that look like numbers or constants of JSON.
        found = [*_equal(value, allowed), *(each for each in allowed if each == str(value))]
        if found:
            return found[0]
        raise mismatch(names_of(allowed), value)
    spellings = _spellings(value)
    for candidate in spellings:
        if candidate in allowed:
            return candidate
    for candidate in spellings:
        with contextlib.suppress(ValueError):
            found = _equal(read_data(candidate), allowed)
            if found:
                return found[0]
    texts = [each for each in allowed if isinstance(each, str)]
    for candidate in spellings:
        wanted = candidate.strip().lower()
        near = [each for each in texts if each.strip().lower() == wanted]
        if len(near) == 1:
            return near[0]
    raise mismatch(names_of(allowed), value)


def _equal(value: Any, allowed: tuple[Any, ...]) -> list[Any]:
    return [each for each in allowed if is_choice(value, each)]


def is_choice(value: Any, choice: Any) -> bool:
    """Return whether `value`, whose fractions are decimals, equals `choice` and has its type (True is not 1)."""
    if isinstance(choice, float) and isinstance(value, int | Decimal) and not isinstance(value, bool):
        return Decimal(repr(choice)) == value
    return type(choice) is type(value) and bool(choice == value)


def _spellings(text: str) -> list[str]:
    """Return the ways to read a choice: as written, without quotes, without a full stop, without Literal[…]."""
    found = [text, text.strip()]
    inner = re.fullmatch(r"(?:Literal|str)\[(.*)\]", found[-1], re.DOTALL)
    if inner:
        found.append(inner[1].strip())
    for each in [*found]:
        if len(each) > 1 and each[0] == each[-1] and each[0] in "\"'":
            found.append(each[1:-1])
    return [*found, *(each.removesuffix(".") for each in found)]


def is_literal(type: Any) -> bool:
    return get_origin(type) is Literal


def name_of(type: Any) -> str:
    """Return the name of a type in errors."""
    if get_origin(type) is Annotated:
        return name_of(get_args(type)[0])
    if get_origin(type) in (list, dict):
        return f"{type.__origin__.__name__}[{', '.join(map(name_of, get_args(type)))}]"
    if type is Any or get_origin(type) is not None:
        return str(type).replace("typing.", "").replace("decimal.", "").replace("datetime.", "")
    return str(type.__name__)


def names_of(members: tuple[Any, ...]) -> str:
    """Return the names of the members of a union, or of choices, in errors."""
    names = (name_of(each) if _is_type(each) else repr(each) for each in members)
    return "one of " + ", ".join(names)


def _is_type(member: Any) -> bool:
    return member is Any or isinstance(member, type) or get_origin(member) is not None


def mismatch(expected: str, value: Any) -> ValueError:
    """Return the error for a value that is not what was expected."""
    return ValueError(f"expected {expected}, not {_shown(value)}")


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else _described(value)
    text = " ".join(text.split())
    return repr(text if len(text) <= 80 else f"{text[:80]}…") if isinstance(value, str) else text


def _described(value: Any) -> str:
    if isinstance(value, list | dict):
        return f"a {type(value).__name__}"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return "an integer of many digits"
    return str(value)[:80]
