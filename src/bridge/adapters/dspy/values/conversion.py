"""Converts data, read from a model's text or sent by a host, to values of a type. Numbers stay exact."""

from __future__ import annotations

import datetime
import math
import re
import types
import uuid
from decimal import Decimal
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec

from bridge.adapters.dspy.schemas.constraints import Violation, unconstrained
from bridge.adapters.dspy.schemas.objects import Items, Named, Object, is_kind, target_of
from bridge.adapters.dspy.values.scalars import is_choice, is_literal, mismatch, name_of, names_of, read_scalar
from bridge.adapters.dspy.values.text_form import EXACT_DIGITS
from bridge.adapters.type_names import Code, Reasoning

_CODE_BLOCK = re.compile(r"```[^\n]*\n(.*?)(?:\n[ \t]*)?```", re.DOTALL)


class LocatedError(ValueError):
    """Raised for data that is not of its type. path: of the wrong part. violation: the constraint that it breaks."""

    def __init__(self, path: str, error: ValueError) -> None:
        super().__init__(f"{path[:100]}: {error}" if path else str(error))
        self.path = path
        self.reason = str(error)
        self.violation = error if isinstance(error, Violation) else None


def convert(data: Any, type: Any, path: str = "") -> Any:
    """Return data as a value of `type`. Raises LocatedError. path: that of `data`, for errors."""
    return _Conversion().value(data, type, path)


