"""Whether values of one field's type are values of another's."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from bridge.adapters.dspy.schemas.objects import Items, Object, is_kind
from bridge.adapters.dspy.signatures import Field
from bridge.adapters.dspy.values.conversion import bare_type, is_union


def accepts(target: Field, source: Field) -> bool:
    """Return whether values of `source` may be values of `target`. A run checks what depends on the value."""
    try:
        return is_same(target, source) or _accepts(target.type, source.type)
    except RecursionError:  # different schemas of lists that contain themselves
        return True


def is_same(one: Field, other: Field) -> bool:
    """Return whether two fields have the same type, whatever their names."""
    return (one.type_name, one.schema) == (other.type_name, other.schema)


def _accepts(target: Any, source: Any) -> bool:
    target, source = bare_type(target), bare_type(source)
    if Any in (target, source) or target == source:
        return True
    if is_union(source):
        return all(_accepts(target, each) for each in get_args(source))
    if is_union(target):
        return any(_accepts(each, source) for each in get_args(target))
    if get_origin(source) is Literal:
        choices = get_args(target) if get_origin(target) is Literal else None
        values = get_args(source)
        return all(each in choices for each in values) if choices else all(_accepts(target, type(v)) for v in values)
    if target is str:  # numbers, dates and the like have a text form
        return get_origin(source) is None and source not in (list, dict, type(None)) and _is_scalar(source)
    if target is float:
        return source is int
    if get_args(target) and get_args(source) and get_origin(target) is get_origin(source):
        return all(map(_accepts, get_args(target), get_args(source)))
    return _shape(target) is _shape(source)


def _shape(kind: Any) -> Any:
    return dict if is_kind(kind, Object) else list if is_kind(kind, Items) else get_origin(kind) or kind


def _is_scalar(kind: Any) -> bool:
    module = getattr(kind, "__module__", "")
    return module in ("datetime", "decimal", "uuid") or kind in (int, float, bool)
