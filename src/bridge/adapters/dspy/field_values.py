"""Values of output fields: what a model wrote, as the field's type, or an error that says why not.

Nothing of it is lost on the way: integers and decimals are exact, texts are as they were written.
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
from typing import Any, Literal, Union, get_args, get_origin

from bridge.adapters.dspy.literals import (
    NotData,
    list_items,
    read_data,
    unfenced,
    within_prose,
)

MAX_MOMENT = 100  # characters of a date, a time, or both
MAX_DIGITS = 4300  # of an integer, Python's own limit
_NULLS = ("null", "None")
_YES = frozenset({"true", "yes", "y", "t", "on", "1"})
_NO = frozenset({"false", "no", "n", "f", "off", "0"})
_GROUPED = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:_\d+)*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,9})?")
_TOO_FINE = re.compile(r"[.,]\d{6}\d*[1-9]")
_ZONE = re.compile(r"\s+(?=[+-]\d\d:?\d\d$|Z$)")
# Python takes a fraction of an hour or of a minute for one of a second.
_WITHOUT_SECONDS = re.compile(r"(?:.*[T ])?(?:\d\d|\d\d:\d\d|\d{4})[.,].*", re.IGNORECASE)


def read_value(text: str, type: Any) -> Any:
    """Return the text of a field as a value of its type. Raises ValueError, with one line.

    Texts stay as they are. Other types may be written bare, in quotes, as JSON or as a Python
    literal, in a code block or between backquotes; lists also with a bullet or a number a line;
    lists and maps also below a line, or behind a colon, of prose.
    """
    if type is str:
        return text
    if type is Any:
        return _read_any(text)
    if _is_union(type):
        return _read_union(text, get_args(type))
    bare = unfenced(text)
    if get_origin(type) in (list, dict):
        return _read_collection(bare, type)
    return _scalar(bare, type)


def _read_any(text: str) -> Any:
    try:
        return _number_or_text(read_data(unfenced(text)))
    except (ValueError, RecursionError):
        return text


def _read_union(text: str, members: tuple[Any, ...]) -> Any:
    bare = unfenced(text)
    if types.NoneType in members and bare in _NULLS:
        return None
    try:
        data = read_data(bare)
    except (ValueError, RecursionError):
        data = None
    else:
        for member in _fitting(data, members):
            try:
                return convert(data, member)
            except ValueError:
                continue
    # Where text is allowed, it is only something else if it is written as that.
    readable = [member for member in members if member not in (str, types.NoneType, Any)]
    if str in members:
        readable = [member for member in readable if member in _WRITTEN or _is_literal(member)]
    if str in members and bare.isdecimal():
        return text  # ISO 8601 has forms of digits alone, but so have many texts
    for member in readable:
        try:
            return read_value(bare, member)
        except ValueError:
            continue
    if str in members:
        return text
    if Any in members:
        return _read_any(text)
    raise _expected(_named(members), text)


def _read_collection(bare: str, type: Any) -> Any:
    try:
        return convert(read_data(bare), type)
    except NotData:
        pass
    for part in within_prose(bare):
        try:
            return convert(read_data(part), type)
        except NotData:
            continue
    items = list_items(bare) if get_origin(type) is list else None
    if items is None:
        raise _expected(_name(type), bare)
    return [read_value(item, get_args(type)[0]) for item in items]


def convert(data: Any, type: Any, place: str = "") -> Any:
    """Return data that was read as a value of `type`. place: where it stands, for errors."""
    try:
        return _converted(data, type, place)
    except _Misplaced:
        raise
    except ValueError as error:
        raise _Misplaced(f"{place[:100]}: {error}" if place else str(error)) from None


class _Misplaced(ValueError):
    """An error whose message says where."""


def _converted(data: Any, type: Any, place: str) -> Any:
    origin = get_origin(type)
    if type is Any:
        return _number_or_text(data)
    if _is_union(type):
        return _convert_union(data, get_args(type), place)
    if origin is list:
        if not isinstance(data, list):
            raise _expected(_name(type), data)
        (item,) = get_args(type)
        return [convert(each, item, f"{place}[{index}]") for index, each in enumerate(data)]
    if origin is dict:
        if not isinstance(data, dict):
            raise _expected(_name(type), data)
        key_type, value_type = get_args(type)
        made = {
            convert(key, key_type, f"{place}.{key}"): convert(each, value_type, f"{place}.{key}")
            for key, each in data.items()
        }
        if len(made) < len(data):
            raise ValueError("two keys that are the same")
        return made
    if type is str:
        if isinstance(data, int) and not isinstance(data, bool):
            return str(data)
        if not isinstance(data, str):
            raise _expected("text", data)
        return data
    return _scalar(data.strip() if isinstance(data, str) else data, type)


def _convert_union(data: Any, members: tuple[Any, ...], place: str) -> Any:
    fitting = _fitting(data, members)
    for member in [*fitting, *(each for each in members if each not in fitting)]:
        try:
            return convert(data, member, place)
        except ValueError:
            continue
    raise _expected(_named(members), data)


def _scalar(value: Any, type: Any) -> Any:
    """Return a value, a text or data, as a type that is neither text nor a collection."""
    if _is_literal(type):
        return _choice(value, get_args(type))
    if isinstance(value, str) and len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        value = value[1:-1].strip()
    if isinstance(value, list | dict):
        raise _expected(_name(type), value)
    return _SCALARS[type](value)


def _integer(value: Any) -> int:
    number = _exact(value, "an integer")
    if number.adjusted() >= MAX_DIGITS:
        raise ValueError(f"an integer of more than {MAX_DIGITS} digits")
    if number != number.to_integral_value():
        raise _expected("an integer", value)
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
    raise _expected(expected, value)


def _boolean(value: Any) -> bool:
    word = value if isinstance(value, bool) else str(value).strip().removesuffix(".").lower()
    if word is True or word in _YES:
        return True
    if word is False or word in _NO:
        return False
    raise _expected("a boolean", value)


def _null(value: Any) -> None:
    if value is not None and str(value).strip() not in (*_NULLS, "nil", ""):
        raise _expected("null", value)


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
        raise _expected(expected, text) from None
    _check_zone(moment.utcoffset(), text)
    return moment


def _time(value: Any) -> datetime.time:
    text = _iso(value, "a time")
    try:
        moment = datetime.time.fromisoformat(text)
    except ValueError:
        raise _expected("a time", value) from None
    _check_zone(moment.utcoffset(), text)
    return moment


def _check_zone(offset: datetime.timedelta | None, text: str) -> None:
    if offset is not None and offset.total_seconds() % 60:
        raise ValueError(f"the zone of {_shown(text)} has seconds, which ISO 8601 has no form for")


def _iso(value: Any, expected: str) -> str:
    """Return the text of a date or a time, as Python reads it; to the microsecond."""
    if not isinstance(value, str) or len(value) > MAX_MOMENT:
        raise _expected(expected, value)
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
        raise _expected("a UUID", value) from None


def read_key(value: Any, choices: tuple[Any, ...]) -> Any:
    """Return the choice that a host's key stands for; the key itself where it is none of them."""
    if isinstance(value, str) and value not in choices:
        with contextlib.suppress(ValueError):
            return [*_equal(read_data(value), choices), value][0]
    return value


