"""Whether values of one field's type are values of another's."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from bridge.adapters.dspy.signatures import Field


def accepts(target: Field, source: Field) -> bool:
    """Return whether each value of `source` is one of `target`. A source of any values may be, which a run checks."""
    return is_same(target, source) or _accepts(target.type, source.type)


def is_same(one: Field, other: Field) -> bool:
    """Return whether two fields have the same type, whatever their names."""
    names = {"name": "", "label": "", "python_name": "", "description": ""}
    same: bool = msgspec.structs.replace(one, **names) == msgspec.structs.replace(other, **names)
    return same


def _accepts(target: Any, source: Any) -> bool:
    target, source = _plain(target), _plain(source)
    if Any in (target, source) or target == source:
        return True
    if _is_union(source):
        return all(_accepts(target, each) for each in get_args(source))
    if _is_union(target):
        return any(_accepts(each, source) for each in get_args(target))
    if get_origin(source) is Literal:
        choices = get_args(target) if get_origin(target) is Literal else None
        values = get_args(source)
        return all(each in choices for each in values) if choices else all(_accepts(target, type(v)) for v in values)
    if target is str:  # numbers, dates and the like have a text form
        return get_origin(source) is None and source not in (list, dict, type(None)) and _is_scalar(source)
    if target is float:
        return source is int
    if get_origin(source) in (list, dict) and target is get_origin(source):
        return True
    if get_origin(target) in (list, dict) and source is get_origin(target):
        return True
    if get_origin(target) in (list, dict) and get_origin(target) is get_origin(source):
        return all(map(_accepts, get_args(target), get_args(source)))
    return False


def _plain(kind: Any) -> Any:
    return kind.__origin__ if get_origin(kind) is Annotated else kind


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def _is_scalar(kind: Any) -> bool:
    module = getattr(kind, "__module__", "")
    return module in ("datetime", "decimal", "uuid") or kind in (int, float, bool)
