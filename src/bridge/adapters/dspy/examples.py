"""Examples of a program: inputs and the outputs expected for them. Demos, devsets and trainsets consist of them.

An example is a map with `inputs` and `outputs`, or, as DSPy's users write it, one map of all of its fields.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from bridge import errors
from bridge.adapters.dspy.signatures import Signature
from bridge.adapters.dspy.values.checks import Check, check_of, defaults_of
from bridge.adapters.dspy.values.inputs import as_text, plain, with_text_form, wrong_names


class Example(NamedTuple):
    """Inputs and expected outputs by the host's names, as values of the fields' types."""

    inputs: dict[str, Any]
    outputs: dict[str, Any]


class Examples:
    """Reads examples of a signature.

    extra: outputs that an example may also have, as text: those that DSPy's module adds, such as the reasoning.
    alternatives: whether an output may be a list of values of its type, any of which is right.
    """

    def __init__(self, signature: Signature, extra: tuple[str, ...] = (), *, alternatives: bool = False) -> None:
        self._alternatives = alternatives
        self._inputs = {field.name: check_of(field, signature) for field in signature.inputs}
        self._defaults = defaults_of(signature)
        self._outputs: dict[str, Check | None] = dict.fromkeys(extra)
        self._outputs |= {field.name: check_of(field, signature) for field in signature.outputs}
        self._required = [field.name for field in signature.outputs]

    def read(self, rows: Any, path: str, *, complete: bool = False) -> list[Example]:
        """Return the examples at `path` of the args. Raises InvalidArgs, with the path of the value.

        complete: whether all outputs of the signature must be given; otherwise they may be missing.
        """
        if not isinstance(rows, list):
            raise errors.InvalidArgs(f"{path}: expected a list of examples", path=path, expected="list")
        return [self._example(row, f"{path}[{index}]", complete) for index, row in enumerate(rows)]

    def _example(self, row: Any, path: str, complete: bool) -> Example:
        if not isinstance(row, dict):
            raise errors.InvalidArgs(f"{path}: expected a map with inputs and outputs", path=path, expected="map")
        inputs, outputs, places = self._sides(row, path)
        inputs = {**self._defaults, **inputs}
        missing = [name for name, check in self._inputs.items() if name not in inputs and not check.accepts_none()]
        unknown = [name for name in inputs if name not in self._inputs]
        if unknown or missing:
            raise wrong_names(unknown, missing, [*self._inputs], "the signature", places[0])
        unknown = [name for name in outputs if name not in self._outputs]
        missing = [name for name in self._required if complete and name not in outputs]
        if unknown or missing:
            raise wrong_names(unknown, missing, [*self._outputs], "the signature", places[1])
        return Example(
            {name: check.value(inputs.get(name), places[0]) for name, check in self._inputs.items()},
            {name: self._output(name, value, places[1]) for name, value in outputs.items()},
        )

    def _output(self, name: str, value: Any, parent: str) -> Any:
        check = self._outputs[name]
        if check is None:
            return with_text_form(value, f"{parent}.{name}")
        try:
            return check.value(value, parent)
        except errors.InvalidArgs as error:
            if not self._alternatives or not isinstance(value, list) or not value:
                raise
            try:
                return [check.value(each, parent) for each in value]
            except errors.InvalidArgs:
                raise error from None

    def _sides(self, row: dict[str, Any], path: str) -> tuple[dict[str, Any], dict[str, Any], tuple[str, str]]:
        """Return the inputs and the outputs of `row`, and the paths of both."""
        inputs, outputs = row.get("inputs"), row.get("outputs", {})
        if isinstance(inputs, dict) and isinstance(outputs, dict) and row.keys() <= {"inputs", "outputs"}:
            return inputs, outputs, (f"{path}.inputs", f"{path}.outputs")
        if "inputs" in row and not {"inputs", "outputs"} & {*self._inputs, *self._outputs}:
            raise _wrong_sides(row, path)
        inputs = {name: value for name, value in row.items() if name in self._inputs}
        outputs = {name: value for name, value in row.items() if name in self._outputs and name not in inputs}
        unknown = [as_text(name) for name in row if name not in inputs and name not in outputs]
        if unknown:
            declared = [*self._inputs, *(name for name in self._outputs if name not in self._inputs)]
            raise errors.InvalidArgs(
                f"{path}: fields not declared by the signature: {', '.join(unknown)}; declared: {', '.join(declared)}",
                path=f"{path}.{unknown[0]}",
                unknown=unknown,
                declared=declared,
            )
        return inputs, outputs, (path, path)


def _wrong_sides(row: dict[str, Any], path: str) -> errors.InvalidArgs:
    """Return the error for an example that has inputs, but is not only a map of inputs and a map of outputs."""
    for name, value in row.items():
        at = f"{path}.{as_text(name)}"
        if name not in ("inputs", "outputs"):
            return errors.InvalidArgs(f"{at}: unknown; an example has inputs and outputs", path=at)
        if not isinstance(value, dict):
            return errors.InvalidArgs(f"{at}: expected a map of fields", path=at, expected="map")
    raise AssertionError(path)


def plain_example(example: Example) -> dict[str, Any]:
    """Return an example as hosts get it: a map of inputs and outputs, in types that every wire format has."""
    return {side: {name: plain(value) for name, value in getattr(example, side).items()} for side in example._fields}


def dspy_example(example: Example, signature: Signature) -> Any:
    """Return the dspy.Example, whose fields have their names in DSPy."""
    import dspy

    names = {field.name: field.python_name for field in signature.inputs}
    inputs = {names[name]: value for name, value in example.inputs.items()}
    names |= {field.name: field.python_name for field in signature.outputs}
    outputs = {names.get(name, name): value for name, value in example.outputs.items()}
    return dspy.Example(**inputs, **outputs).with_inputs(*inputs)
