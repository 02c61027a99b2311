"""Values that a module of the operator returns, as types that every wire format has."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import math
import uuid
from collections.abc import Mapping
from typing import Any

import dspy
import pydantic

from bridge import errors
from bridge.adapters.dspy.values.inputs import plain

_INTEGERS = range(-(1 << 63), 1 << 64)  # those that MessagePack has
_DEEPEST = 200  # levels, far more than a reply may have
_AS_TEXT = (datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, uuid.UUID)


def plain_fields(result: Any) -> dict[str, Any]:
    """Return the fields of what a module returned as plain data.

    Models of pydantic and dataclasses become maps; tuples, sets and numpy arrays become lists; dates, decimals and
    UUIDs become text. Raises NotEncodable, with the path of the value, for anything else that JSON does not have.
    """
    fields = _fields_of(result)
    if fields is None:
        raise errors.NotEncodable(f"the module returned {type(result).__name__}, not a dspy.Prediction or a map")
    return _plain_map(fields, "outputs", 0)


def _plain(value: Any, path: str, depth: int) -> Any:
    if value is None or type(value) in (bool, str):
        return value
    if depth > _DEEPEST:
        raise errors.NotEncodable(f"{path[:100]}…: nested too deeply")
    if isinstance(value, enum.Enum):
        return _plain(value.value, path, depth + 1)
    if isinstance(value, int):
        if int(value) not in _INTEGERS:
            raise _refused(path, "an integer of more than 64 bits")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _refused(path, str(value))
        return float(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, _AS_TEXT):
        return plain(value)
    if isinstance(value, dspy.Type) and isinstance(value.format(), str):
        return value.format()  # code, reasoning
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
    fields = _fields_of(value)
    if fields is not None:
        return _plain_map(fields, path, depth + 1)
    if hasattr(value, "tolist"):  # of numpy
        return _plain(value.tolist(), path, depth + 1)
    raise _refused(path, f"a value of the type {type(value).__name__}")


def _plain_map(fields: dict[Any, Any], path: str, depth: int) -> dict[str, Any]:
    made = {_key(key, path): _plain(value, f"{path}.{key}", depth) for key, value in fields.items()}
    if len(made) < len(fields):
        raise _refused(path, "a map with two keys that are equal as text")
    return made


def _fields_of(value: Any) -> dict[Any, Any] | None:
    if isinstance(value, Mapping | dspy.Example):
        return dict(value.items())
    if isinstance(value, pydantic.BaseModel):
        declared = [*type(value).model_fields, *type(value).model_computed_fields]
        return {name: getattr(value, name) for name in declared} | (value.model_extra or {})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None


def _key(key: Any, path: str) -> str:
    if isinstance(key, enum.Enum):
        key = key.value
    if not isinstance(key, str | int) or isinstance(key, bool):
        raise _refused(path, f"a map with a key of the type {type(key).__name__}")
    return str(key)


def _refused(path: str, kind: str) -> errors.NotEncodable:
    return errors.NotEncodable(f"{path}: {kind} is not plain data", path=path)
