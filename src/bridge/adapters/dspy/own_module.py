"""A module that the operator wrote, ready to run as a program: the checks of its inputs and its results."""

from __future__ import annotations

from typing import Any

import dspy

from bridge import errors
from bridge.adapters.dspy.declarations import RESERVED, Declaration, Declared
from bridge.adapters.dspy.values.inputs import InputCheck, with_text_form, wrong_names
from bridge.adapters.dspy.values.results import plain_fields


class OwnModule:
    """A module of the operator, with the interface of `Prepared`. Usable from any number of threads.

    Raises ValueError if the values of an input cannot be checked.
    """

    names_calls = True

    def __init__(self, program_id: str, module: dspy.Module, declaration: Declaration) -> None:
        self.module = module
        self.names: dict[str, str] = {}
        self._id = program_id
        self._is_open = declaration.is_open
        self._declared = declaration.inputs
        self._checks = {name: _check(name, each) for name, each in declaration.inputs.items()}

    def arguments(self, inputs: dict[str, Any], path: str = "args.inputs") -> dict[str, Any]:
        """Return the module's arguments. Raises InvalidArgs for an undeclared, missing or wrong input.

        path: of `inputs` in the args.
        """
        unknown = [name for name in inputs if name not in self._declared and not self._takes(name)]
        missing = [name for name, each in self._declared.items() if each.is_required and name not in inputs]
        if unknown or missing:
            raise wrong_names(unknown, missing, [*self._declared], self._id, path)
        return {name: self._value(name, value, path) for name, value in inputs.items()}

    def outputs(self, result: Any) -> dict[str, Any]:
        """Return the fields of what the module returned. Raises NotEncodable if it has none, or one is not plain."""
        return plain_fields(result)

    def trajectory(self, result: Any) -> None:
        """Return None: a trajectory of the module is one of its outputs."""

    def _takes(self, name: Any) -> bool:
        return self._is_open and isinstance(name, str) and name not in RESERVED

    def _value(self, name: str, value: Any, path: str) -> Any:
        check = self._checks.get(name)
        return with_text_form(value, f"{path}.{name}") if check is None else check.value(value, path)


def _check(name: str, declared: Declared) -> InputCheck:
    try:
        return InputCheck(name, declared.type, declared.type_name)
    except Exception as error:  # a type of the operator may raise anything
        raise ValueError(f"input {name!r}: {errors.text_of(error)}") from error
