"""Values of inputs as their fields' types, by pydantic, and values of DSPy as types that every wire format has."""

from __future__ import annotations

import datetime
import types
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pydantic
import pydantic_core

from bridge import errors
from bridge.adapters.dspy.signatures import Field
from bridge.adapters.dspy.values.scalars import read_choice, read_moment
from bridge.adapters.dspy.values.text_form import rounded_float, without_text_form


class InputCheck:
    """Checks the values of one input field, and converts them to its type."""

    def __init__(self, field: Field) -> None:
        self._path = f"args.inputs.{field.name}"
        self._type_name = field.type_name
        self._is_exact = field.is_exact
        config = pydantic.ConfigDict(coerce_numbers_to_str=True)
        self._validate = pydantic.TypeAdapter(_as_hosts_write(field.type), config=config).validate_python

    def value(self, value: Any) -> Any:
        """Return `value` as the field's type. Raises InvalidArgs with the path of what is wrong."""
        unreadable = without_text_form(value, self._path)
        if unreadable is not None:
            path, kind = unreadable
            raise self._invalid(path, f"{kind} has no text form for a prompt")
        rounded = rounded_float(value, self._path) if self._is_exact else None
        if rounded is not None:
            raise self._invalid(
                rounded, "a float may have been rounded: send a decimal of this many digits as a string"
            )
        try:
            return self._validate(value)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            path = self._path + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
            raise self._invalid(path, f"expected {self._type_name}: {first['msg']}") from None

    def accepts_none(self) -> bool:
        """Return whether the input may be left out."""
        try:
            self._validate(None)
        except pydantic.ValidationError:
            return False
        return True

    def _invalid(self, path: str, reason: str) -> errors.InvalidArgs:
        return errors.InvalidArgs(f"{path}: {reason}", path=path, expected=self._type_name)


def _as_hosts_write(type: Any) -> Any:
    """Return `type`, extended by the other forms in which hosts write its values.

    Dates and times are ISO 8601 only: pydantic takes numbers for seconds since 1970, so that 20240229 would be a day
    of that year. Literal keys of a map may be text, because JSON has no other keys. An empty list is an empty map.
    """
    if type in (datetime.date, datetime.datetime, datetime.time):
        return _before(type, partial(read_moment, type=type))
    arguments = get_args(type)
    members: Any = tuple(map(_as_hosts_write, arguments))
    origin = get_origin(type)
    if origin is dict:
        key = members[0]
        if get_origin(key) is Literal:
            key = _before(key, partial(read_choice, choices=arguments[0].__args__))
        return _before(origin[key, members[1]], _as_map)
    if origin is list:
        return origin[members]
    if origin in (Union, types.UnionType):
        if any(get_origin(each) is list or each is Any for each in arguments):
            members = tuple(map(_plain_dict, members))
        return Union[members]  # noqa: UP007  # `|` takes no tuple
    return type


def _before(type: Any, read: Callable[[Any], Any]) -> Any:
    return Annotated[type, pydantic.BeforeValidator(read)]


def _as_map(value: Any) -> Any:
    return {} if value == [] else value


def _plain_dict(type: Any) -> Any:
    """Return a dict type that does not accept an empty list, because another member of its union does."""
    is_dict = get_origin(type) is Annotated and get_origin(type.__origin__) is dict
    return type.__origin__ if is_dict else type


def plain(value: Any) -> Any:
    """Return `value` in types that every wire format has; a value of another type becomes text."""
    return pydantic_core.to_jsonable_python(value, inf_nan_mode="constants", fallback=str)