def read_moment(value: Any, type: Any) -> Any:
    """Return a date, a time, or both, that a host sent as ISO 8601 writes it. Raises ValueError."""
    return value if isinstance(value, datetime.date | datetime.time) else _SCALARS[type](value)


_SCALARS: dict[Any, Callable[[Any], Any]] = {
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
# What cannot be taken for a text of some other meaning.
_WRITTEN = (datetime.date, datetime.datetime, datetime.time, uuid.UUID)


def _choice(value: Any, allowed: tuple[Any, ...]) -> Any:
    if not isinstance(value, str):
        # An enum may have texts that look like numbers or words of JSON.
        found = [*_equal(value, allowed), *(each for each in allowed if each == str(value))]
        if found:
            return found[0]
        raise _expected(_named(allowed), value)
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
    raise _expected(_named(allowed), value)


def _equal(value: Any, allowed: tuple[Any, ...]) -> list[Any]:
    """Return the choices that are `value`, of which True is not 1."""
    return [each for each in allowed if type(each) is type(value) and each == value]


def _spellings(text: str) -> list[str]:
    """Return a choice in the ways it may be written: in quotes, with a full stop, as Literal[…]."""
    found = [text, text.strip()]
    inner = re.fullmatch(r"(?:Literal|str)\[(.*)\]", found[-1], re.DOTALL)
    if inner:
        found.append(inner[1].strip())
    for each in [*found]:
        if len(each) > 1 and each[0] == each[-1] and each[0] in "\"'":
            found.append(each[1:-1])
    return [*found, *(each.removesuffix(".") for each in found)]


def _number_or_text(data: Any) -> Any:
    """Convert data of any type: fractions are floats, where these hold them exactly as written."""
    if isinstance(data, Decimal):
        number = float(data)
        return number if math.isfinite(number) and Decimal(repr(number)) == data else data
    if isinstance(data, list):
        return [_number_or_text(each) for each in data]
    if isinstance(data, dict):
        return {key: _number_or_text(each) for key, each in data.items()}
    return data


def _fitting(data: Any, members: tuple[Any, ...]) -> list[Any]:
    """Return the members that data is of, as it is: an integer is a float where there is no
    integer."""
    fitting = [member for member in members if _is_of(data, member) and member is not Any]
    if data.__class__ is int:
        fitting += [member for member in members if member in (float, Decimal)]
    return fitting + [member for member in members if member is Any]


def _is_of(data: Any, type: Any) -> bool:
    """Whether data is what JSON has for the type, without any reading of its text."""
    if _is_literal(type):
        return any(data == each and data.__class__ is each.__class__ for each in get_args(type))
    if type is Any:
        return True
    if type in (float, Decimal):
        return isinstance(data, Decimal)
    if type in (int, bool, str, types.NoneType):
        return data.__class__ is type
    return isinstance(data, get_origin(type)) if get_origin(type) in (list, dict) else False


def _is_union(type: Any) -> bool:
    return get_origin(type) in (Union, types.UnionType)


def _is_literal(type: Any) -> bool:
    return get_origin(type) is Literal


def _name(type: Any) -> str:
    if type is Any or get_origin(type) is not None:
        return str(type).replace("typing.", "").replace("decimal.", "").replace("datetime.", "")
    return str(type.__name__)


def _named(members: tuple[Any, ...]) -> str:
    names = (_name(each) if _is_type(each) else repr(each) for each in members)
    return "one of " + ", ".join(names)


def _is_type(member: Any) -> bool:
    return member is Any or isinstance(member, type) or get_origin(member) is not None


def _expected(expected: str, value: Any) -> ValueError:
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
