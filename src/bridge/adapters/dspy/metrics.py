"""Metrics: how good the outputs of a program are for an example. A new one is one row in `METRICS`.

Metrics have the host's names of fields, and read values in the types of the wire.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from bridge import errors
from bridge.adapters.dspy import comparisons
from bridge.adapters.dspy.chosen_model import ModelChoice, models_for, names_of
from bridge.adapters.dspy.comparisons import Compared, Judge

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.adapters.dspy.settings import Model
    from bridge.adapters.dspy.state import Program


class Score(NamedTuple):
    """What a metric says. value: from 0 to 1. feedback: why, for people and for optimizers that read it."""

    value: float
    feedback: str = ""


class Example(Protocol):
    """The inputs of a run and the outputs that are expected of it, by the host's names."""

    @property
    def inputs(self) -> Mapping[str, Any]: ...

    @property
    def outputs(self) -> Mapping[str, Any]: ...


class MetricFailed(errors.HandlerError):
    """The metric raised an error or returned no score."""


class MetricDefinition(msgspec.Struct, forbid_unknown_fields=True):
    """A metric as hosts name it: one of METRICS (`name`), or one of their own (`host`).

    field: the output that is compared; needed if the examples have several. question, context: what a judge or
    passage_match also reads: an input or an output. model: of a judge (default: the program's). trace: whether a metric
    of the host gets the calls of predictors in the run.
    """

    name: str | None = None
    host: str | None = None
    field: str | None = None
    question: str | None = None
    context: str | None = None
    model: ModelChoice | None = None
    trace: bool | None = None


class MetricType(NamedTuple):
    """One of the metrics that every worker has.

    compare: returns a number from 0 to 1 or a truth value, or a number and feedback. takes: the settings that it can
    have besides `field`. compares_all: whether it compares all expected outputs if no field is named.
    """

    compare: Callable[[Compared], float | tuple[float, str]]
    takes: tuple[str, ...] = ()
    compares_all: bool = False


METRICS: dict[str, MetricType] = {
    "exact_match": MetricType(comparisons.exact_match),
    "f1": MetricType(comparisons.f1),
    "contains": MetricType(comparisons.contains),
    "passage_match": MetricType(comparisons.passage_match, takes=("context",)),
    "semantic_f1": MetricType(comparisons.semantic_f1, takes=("question", "model")),
    "complete_and_grounded": MetricType(comparisons.complete_and_grounded, takes=("question", "context", "model")),
    "json_equal": MetricType(comparisons.json_equal, compares_all=True),
}


class Metric(Protocol):
    """Scores the outputs of one run. wants_trace: whether it reads `trace`.

    Raises MetricFailed, LMError if a judge has no model's answer, and CallEnded.
    """

    @property
    def wants_trace(self) -> bool: ...

    def __call__(
        self, example: Example, outputs: Mapping[str, Any], trace: list[dict[str, Any]] | None = None
    ) -> Score: ...


def metric_for(
    given: str | MetricDefinition,
    examples: Sequence[Example],
    context: Context,
    judge: Judge,
    outputs: Iterable[str] | None = None,
    path: str = "args.metric",
    examples_path: str = "args.devset",
) -> Metric:
    """Return the metric that a host has named, for these examples. Raises InvalidArgs, and NotAllowed if the host has
    not offered to be called.

    outputs: the names of the program's outputs, if it declares them. path, examples_path: of the metric and of the
    examples in the args.
    """
    definition = MetricDefinition(name=given) if isinstance(given, str) else given
    if definition.host is not None:
        _check_settings(definition, "a metric of the host", ("host", "trace"), path)
        context.worker.host.check_offer()
        return HostMetric(definition.host, context, wants_trace=bool(definition.trace))
    if definition.name is None:
        raise _wrong(path, f"name one of {', '.join(METRICS)}, or a metric of the host")
    kind = METRICS.get(definition.name)
    if kind is None:
        raise _wrong(path, f"unknown metric {definition.name[:100]!r}; known: {', '.join(METRICS)}")
    _check_settings(definition, definition.name, ("name", "field", *kind.takes), path)
    return BuiltInMetric(kind, definition, _Names(examples, outputs, path, examples_path), judge)


def judges_of(
    given: str | MetricDefinition, program: Program, context: Context, path: str = "args.metric.model"
) -> tuple[Model, ...]:
    """Return the models that a metric names for its judge, during the call's turn; () if it names none.

    path: of the names in the args. Raises InvalidArgs and LMNotConfigured.
    """
    names = () if isinstance(given, str) else names_of(given.model, path)
    return models_for(program, names, context.session.state, context, path) if names else ()


class BuiltInMetric:
    """One of METRICS, for the fields of a program."""

    wants_trace = False

    def __init__(self, kind: MetricType, definition: MetricDefinition, names: _Names, judge: Judge) -> None:
        self._name = definition.name
        self._compare = kind.compare
        self._field = names.compared(definition.field, compares_all=kind.compares_all)
        takes = kind.takes
        self._question = names.question(definition.question) if "question" in takes else None
        self._context = names.context(definition.context) if "context" in takes else None
        self._judge = judge

    def __call__(
        self, example: Example, outputs: Mapping[str, Any], trace: list[dict[str, Any]] | None = None
    ) -> Score:
        inputs, expected = _plain(example)
        actual: Any
        if self._field is None:
            actual = {name: self._output(name, outputs) for name in expected}
        else:
            expected, actual = expected[self._field], self._output(self._field, outputs)
        question = None if self._question is None else inputs.get(self._question)
        passages = None if self._context is None else self._output(self._context, {**inputs, **outputs})
        try:
            found = self._compare(Compared(expected, actual, question, passages, self._judge))
        except RecursionError:
            raise MetricFailed(f"the metric {self._name} cannot compare values that are nested so deeply") from None
        return Score(*found) if isinstance(found, tuple) else Score(float(found))

    def _output(self, name: str, outputs: Mapping[str, Any]) -> Any:
        if name not in outputs:
            raise MetricFailed(f"the metric {self._name} reads the output {name}, which the program did not return")
        return outputs[name]


