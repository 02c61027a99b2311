"""Metrics: how good the outputs of a program are for an example. A new one is one row in `METRICS`.

The comparisons and the judges of DSPy are imported when they are first used. All metrics have the host's names of
fields, and read values in the types of the wire.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from bridge import errors

if TYPE_CHECKING:
    from bridge._dispatch import Context


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


# Runs a DSPy module with keyword arguments on the model that judges, and returns its prediction.
Judge = Callable[[Any, dict[str, Any]], Any]


class MetricFailed(errors.HandlerError):
    """The metric raised an error or returned no score."""


class MetricDefinition(msgspec.Struct, forbid_unknown_fields=True):
    """A metric as hosts name it: one of METRICS (`name`), or one of their own (`host`).

    field: the output that is compared; needed if the examples have several. question, context: what a judge or
    passage_match also reads: an input or an output. model: of a judge, a configured model. trace: whether a metric of
    the host gets the calls of predictors in the run.
    """

    name: str | None = None
    host: str | None = None
    field: str | None = None
    question: str | None = None
    context: str | None = None
    model: Any = None
    trace: bool | None = None


class Compared(NamedTuple):
    """What one of METRICS compares. question, context: the values of these fields, if the metric takes them."""

    expected: Any
    actual: Any
    question: Any
    context: Any
    judge: Judge


class MetricType(NamedTuple):
    """One of the metrics that every worker has.

    takes: the settings that it can have besides `field`. compares_all: whether it compares all expected outputs if no
    field is named.
    """

    score: Callable[[Compared], Score | float]
    takes: tuple[str, ...] = ()
    compares_all: bool = False


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


class BuiltInMetric:
    """One of METRICS, for the fields of a program."""

    wants_trace = False

    def __init__(self, kind: MetricType, definition: MetricDefinition, names: _Names, judge: Judge) -> None:
        self._name = definition.name
        self._score = kind.score
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
        context = self._context
        found = None if context is None else outputs.get(context, inputs.get(context))
        try:
            score = self._score(Compared(expected, actual, question, found, self._judge))
        except RecursionError:
            raise MetricFailed(f"the metric {self._name} cannot compare values that are nested so deeply") from None
        return score if isinstance(score, Score) else Score(float(score))

    def _output(self, name: str, outputs: Mapping[str, Any]) -> Any:
        if name not in outputs:
            raise MetricFailed(f"the metric {self._name} compares the output {name}, which the program did not return")
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


def _exact_match(compared: Compared) -> float:
    from dspy.evaluate.metrics import EM

    def matches(expected: Any, actual: Any) -> bool:
        if isinstance(expected, list) and not isinstance(actual, list):
            return any(matches(each, actual) for each in expected)
        if isinstance(expected, list) and isinstance(actual, list):
            return len(expected) == len(actual) and all(map(matches, expected, actual))
        if isinstance(expected, dict) and isinstance(actual, dict):
            return expected.keys() == actual.keys() and all(matches(expected[key], actual[key]) for key in expected)
        if isinstance(expected, str) or isinstance(actual, str):
            return bool(EM(_text(actual), [_text(expected)]))
        return is_equal(expected, actual)

    return matches(compared.expected, compared.actual)


def _f1(compared: Compared) -> float:
    from dspy.evaluate.metrics import F1, normalize_text

    answers = [text for text in _answers(compared) if normalize_text(text)]
    # DSPy prints a line if both texts are empty.
    return float(F1(_text(compared.actual), answers)) if answers else 0.0


def _contains(compared: Compared) -> float:
    from dspy.evaluate.metrics import normalize_text

    expected, actual = compared.expected, compared.actual
    if isinstance(actual, list):
        items = [normalize_text(_text(item)) for item in actual]
        wanted = expected if isinstance(expected, list) else [expected]
        return all(normalize_text(_text(each)) in items for each in wanted)
    text = normalize_text(_text(actual))
    return any(normalize_text(answer) in text for answer in _answers(compared))


def _passage_match(compared: Compared) -> float:
    import dspy
    from dspy.evaluate import answer_passage_match

    found = compared.context
    passages = [_text(each) for each in (found if isinstance(found, list) else [found])]
    return bool(answer_passage_match(dspy.Example(answer=_answers(compared)), dspy.Prediction(context=passages)))


def _json_equal(compared: Compared) -> float:
    return is_equal(_json(compared.expected), _json(compared.actual))


def _semantic_f1(compared: Compared) -> Score:
    from dspy.evaluate.auto_evaluation import f1_score

    response = {"ground_truth": _text(compared.expected), "system_response": _text(compared.actual)}
    found = compared.judge(_judges().semantic, {"question": _text(compared.question), **response})
    return Score(f1_score(found.precision, found.recall), found.reasoning)


def _complete_and_grounded(compared: Compared) -> Score:
    from dspy.evaluate.auto_evaluation import f1_score

    judges = _judges()
    answer = {"question": _text(compared.question), "system_response": _text(compared.actual)}
    complete = compared.judge(judges.complete, {**answer, "ground_truth": _text(compared.expected)})
    grounded = compared.judge(judges.grounded, {**answer, "retrieved_context": _text(compared.context)})
    feedback = f"{complete.discussion}\n{grounded.discussion}"
    return Score(f1_score(grounded.groundedness, complete.completeness), feedback)


class _Judges(NamedTuple):
    """DSPy's modules that compare texts. All metrics share them."""

    semantic: Any
    complete: Any
    grounded: Any


@cache
def _judges() -> _Judges:
    from dspy.evaluate import CompleteAndGrounded, SemanticF1

    both = CompleteAndGrounded()
    return _Judges(SemanticF1().module, both.completeness_module, both.groundedness_module)


METRICS: dict[str, MetricType] = {
    "exact_match": MetricType(_exact_match),
    "f1": MetricType(_f1),
    "contains": MetricType(_contains),
    "passage_match": MetricType(_passage_match, takes=("context",)),
    "semantic_f1": MetricType(_semantic_f1, takes=("question", "model")),
    "complete_and_grounded": MetricType(_complete_and_grounded, takes=("question", "context", "model")),
    "json_equal": MetricType(_json_equal, compares_all=True),
}


def is_equal(one: Any, other: Any) -> bool:
    """Return whether two values of JSON are equal: numbers by their value, and true is not 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_equal, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _answers(compared: Compared) -> list[str]:
    """Return the texts of which any one is right: those of a list, if the output is not a list itself."""
    expected = compared.expected
    if isinstance(expected, list) and not isinstance(compared.actual, list):
        return [_text(each) for each in expected]
    return [_text(expected)]


def _text(value: Any) -> str:
    """Return the text of a value as it is compared and as judges read it."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, list):
        return "\n".join(map(_text, value))
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _json(value: Any) -> Any:
    """Return the value of a text that is JSON, and every other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
