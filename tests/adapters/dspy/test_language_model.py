"""The direct way to a model: the requests and predictions of DSPy's own way, and when it is taken."""

from __future__ import annotations

import datetime
import enum
from functools import partial
from typing import Any, Literal

import dspy
import pydantic
import pytest
from dspy import lm15

from bridge.adapters.dspy import language_model
from bridge.adapters.dspy.formats.chat import ChatFormat
from bridge.adapters.dspy.language_model import LanguageModel
from bridge.adapters.dspy.predictor import Predictor, predictor

MODEL = "scripted/answers"


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Place(pydantic.BaseModel):
    name: str
    near: list[Place] = []


class Engine:
    """Answers each request with `text`, and records the requests."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.requests: list[lm15.Request] = []

    def complete(self, request: lm15.Request) -> lm15.Response:
        self.requests.append(request)
        return lm15.Response(None, request.model, lm15.Message.assistant(self.text), "stop", lm15.Usage(1, 2))


class Called(LanguageModel):
    """Records how often DSPy called it."""

    calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        Called.calls += 1
        return super().__call__(*args, **kwargs)


def fields(**values: str) -> str:
    return "\n\n".join([*(f"[[ ## {name} ## ]]\n{value}" for name, value in values.items()), "[[ ## completed ## ]]"])


def run(module, inputs, adapter, make=LanguageModel, reply=None, model=MODEL, **settings):
    """Return the requests and the outputs of two runs of `module`."""
    engine = Engine(fields(a="yes") if reply is None else reply)
    lm = make(model, engine=engine, cache=False, num_retries=0, **settings)
    with dspy.context(lm=lm, adapter=adapter, trace=None, disable_history=True):
        outputs = [dict(module(**inputs).items()) for _ in range(2)]
    return engine.requests, outputs


def run_by_dspy(module, inputs, **more):
    """Return the same of DSPy's own adapter and model."""
    return run(module, inputs, dspy.ChatAdapter(use_json_adapter_fallback=False), dspy.LM, **more)


def is_direct(module, inputs, **more):
    """Return whether the model is asked, not called."""
    before = Called.calls
    run(module, inputs, ChatFormat(), Called, **more)
    return Called.calls == before


def signature(**inputs: Any) -> Any:
    made = {name: (type, dspy.InputField()) for name, type in inputs.items()}
    return dspy.make_signature({**made, "a": (str, dspy.OutputField())}, "Answer.")


QUESTION = signature(q=str)
DESCRIBED = dspy.make_signature(
    {
        "q": (str, dspy.InputField(desc="what is asked")),
        "when": (datetime.date, dspy.InputField(desc="{braces} and\nlines")),
        "a": (str, dspy.OutputField(desc="in one word")),
    },
    "First line.\n\n    Indented line.",
)
INPUTS = [
    (QUESTION, {"q": "Where?"}),
    (QUESTION, {"q": "Größe 世界 🎉\n\n  indented"}),
    (QUESTION, {"q": ""}),
    (QUESTION, {"q": 7}),
    (QUESTION, {"q": ["one", "two"]}),
    (QUESTION, {}),
    (signature(n=int, x=float, b=bool), {"n": 3, "x": 0.1, "b": True}),
    (signature(q=str | None), {"q": None}),
    (signature(q=str | None), {}),
    (signature(c=Colour, w=Literal["a", "b"]), {"c": Colour.RED, "w": "b"}),
    (signature(p=Place), {"p": Place(name="Paris", near=[Place(name="Orly")])}),
    (signature(m=dict[str, list[Place]]), {"m": {"x": [Place(name="é")], "y": []}}),
    (signature(d=datetime.datetime), {"d": datetime.datetime(2026, 1, 31, 12)}),
    (signature(q=Any), {"q": {"deep": [1, None, {"er": [True]}]}}),
    (signature(h=dspy.History, q=str), {"h": dspy.History(messages=[{"q": "Who?", "a": "She."}]), "q": "And?"}),
    (DESCRIBED, {"q": "Where?", "when": datetime.date(2026, 1, 31)}),
]


@pytest.mark.parametrize(("signature", "inputs"), INPUTS)
@pytest.mark.parametrize("module", [dspy.Predict, dspy.ChainOfThought])
def test_requests_are_those_of_dspy(signature, inputs, module):
    """The model gets the requests of DSPy's own adapter and model, for any types of inputs, first and later."""
    program, reply = module(signature), fields(reasoning="so", a="yes")
    theirs = run_by_dspy(program, inputs, reply=reply)
    assert run(program, inputs, ChatFormat(), reply=reply) == theirs
    if module is dspy.Predict:
        assert run(predictor(signature), inputs, ChatFormat(), reply=reply) == theirs


OUTPUTS: list[tuple[Any, str]] = [
    (int, "7"),
    (bool, "True"),
    (float, "0.5"),
    (list[str], '["x", "y"]'),
    (dict[str, int], '{"x": 1}'),
    (Literal["x", "y"], "y"),
    (int | None, "null"),
    (str | None, "text"),
]


@pytest.mark.parametrize(("type", "text"), OUTPUTS)
def test_types_of_outputs(type, text):
    """So it does for any types of outputs, and the predictions are equal; later fields may come first."""
    made = {"q": (str, dspy.InputField()), "a": (type, dspy.OutputField()), "b": (str, dspy.OutputField(desc="why"))}
    program, inputs = dspy.Predict(dspy.make_signature(made, "Answer.")), {"q": "?"}
    for reply in (fields(a=text, b="so"), fields(b="so", a=text), fields(b="so", a=text, c="more")):
        requests, outputs = run(program, inputs, ChatFormat(), reply=reply)
        assert (requests, outputs) == run_by_dspy(program, inputs, reply=reply)
        assert [list(each) for each in outputs] == [["a", "b"]] * 2


