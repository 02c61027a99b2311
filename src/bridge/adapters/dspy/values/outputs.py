"""Values of output fields, from the text that a model wrote.

Nothing is lost: integers and decimals are exact, and texts stay as they were written.
"""

from __future__ import annotations

import datetime
import math
import types
import uuid
from decimal import Decimal
from functools import lru_cache
from typing import Any, Union, get_args, get_origin

from dspy.adapters.utils import parse_value

from bridge.adapters.dspy.values.literals import NotData, list_items, read_data, unfenced, within_prose
from bridge.adapters.dspy.values.scalars import NULLS, SCALARS, is_literal, mismatch, name_of, names_of, read_scalar

# Types with a form that is hardly ever meant as text.
_WRITTEN = (datetime.date, datetime.datetime, datetime.time, uuid.UUID)


def read_value(text: str, type: Any) -> Any:
    """Return the text of a field as a value of its type. Raises ValueError with a message of one line.

    Text is returned unchanged. Other values may be written bare, in quotes, as JSON or as a Python literal, in a code
    block or between backquotes; lists also with a bullet or a number on each line; lists and maps also after a line
    of prose or a colon. Types that only modules of the operator have, such as models of pydantic, are read by DSPy.
    """
    if type is str:
        return text
    if type is Any:
        return _read_any(text)
    if not _is_declarable(type):
        return parse_value(text, type)
    if _is_union(type):
        return _read_union(text, get_args(type))
    bare = unfenced(text)
    if get_origin(type) in (list, dict):
        return _read_collection(bare, type)
    return read_scalar(bare, type)


@lru_cache(maxsize=1024)
def _is_declarable(type: Any) -> bool:
    """Return whether a host can declare a field of this type."""
    if type in (str, Any) or is_literal(type) or type in SCALARS:
        return True
    if get_origin(type) in (list, dict) or _is_union(type):
        return all(map(_is_declarable, get_args(type)))
    return False


def _read_any(text: str) -> Any:
    try:
        return _number_or_text(read_data(unfenced(text)))
    except (ValueError, RecursionError):
        return text


def _read_union(text: str, members: tuple[Any, ...]) -> Any:
    bare = unfenced(text)
    if types.NoneType in members and bare in NULLS:
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
    # If text is allowed, only an unmistakable form is read as another type.
    readable = [member for member in members if member not in (str, types.NoneType, Any)]
    if str in members:
        readable = [member for member in readable if member in _WRITTEN or is_literal(member)]
    if str in members and bare.isdecimal():
        return text  # digits alone may be ISO 8601, but are more often text
    for member in readable:
        try:
            return read_value(bare, member)
        except ValueError:
            continue
    if str in members:
        return text
    if Any in members:
        return _read_any(text)
    raise mismatch(names_of(members), text)


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
        raise mismatch(name_of(type), bare)
    return [read_value(item, get_args(type)[0]) for item in items]


def convert(data: Any, type: Any, path: str = "") -> Any:
    """Return data that was read as a value of `type`. Raises ValueError. path: that of `data`, for errors."""
    try:
        return _converted(data, type, path)
    except _LocatedError:
        raise
    except ValueError as error:
        raise _LocatedError(f"{path[:100]}: {error}" if path else str(error)) from None


class _LocatedError(ValueError):
    """An error whose message begins with the path."""


def _converted(data: Any, type: Any, path: str) -> Any:
    origin = get_origin(type)
    if type is Any:
        return _number_or_text(data)
    if _is_union(type):
        return _convert_union(data, get_args(type), path)
    if origin is list:
        if not isinstance(data, list):
            raise mismatch(name_of(type), data)
        (item,) = get_args(type)
        return [convert(each, item, f"{path}[{index}]") for index, each in enumerate(data)]
    if origin is dict:
        if not isinstance(data, dict):
            raise mismatch(name_of(type), data)
        key_type, value_type = get_args(type)
        made = {
            convert(key, key_type, f"{path}.{key}"): convert(each, value_type, f"{path}.{key}")
            for key, each in data.items()
        }
        if len(made) < len(data):
            raise ValueError("two keys that are equal")
        return made
    if type is str:
        if isinstance(data, int) and not isinstance(data, bool):
            return str(data)
        if not isinstance(data, str):
            raise mismatch("text", data)
        return data
    return read_scalar(data.strip() if isinstance(data, str) else data, type)


def _convert_union(data: Any, members: tuple[Any, ...], path: str) -> Any:
    fitting = _fitting(data, members)
    for member in [*fitting, *(each for each in members if each not in fitting)]:
        try:
            return convert(data, member, path)
        except ValueError:
            continue
    raise mismatch(names_of(members), data)


def _number_or_text(data: Any) -> Any:
    """Return data of any type; a fraction becomes a float if that holds it exactly as written."""
    if isinstance(data, Decimal):
        number = float(data)
        return number if math.isfinite(number) and Decimal(repr(number)) == data else data
    if isinstance(data, list):
        return [_number_or_text(each) for each in data]
    if isinstance(data, dict):
        return {key: _number_or_text(each) for key, each in data.items()}
    return data


def _fitting(data: Any, members: tuple[Any, ...]) -> list[Any]:
    """Return the members of a union whose type `data` has. An integer also fits a float, but less well."""
    fitting = [member for member in members if _is_of(data, member) and member is not Any]
    if data.__class__ is int:
        fitting += [member for member in members if member in (float, Decimal)]
    return fitting + [member for member in members if member is Any]


def _is_of(data: Any, type: Any) -> bool:
    """Return whether `data` has the type that JSON has for `type`, without reading any text."""
    if is_literal(type):
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