class _Conversion:
    """The conversion of one value.

    It remembers which parts are of which named types: a schema may offer the same alternatives on every level, and the
    time for trying them all again on each would grow exponentially.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], Any] = {}

    def value(self, data: Any, type: Any, path: str) -> Any:
        try:
            return self._converted(data, type, path)
        except LocatedError:
            raise
        except ValueError as error:
            raise LocatedError(path, error) from None

    def _converted(self, data: Any, type: Any, path: str) -> Any:
        origin = get_origin(type)
        if type is Any:
            return number_or_text(data)
        if is_union(type):
            return self._union(data, get_args(type), path)
        if origin is list:
            if not isinstance(data, list):
                raise mismatch(name_of(type), data)
            (item,) = get_args(type)
            return [self.value(each, item, f"{path}[{index}]") for index, each in enumerate(data)]
        if origin is dict:
            return self._map(data, type, path)
        if origin is Annotated:
            base, constraints = unconstrained(type)
            value = self.value(data, base, path)
            for constraint in constraints:
                constraint.check(value)
            return value
        if type is str:
            return _text(data)
        if is_kind(type, Code):
            return code_in(_text(_content(data, "code")))
        if type is Reasoning:
            return _text(_content(data, "content"))
        if is_kind(type, Named):
            return self._of_name(data, type, path)
        if is_kind(type, Object):
            return self._object(data, type, path)
        if is_kind(type, Items):
            return self._items(data, type, path)
        if type is Decimal and isinstance(data, _Float) and len(data.normalize().as_tuple().digits) > EXACT_DIGITS:
            raise ValueError("a float may have been rounded: send a decimal of this many digits as a string")
        return read_scalar(data.strip() if isinstance(data, str) else data, type)

    def _map(self, data: Any, type: Any, path: str) -> dict[Any, Any]:
        if not isinstance(data, dict):
            raise mismatch(name_of(type), data)
        key_type, value_type = get_args(type)
        made = {
            self.value(key, key_type, f"{path}.{key}"): self.value(each, value_type, f"{path}.{key}")
            for key, each in data.items()
        }
        if len(made) < len(data):
            raise ValueError("two keys that are equal")
        return made

    def _union(self, data: Any, members: tuple[Any, ...], path: str) -> Any:
        fitting = fitting_members(data, members)
        problems: list[LocatedError] = []
        for member in [*fitting, *(each for each in members if each not in fitting)]:
            try:
                return self.value(data, member, path)
            except LocatedError as error:
                problems += [error] * (member in fitting)
        raise nearest(problems, path) or mismatch(names_of(members), data)

    def _of_name(self, data: Any, type: type[Named], path: str) -> Any:
        if not isinstance(data, list | dict):
            return self.value(data, type.target, path)
        key = (id(type), id(data))
        if key not in self._known:
            try:
                self._known[key] = self.value(data, type.target, path)
            except LocatedError as error:
                self._known[key] = error
        known = self._known[key]
        if isinstance(known, LocatedError):
            raise known
        return known

    def _object(self, data: Any, type: type[Object], path: str) -> dict[str, Any]:
        if not isinstance(data, dict):
            raise mismatch("an object", data)
        made = {}
        for key, each in data.items():
            declared = type.properties.get(key)
            if declared is None and type.others is None:
                known = ", ".join(type.properties) or "none"
                raise Violation(key, "additionalProperties", False, f"one of the properties {known}")
            made[self.value(key, type.keys, f"{path}.{key}")] = self.value(
                each, type.others if declared is None else declared.type, f"{path}.{key}"
            )
        for name, declared in type.properties.items():
            if name not in data and declared.default is not None:
                made[name] = self.value(exact_numbers(msgspec.json.decode(declared.default)), declared.type, path)
            elif name not in data and declared.is_required:
                raise Violation(number_or_text(data), "required", name, f"an object with the property {name}")
        return made

    def _items(self, data: Any, type: type[Items], path: str) -> list[Any]:
        if not isinstance(data, list):
            raise mismatch("a list", data)
        if type.others is None and len(data) > len(type.first):
            raise Violation(number_or_text(data), "items", False, f"a list of at most {len(type.first)} items")
        types = [*type.first, *[type.others] * (len(data) - len(type.first))]
        return [
            self.value(each, item, f"{path}[{index}]")
            for index, (each, item) in enumerate(zip(data, types, strict=False))
        ]


def code_in(text: str) -> str:
    """Return the content of the first code block of a text, or else all of it, as DSPy does."""
    block = _CODE_BLOCK.search(text)
    return (block[1] if block else text).strip("\r\n").rstrip()


def _content(data: Any, key: str) -> Any:
    """Return the only value of a map with this key, as which DSPy describes some types; other data unchanged."""
    return data[key] if isinstance(data, dict) and data.keys() == {key} else data


def _text(data: Any) -> str:
    if isinstance(data, int) and not isinstance(data, bool):
        return str(data)
    if not isinstance(data, str):
        raise mismatch("text", data)
    return data


def nearest(problems: list[LocatedError], path: str = "") -> LocatedError | None:
    """Return the problem of the member of a union that the data was probably meant for; None if it fits none.

    problems: of the members whose type the data has. path: of the data.
    """
    specific = [each for each in problems if each.violation is not None or len(each.path) > len(path)]
    return max(specific, key=lambda each: (each.violation is not None, len(each.path)), default=None)


class _Float(Decimal):
    """A float of a host, which may have been rounded."""


def exact_numbers(data: Any) -> Any:
    """Return data of a host like data that was read from text: with decimals for floats, and texts for dates."""
    if isinstance(data, float):
        return _Float(repr(data))
    if isinstance(data, datetime.date | datetime.time):
        return data.isoformat()
    if isinstance(data, uuid.UUID):
        return str(data)
    if isinstance(data, list | tuple):
        return [exact_numbers(each) for each in data]
    if isinstance(data, dict):
        return {key: exact_numbers(each) for key, each in data.items()}
    return data


def number_or_text(data: Any) -> Any:
    """Return data of any type; a fraction becomes a float if that holds it exactly as written."""
    if isinstance(data, Decimal):
        number = float(data)
        return number if math.isfinite(number) and Decimal(repr(number)) == data else data
    if isinstance(data, list):
        return [number_or_text(each) for each in data]
    if isinstance(data, dict):
        return {key: number_or_text(each) for key, each in data.items()}
    return data


def fitting_members(data: Any, members: tuple[Any, ...]) -> list[Any]:
    """Return the members of a union whose type `data` has. An integer also fits a float, but less well."""
    fitting = [member for member in members if _is_of(data, member) and member is not Any]
    if data.__class__ is int:
        fitting += [member for member in members if bare_type(member) in (float, Decimal)]
    return fitting + [member for member in members if member is Any]


def bare_type(type: Any) -> Any:
    """Return a type without its name and its constraints."""
    while get_origin(type) is Annotated or is_kind(type, Named):
        type = target_of(unconstrained(type)[0])
    return type


def _is_of(data: Any, member: Any) -> bool:
    """Return whether `data` has the type that JSON has for `member`, without reading any text."""
    type = bare_type(member)
    if is_literal(type):
        return any(is_choice(data, each) for each in get_args(type))
    if type is Any:
        return True
    if type in (float, Decimal):
        return isinstance(data, Decimal)
    if type in (int, bool, str, types.NoneType):
        return data.__class__ is type
    if is_union(type):
        return any(_is_of(data, each) for each in get_args(type))
    if is_kind(type, Object) or get_origin(type) is dict:
        return isinstance(data, dict)
    return isinstance(data, list) if is_kind(type, Items) or get_origin(type) is list else False


def is_union(type: Any) -> bool:
    """Return whether `type` is a union."""
    return get_origin(type) in (Union, types.UnionType)