@pytest.mark.parametrize("demos", [[{"q": "Who?", "a": "She"}], [{"q": "Who?", "a": None}, {"a": "She"}, {"q": "?"}]])
def test_examples(demos):
    """Examples come between the instructions and the inputs, also incomplete ones."""
    program = dspy.Predict(QUESTION)
    program.demos = [dspy.Example(**each) for each in demos]
    assert run(program, {"q": "Where?"}, ChatFormat()) == run_by_dspy(program, {"q": "Where?"})


@pytest.mark.parametrize(
    ("model", "settings", "config"),
    [
        (MODEL, {"temperature": 0.5, "max_tokens": 9}, {}),
        (MODEL, {}, {"temperature": 1, "max_tokens": 9}),
        (MODEL, {"temperature": 0.5, "max_tokens": 9}, {"temperature": 0.0}),
        ("openai/o3", {}, {"max_tokens": 20_000}),
        ("openai/o3", {"max_tokens": 20_000}, {}),
    ],
)
def test_settings(model, settings, config):
    """The temperature and the number of tokens of the model, and those of the run."""
    program, inputs = dspy.Predict(QUESTION), {"q": "Where?", "config": config}
    settings = {"model": model, **settings}
    theirs = run_by_dspy(program, inputs, **settings)
    assert run(program, inputs, ChatFormat(), **settings) == theirs
    assert run(predictor(QUESTION), inputs, ChatFormat(), **settings) == theirs
    assert is_direct(program, inputs, **settings)


class Watching(dspy.utils.callback.BaseCallback):  # type: ignore[misc]
    """A listener of DSPy."""


@pytest.mark.parametrize(
    "more",
    [
        {"context": {"callbacks": [Watching()]}},
        {"context": {"disable_history": False}},
        {"context": {"track_usage": True}},
        {"callbacks": [Watching()]},
        {"temperature": 1.0, "n": 2},
    ],
)
def test_dspy_is_called_if_that_makes_a_difference(more):
    """For whoever observes requests, and for several completions."""
    context = {"disable_history": True} | more.pop("context", {})
    engine = Engine(fields(a="yes"))
    lm, before = Called(MODEL, engine=engine, cache=False, num_retries=0, **more), Called.calls
    with dspy.context(lm=lm, adapter=ChatFormat(), trace=None, **context):
        assert dspy.Predict(QUESTION)(q="?").a == "yes"
    assert Called.calls == before + 1


def test_dspy_is_called_if_it_has_another_version(monkeypatch):
    """Another version may make other requests."""
    program, inputs = dspy.Predict(QUESTION), {"q": "?"}
    assert is_direct(program, inputs)
    assert isinstance(predictor(QUESTION), Predictor)
    monkeypatch.setattr(language_model, "IS_COMPARED", False)
    assert not isinstance(predictor(QUESTION), Predictor)
    assert not is_direct(program, inputs)
    assert run(program, inputs, ChatFormat()) == run_by_dspy(program, inputs)


def test_instructions_that_change():
    """The prompt has the new instructions of a signature whose instructions were replaced."""
    changing = dspy.make_signature({"q": (str, dspy.InputField()), "a": (str, dspy.OutputField())}, "Old.")
    program, adapter = dspy.Predict(changing), ChatFormat()
    (old, _), _ = run(program, {"q": "?"}, adapter)
    changing.instructions = "New."
    assert run(program, {"q": "?"}, adapter) == run_by_dspy(program, {"q": "?"})
    assert old.system.endswith("Old.")


def test_types_with_a_place_of_their_own():
    """DSPy writes conversations; a text that cannot be encoded is its error."""
    assert is_direct(dspy.Predict(QUESTION), {"q": "?"})
    assert not is_direct(dspy.Predict(signature(h=dspy.History, q=str)), {"h": dspy.History(messages=[]), "q": "?"})
    with pytest.raises(ValueError, match="not valid Unicode"):
        run(dspy.Predict(QUESTION), {"q": "\ud800"}, ChatFormat())


@pytest.mark.parametrize("reply", ["", "no fields", fields(b="other")])
def test_a_reply_that_cannot_be_read(reply):
    """It is DSPy's error, also where each field may be missing."""
    optional = dspy.make_signature({"q": (str, dspy.InputField()), "a": (str | None, dspy.OutputField())}, "Answer.")
    for program in (dspy.Predict(QUESTION), dspy.Predict(optional)):
        outcomes = []
        for ask in (partial(run, adapter=ChatFormat()), run_by_dspy):
            try:
                outcomes.append(ask(program, {"q": "?"}, reply=reply))
            except dspy.AdapterParseError as error:
                outcomes.append(error.code)
        assert outcomes[0] == outcomes[1]


def test_errors_of_an_engine():
    """An engine's error is the error that DSPy makes of it."""

    class Broken(Engine):
        def complete(self, request: lm15.Request) -> lm15.Response:
            raise lm15.RateLimitError("slow down", retry_after=3.0)

    for make in (LanguageModel, dspy.LM):
        lm = make(MODEL, engine=Broken(""), cache=False, num_retries=0)
        with (
            dspy.context(lm=lm, adapter=ChatFormat(), trace=None, disable_history=True),
            pytest.raises(dspy.LMRateLimitError, match="slow down") as caught,
        ):
            dspy.Predict(QUESTION)(q="?")
        assert (caught.value.model, caught.value.retry_after) == (MODEL, 3.0)