class HostMetric:
    """A metric of the host, which is called back."""

    def __init__(self, name: str, context: Context, *, wants_trace: bool) -> None:
        self.wants_trace = wants_trace
        self._name = name
        self._context = context

    def __call__(
        self, example: Example, outputs: Mapping[str, Any], trace: list[dict[str, Any]] | None = None
    ) -> Score:
        context = self._context
        inputs, expected = _plain(example)
        args = {
            "name": self._name,
            "inputs": inputs,
            "expected": expected,
            "outputs": outputs,
            "session_id": context.session.id,
        }
        if self.wants_trace:
            args["trace"] = trace or []
        try:
            answer = context.call_host("call_metric", args)
        except errors.Overloaded:
            raise
        except errors.BridgeError as error:
            raise MetricFailed(
                f"the metric {self._name} failed: {errors.text_of(error)}", metric=self._name, reason=error.code
            ) from error
        return self._read(answer)

    def _read(self, answer: Any) -> Score:
        """Return the score that the host answered with. Raises MetricFailed if it is none."""
        feedback: Any = ""
        value = answer
        if isinstance(answer, dict):
            value, feedback = answer.get("score"), answer.get("feedback")
            unknown = [name for name in answer if name not in ("score", "feedback")]
            if unknown:
                raise self._invalid(f"a map with the unknown key {errors.shown(unknown[0])}")
            if not isinstance(feedback, str | None):
                raise self._invalid(f"the feedback {errors.shown(feedback)}, which is not text")
        if not isinstance(value, bool | int | float) or not 0 <= value <= 1:  # NaN is not
            raise self._invalid(errors.shown(value))
        return Score(float(value), feedback or "")

    def _invalid(self, found: str) -> MetricFailed:
        return MetricFailed(
            f"the metric {self._name} returned {found}; expected a number from 0 to 1, true, false, or"
            ' {"score": number, "feedback": text}',
            metric=self._name,
        )


def _plain(example: Example) -> tuple[Any, Any]:
    """Return the inputs and the expected outputs in types that every wire format has, as outputs are."""
    from bridge.adapters.dspy.values.inputs import plain  # which takes as long to import as pydantic

    return plain(example.inputs), plain(example.outputs)


class _Names:
    """The names of the fields that a metric of a program can read. Raises InvalidArgs for others."""

    def __init__(
        self, examples: Sequence[Example], outputs: Iterable[str] | None, path: str, examples_path: str
    ) -> None:
        self._examples = examples
        self._inputs = list(dict.fromkeys(name for example in examples for name in example.inputs))
        self._expected = list(dict.fromkeys(name for example in examples for name in example.outputs))
        self._outputs = None if outputs is None else list(outputs)
        self._path = path
        self._examples_path = examples_path

    def compared(self, field: str | None, *, compares_all: bool) -> str | None:
        """Return the output to compare, None for all."""
        if field is None and len(self._expected) > 1:
            if compares_all:
                return None
            names = ", ".join(self._expected)
            raise _wrong(f"{self._path}.field", f"the examples have several outputs, name one: {names}")
        if field is None:
            field = next(iter(self._expected), None)
        if field is None or field not in self._expected:
            problem = "the examples have no outputs to compare with" if field is None else self._none_has(field)
            raise _wrong(f"{self._path}.field", problem)
        for index, example in enumerate(self._examples):
            if field not in example.outputs:
                where = f"{self._examples_path}[{index}].outputs"
                raise _wrong(where, f"no value for {field}, which the metric compares")
        return field

    def question(self, field: str | None) -> str:
        """Return the input that is the question."""
        if field is None:
            field = "question" if "question" in self._inputs else None
        if field is None and len(self._inputs) == 1:
            field = self._inputs[0]
        if field is None or field not in self._inputs:
            names = ", ".join(self._inputs)
            problem = "name the input that is the question" if field is None else f"no example has the input {field}"
            raise _wrong(f"{self._path}.question", f"{problem}; inputs: {names}")
        return field

    def context(self, field: str | None) -> str:
        """Return the output, or else the input, that has the passages."""
        name = field or "context"
        if self._outputs is not None and name not in self._outputs and name not in self._inputs:
            names = ", ".join(dict.fromkeys((*self._outputs, *self._inputs)))
            problem = f"name the field that has the passages; fields: {names}"
            raise _wrong(f"{self._path}.context", problem if field is None else f"no field {field}; fields: {names}")
        return name

    def _none_has(self, field: str) -> str:
        return f"no example has the output {field}; outputs: {', '.join(self._expected) or 'none'}"


def _check_settings(definition: MetricDefinition, owner: str, takes: tuple[str, ...], path: str) -> None:
    for name in definition.__struct_fields__:
        if getattr(definition, name) is not None and name not in takes:
            raise _wrong(f"{path}.{name}", f"{owner} does not have this setting; it has: {', '.join(takes)}")


def _wrong(path: str, problem: str) -> errors.InvalidArgs:
    return errors.InvalidArgs(f"{path}: {problem}", path=path)
