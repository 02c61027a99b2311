"""A module that the operator wrote, ready to run as a program: the checks of its inputs and its results."""

from __future__ import annotations

from typing import Any

import dspy

from bridge import errors
from bridge.adapters.dspy.declarations import Declaration
from bridge.adapters.dspy.values.inputs import InputCheck, with_text_form
from bridge.adapters.dspy.values.results import plain_fields

# No inputs: arguments that control DSPy's modules (some could send a key to another address), and those that it fills.
_RESERVED = frozenset(
    {"config", "demos", "instance", "lm", "new_signature", "prediction", "self", "signature", "_trace"}
)


class OwnModule:
    """A module of the operator, with the interface of `Prepared`. Usable from any number of threads.

    Raises ValueError if it needs an input that has the name of an argument of DSPy's modules.
    """

    is_own = True
    takes_config = False

    def __init__(self, program_id: str, module: dspy.Module, declaration: Declaration) -> None:
        self.module = module
        self.names: dict[str, str] = {}
        self._id = program_id
        self._is_open = declaration.is_open
        self._declared = {name: each for name, each in declaration.inputs.items() if name not in _RESERVED}
        for name in declaration.inputs.keys() & _RESERVED:
            if declaration.inputs[name].is_required:
                raise ValueError(f"{name!r} is an argument of DSPy's own modules")
        self._checks = {name: InputCheck(name, each.type, each.type_name) for name, each in self._declared.items()}

    def arguments(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return the module's arguments. Raises InvalidArgs for an undeclared, missing or wrong input."""
        unknown = [name for name in inputs if name not in self._declared and not self._takes(name)]
        if unknown:
            raise errors.InvalidArgs(
                f"inputs not declared by {self._id}: {', '.join(map(str, unknown))};"
                f" declared: {', '.join(self._declared) or 'none'}",
                path=f"args.inputs.{unknown[0]}",
                unknown=unknown,
                declared=list(self._declared),
            )
        missing = [name for name, each in self._declared.items() if each.is_required and name not in inputs]
        if missing:
            raise errors.InvalidArgs(
                f"inputs missing: {', '.join(missing)}", path=f"args.inputs.{missing[0]}", missing=missing
            )
        return {name: self._value(name, value) for name, value in inputs.items()}

    def outputs(self, result: Any) -> dict[str, Any]:
        """Return the fields of what the module returned. Raises NotEncodable if it is no prediction or not plain."""
        if not isinstance(result, dspy.Example | dict):
            raise errors.NotEncodable(f"{self._id} returned a {type(result).__name__}, not a dspy.Prediction")
        return plain_fields(result)

    def _takes(self, name: Any) -> bool:
        return self._is_open and isinstance(name, str) and name not in _RESERVED

    def _value(self, name: str, value: Any) -> Any:
        check = self._checks.get(name)
        return with_text_form(value, f"args.inputs.{name}") if check is None else check.value(value)
