"""Values of inputs as Python types, by pydantic, and values of DSPy as types that every wire format has."""

from __future__ import annotations

import datetime
import types
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pydantic
import pydantic_core

from bridge import errors
from bridge.adapter import reason_of
from bridge.adapters.dspy.values.scalars import read_choice, read_moment
from bridge.adapters.dspy.values.text_form import rounded_float, without_text_form
from bridge.wire.type_walk import short_key

AS_SENT = "as sent"  # the context in which images and files are serialized in the form in which hosts send them


class InputCheck:
    """Checks the values of one input, and converts them to its type.

    is_exact: whether its values contain decimals.
    """

    def __init__(self, name: str, type: Any, type_name: str, *, is_exact: bool = False) -> None:
        self._name = name
        self._type_name = type_name
        self._is_exact = is_exact
        self._validate = _adapter(_as_hosts_write(type)).validate_python

    def value(self, value: Any, parent: str = "args.inputs") -> Any:
        """Return `value` as the field's type. Raises InvalidArgs with the path of what is wrong.

        parent: the path of the map that has the value.
        """
        path = f"{parent}.{self._name}"
        with_text_form(value, path, self._type_name)
        rounded = rounded_float(value, path) if self._is_exact else None
        if rounded is not None:
            reason = "a float may have been rounded: send a decimal of this many digits as a string"
            raise _invalid(rounded, reason, self._type_name)
        try:
            return self._validate(value)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            path += "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
            raise _invalid(path, f"expected {self._type_name}: {first['msg']}", self._type_name) from None
        except Exception as error:  # a type of a module of the operator may raise anything
            raise _invalid(path, f"expected {self._type_name}: {reason_of(error)}", self._type_name) from error

    def accepts_none(self) -> bool:
        """Return whether the input may be left out."""
        try:
            self._validate(None)
        except pydantic.ValidationError:
            return False
        return True


def with_text_form(value: Any, path: str, type_name: str = "any") -> Any:
    """Return `value` unchanged. Raises InvalidArgs, with the path of the part, if a part of it has no text form."""
    unreadable = without_text_form(value, path)
    if unreadable is not None:
        where, kind = unreadable
        raise _invalid(where, f"{kind} has no text form for a prompt", type_name)
    return value


def wrong_names(
    unknown: list[Any], missing: list[str], declared: list[str], owner: str, path: str = "args.inputs"
) -> errors.InvalidArgs:
    """Return the error for inputs that `owner` does not declare, or else for those that are missing.

    path: of the inputs in the args.
    """
    kind = path.rpartition(".")[2].partition("[")[0]
    if kind not in ("inputs", "outputs"):  # of a map with both
        kind = "fields"
    if unknown:
        unknown = [as_text(name) for name in unknown]
        return errors.InvalidArgs(
            f"{kind} not declared by {owner}: {', '.join(unknown)}; declared: {', '.join(declared) or 'none'}",
            path=f"{path}.{unknown[0]}",
            unknown=unknown,
            declared=declared,
        )
    return errors.InvalidArgs(f"{kind} missing: {', '.join(missing)}", path=f"{path}.{missing[0]}", missing=missing)


def as_text(name: Any) -> str:
    """Return the name of a field as a host has sent it, which may be anything, for an error."""
    return name if isinstance(name, str) else short_key(name)


def _invalid(path: str, reason: str, type_name: str) -> errors.InvalidArgs:
    return errors.InvalidArgs(f"{path}: {reason}", path=path, expected=type_name)


def _adapter(type: Any) -> pydantic.TypeAdapter[Any]:
    config = pydantic.ConfigDict(coerce_numbers_to_str=True, arbitrary_types_allowed=True)
    try:
        return pydantic.TypeAdapter(type, config=config)
    except pydantic.PydanticUserError:  # a model, a dataclass or a TypedDict has its own config
        return pydantic.TypeAdapter(type)


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
    return pydantic_core.to_jsonable_python(value, inf_nan_mode="constants", fallback=str, context=AS_SENT)
