"""Checks of the values that hosts send for the fields of a signature, by the type of the field."""

from __future__ import annotations

from types import NoneType
from typing import Any, Protocol, get_args, get_origin

import msgspec

from bridge import errors
from bridge.adapters.dspy.field_types import is_plain_type, media_of
from bridge.adapters.dspy.signatures import Field, Signature
from bridge.adapters.dspy.values.conversion import LocatedError, convert, exact_numbers
from bridge.adapters.dspy.values.history import HistoryCheck
from bridge.adapters.dspy.values.inputs import InputCheck, plain, with_text_form, wrong_names
from bridge.adapters.dspy.values.media import read_media
from bridge.adapters.type_names import History


class Check(Protocol):
    """Checks values of one field, and converts them to its type."""

    def value(self, value: Any, parent: str = "args.inputs") -> Any:
        """Return `value` as the field's type. Raises InvalidArgs with the path of what is wrong.

        parent: the path of the map that has the value.
        """

    def accepts_none(self) -> bool:
        """Return whether the value may be left out."""


def check_of(field: Field, signature: Signature) -> Check:
    """Return the check of the values that hosts send for `field` of `signature`."""
    if field.type is History:
        inputs, outputs = (
            {each.name: (each, check_of(each, signature).value) for each in side if each.type is not History}
            for side in (signature.inputs, signature.outputs)
        )
        return HistoryCheck(field.name, inputs, outputs)
    if media_of(field.type) is not None:
        return _MediaCheck(field)
    if field.schema or not is_plain_type(field.type):
        return _SchemaCheck(field)
    return InputCheck(field.name, field.type, field.type_name, is_exact=field.is_exact)


def defaults_of(signature: Signature) -> dict[str, Any]:
    """Return the defaults of the inputs of `signature` that have one, by name, as hosts send values."""
    return {field.name: msgspec.json.decode(field.default) for field in signature.inputs if field.default}


class Inputs:
    """Checks the inputs of a program by its signature. owner: what errors say declares them."""

    def __init__(self, signature: Signature, owner: str = "the signature") -> None:
        self._owner = owner
        self._checks = {field.name: (field.python_name, check_of(field, signature)) for field in signature.inputs}
        self._defaults = defaults_of(signature)

    def arguments(self, inputs: dict[str, Any], path: str = "args.inputs") -> dict[str, Any]:
        """Return the values by the fields' names in DSPy. Raises InvalidArgs for an undeclared, missing or wrong input.

        An input that is missing has its default, or is null if it may be. path: of `inputs` in the args.
        """
        if self._defaults:
            inputs = {**self._defaults, **inputs}
        unknown = [name for name in inputs if name not in self._checks]
        missing = [name for name, (_, check) in self._checks.items() if name not in inputs and not check.accepts_none()]
        if unknown or missing:
            raise wrong_names(unknown, missing, [*self._checks], self._owner, path)
        return {python_name: check.value(inputs.get(name), path) for name, (python_name, check) in self._checks.items()}


class _SchemaCheck:
    """Checks values by a JSON Schema, as `values/outputs` reads them: numbers stay exact, and may be texts."""

    def __init__(self, field: Field) -> None:
        self._field = field
        self._type = field.type

    def value(self, value: Any, parent: str = "args.inputs") -> Any:
        field, path = self._field, f"{parent}.{self._field.name}"
        with_text_form(value, path, field.type_name)
        try:
            return convert(exact_numbers(value), self._type)
        except LocatedError as error:
            where = path + error.path
            details = broken_constraint(error)
            raise errors.InvalidArgs(
                f"{where}: {error.reason}", path=where, expected=field.type_name, **details
            ) from None
        except RecursionError:
            raise errors.InvalidArgs(f"{path}: nested too deeply", path=path, expected=field.type_name) from None

    def accepts_none(self) -> bool:
        return is_accepted(None, self._type)


def broken_constraint(error: LocatedError) -> dict[str, Any]:
    """Return the constraint that a value breaks and the value, as details of an error."""
    broken = error.violation
    return {} if broken is None else {"value": plain(broken.value), "constraint": {broken.keyword: broken.bound}}


def is_accepted(value: Any, type: Any) -> bool:
    """Return whether plain data can be a value of `type`."""
    try:
        convert(value, type)
    except (ValueError, RecursionError):
        return False
    return True


class _MediaCheck:
    """Checks images, recordings and files: one, a list of them, or one or none."""

    def __init__(self, field: Field) -> None:
        self._name = field.name
        self._media = media_of(field.type)
        self._is_list = get_origin(field.type) is list
        self._is_optional = NoneType in get_args(field.type)

    def value(self, value: Any, parent: str = "args.inputs") -> Any:
        path = f"{parent}.{self._name}"
        if value is None and self._is_optional:
            return None
        if not self._is_list:
            return read_media(value, self._media, path)
        if not isinstance(value, list):
            raise errors.InvalidArgs(f"{path}: expected a list", path=path, expected="list")
        return [read_media(each, self._media, f"{path}[{index}]") for index, each in enumerate(value)]

    def accepts_none(self) -> bool:
        return self._is_optional
