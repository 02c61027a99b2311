"""Values of output fields, from the text that a model wrote.

Nothing is lost: integers and decimals are exact, and texts stay as they were written.
"""

from __future__ import annotations

import contextlib
import datetime
import types
import uuid
from functools import lru_cache
from typing import Annotated, Any, get_args, get_origin

from dspy.adapters.utils import parse_value

from bridge.adapters.dspy.schemas.constraints import unconstrained
from bridge.adapters.dspy.schemas.objects import Items, Named, Object, is_kind, target_of
from bridge.adapters.dspy.values.conversion import (
    LocatedError,
    bare_type,
    code_in,
    convert,
    fitting_members,
    is_union,
    nearest,
    number_or_text,
)
from bridge.adapters.dspy.values.literals import NotData, list_items, read_data, unfenced, within_prose
from bridge.adapters.dspy.values.scalars import NULLS, SCALARS, is_literal, mismatch, name_of, names_of, read_scalar
from bridge.adapters.type_names import Code, Reasoning

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
    if is_kind(type, Code):
        return code_in(_content(text, "code"))
    if type is Reasoning:
        return _content(text, "content")
    if not is_declarable(type):
        return parse_value(text, type)
    if get_origin(type) is Annotated:
        return _read_constrained(text, type)
    if is_kind(type, Named):
        return read_value(text, target_of(type))
    if is_union(type):
        return _read_union(text, get_args(type))
    bare = unfenced(text)
    if get_origin(type) in (list, dict) or is_kind(type, Object) or is_kind(type, Items):
        return _read_collection(bare, type)
    return read_scalar(bare, type)


def read_text(text: str, type: Any) -> Any:
    """Return a text that is known to be one, like a string of JSON, as a value of its type. Raises ValueError.

    Where text is allowed it remains text, even if it reads `null`.
    """
    if is_kind(type, Code) or not is_declarable(type):
        return read_value(text, type)
    try:
        return convert(text, type)
    except ValueError:
        if bare_type(type) is str:
            raise
    return read_value(text, type)


@lru_cache(maxsize=1024)
def is_declarable(type: Any) -> bool:
    """Return whether a host can declare a field of this type."""
    if type in (str, Any, Reasoning) or is_literal(type) or type in SCALARS:
        return True
    if any(is_kind(type, kind) for kind in (Code, Object, Items, Named)):
        return True
    if get_origin(type) is Annotated:
        return is_declarable(unconstrained(type)[0])
    if get_origin(type) in (list, dict) or is_union(type):
        return all(map(is_declarable, get_args(type)))
    return False


def _read_constrained(text: str, type: Any) -> Any:
    base, constraints = unconstrained(type)
    value = read_value(text, base)
    try:
        for constraint in constraints:
            constraint.check(value)
    except ValueError as error:
        bare = unfenced(text)
        if base is str and bare[:1] == bare[-1:] == '"':  # a text in quotes, if that is what meets the constraints
            with contextlib.suppress(ValueError):
                return convert(read_data(bare), type)
        raise LocatedError("", error) from None
    return value


def _content(text: str, key: str) -> str:
    """Return the text in an object that has only this key, as which DSPy describes some types, or else `text`."""
    if text.lstrip().startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):
            data = read_data(text.strip())
            if data.keys() == {key} and isinstance(data[key], str):
                return str(data[key])
    return text


def _read_any(text: str) -> Any:
    try:
        return number_or_text(read_data(unfenced(text)))
    except (ValueError, RecursionError):
        return text


def _read_union(text: str, members: tuple[Any, ...]) -> Any:
    bare = unfenced(text)
    if types.NoneType in members and bare in NULLS:
        return None
    problems: list[LocatedError] = []
    try:
        data = read_data(bare)
    except (ValueError, RecursionError):
        data = None
    else:
        for member in fitting_members(data, members):
            try:
                return convert(data, member)
            except LocatedError as error:
                problems.append(error)
    # If text is allowed, only an unmistakable form is read as another type.
    text_member = next((member for member in members if bare_type(member) is str), None)
    readable = [member for member in members if bare_type(member) not in (str, types.NoneType, Any)]
    if text_member is not None:
        readable = [member for member in readable if bare_type(member) in _WRITTEN or is_literal(bare_type(member))]
        if bare.isdecimal():
            return read_value(text, text_member)  # digits alone may be ISO 8601, but are more often text
    for member in readable:
        try:
            return read_value(bare, member)
        except ValueError:
            continue
    if text_member is not None:
        return read_value(text, text_member)
    if Any in members:
        return _read_any(text)
    raise nearest(problems) or mismatch(names_of(members), text)


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
