"""Modules that tests register with `--program`, as an operator would."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import datetime
import enum
import threading
from typing import TYPE_CHECKING, Annotated, Any, Literal

import dspy
import numpy
import pydantic

from bridge.adapters.dspy import current_context, host_tools

if TYPE_CHECKING:
    from decimal import Decimal

print("a module that prints when it is imported")
dspy.configure(lm=dspy.LM("openai/never-called", api_key="none"))
nothing = 3
lambdas = [lambda: 3]


class Place(pydantic.BaseModel):
    """A place that a model answers with."""

    name: str
    country: str = "unknown"


class Color(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Pair:
    """What a module returns instead of a prediction."""

    left: int
    right: Place


class Shape(pydantic.BaseModel):
    """A model with a property, and a check that raises what pydantic does not expect."""

    model_config = pydantic.ConfigDict(extra="allow")
    name: str

    @pydantic.field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return {"square": "square"}[name]

    @pydantic.computed_field
    @property
    def corners(self) -> int:
        return 4


class Unreadable:
    """A type whose values cannot be checked."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source, handler):
        raise NotImplementedError("no schema")


class Stages(dspy.Module):
    """Two stages whose output has the same name.

    They are parts of this module.
    """

    def __init__(self):
        self.draft = dspy.Predict("question -> answer")
        self.final = dspy.ChainOfThought("question, draft -> answer")

    def forward(self, question: str, repeat: int = 1):
        print("a module that prints when it runs")
        for _ in range(repeat):
            draft = self.draft(question=question).answer
        answer = self.final(question=question, draft=draft).answer
        return dspy.Prediction(answer=answer, draft=draft, history=len(self.history))


class Many(dspy.Module):
    """Calls its model from several threads."""

    def __init__(self):
        self.predict = dspy.Predict("q -> a")

    def forward(self, questions: list[str], threads: str = "dspy"):
        if threads == "dspy":
            parallel = dspy.Parallel(num_threads=4, disable_progress_bar=True)
            found = parallel([(self.predict, {"q": each}) for each in questions])
            return dspy.Prediction(answers=[each.a for each in found])
        answers: list[str] = []
        started = [
            threading.Thread(target=contextvars.copy_context().run, args=(self._ask, each, answers))
            for each in questions
        ]
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()
        return {"answers": sorted(answers)}

    def _ask(self, question, answers):
        answers.append(self.predict(q=question).a)


class Several(dspy.Module):
    """Asks for two answers to one question."""

    def __init__(self):
        self.predict = dspy.Predict("q -> a", n=2)

    def forward(self, q: str):
        return dspy.Prediction(answers=self.predict(q=q).completions.a)


class Awaits(dspy.Module):
    """Awaits its predictor."""

    def __init__(self):
        self.predict = dspy.Predict("q -> a")

    def forward(self, questions: list[str], json: bool = False):
        async def found():
            with dspy.context(adapter=dspy.JSONAdapter() if json else dspy.settings.adapter):
                return await asyncio.gather(*[self.predict.acall(q=each) for each in questions])

        return {"answers": sorted(each.a for each in asyncio.run(found()))}


class InJSON(dspy.Module):
    """Uses another adapter of DSPy."""

    def __init__(self):
        self.predict = dspy.Predict("q -> a: int")

    def forward(self, q: str):
        with dspy.context(adapter=dspy.JSONAdapter()):
            return self.predict(q=q)


class Looks(dspy.Module):
    """Looks at a picture."""

    def __init__(self):
        self.predict = dspy.Predict("picture: dspy.Image, q -> a")

    def forward(self, picture: dspy.Image, q: str):
        return self.predict(picture=picture, q=q)


class Fallback(dspy.Module):
    """Has another answer if the model fails."""

    def __init__(self):
        self.predict = dspy.Predict("q -> a")

    def forward(self, q: str):
        try:
            return self.predict(q=q)
        except Exception as error:
            return {"a": type(error).__name__}


class Tools(dspy.Module):
    """Calls the host's tools itself, or lets an agent do it."""

    def forward(self, question: str, agent: bool = False, awaits: bool = False):
        tools = host_tools()
        if awaits:
            return {"result": asyncio.run(tools[0].acall(word=question))}
        if agent:
            found = dspy.ReAct("question -> answer", tools=tools)(question=question)
            return dspy.Prediction(answer=found.answer, trajectory=found.trajectory)
        return dspy.Prediction(names=[tool.name for tool in tools], result=tools[0](word=question))


class Stubborn(dspy.Module):
    """Goes on whatever goes wrong."""

    def forward(self, way: Literal["tool", "model", "parallel", "loop"]):
        (hold,) = (tool for tool in host_tools() if tool.name == "hold")
        predict = dspy.Predict("q -> a")
        for number in range(1000):
            try:
                if way == "tool":
                    hold(word=str(number))
                elif way == "parallel":
                    dspy.Parallel(num_threads=2, disable_progress_bar=True)([(hold, {"word": "x"})] * 4)
                elif way == "model":
                    hold(word=str(number))
                    predict(q=str(number))
                else:
                    hold(word=str(number))
                    current_context().check()
            except Exception:
                continue
        return dspy.Prediction(number=number)


class Returns(dspy.Module):
    """Returns what it is asked for."""

    def forward(self, kind: str):
        if kind == "nothing":
            return None
        if kind == "pair":
            return Pair(1, Place(name="Paris"))
        return dspy.Prediction(value=_value(kind))


def _value(kind: str) -> Any:
    return {
        "model": Place(name="Paris"),
        "models": [Place(name="Paris"), {"at": Place(name="Rome")}],
        "shape": Shape(name="square", color="red"),
        "enum": {Color.RED: Color.RED},
        "set": {1},
        "tuple": (1, (2,)),
        "moment": datetime.date(2024, 2, 29),
        "array": numpy.arange(4, dtype="f4").reshape(2, 2),
        "number": numpy.float32(0.5),
        "prediction": dspy.Prediction(inner=1),
        "image": dspy.Image(url="http://localhost/a.png"),
        "object": object(),
        "bytes": b"abc",
        "nan": float("nan"),
        "large": 2**64,
        "negative": -(2**63) - 1,
        "keys": {1: "a", "1": "b"},
        "deep": _deep(),
        "text": {"code": dspy.Code(code="x = 1"), "why": dspy.Reasoning(content="so")},
        "key": {(1, 2): 3},
        "function": {"f": [len]},
    }[kind]


def _deep() -> list[Any]:
    circle: list[Any] = []
    circle.append(circle)
    return circle


class Fails(dspy.Module):
    """Raises an exception of its own, or of the bridge."""

    def forward(self, kind: str):
        if kind == "exit":
            raise SystemExit(3)
        if kind == "code":
            raise dspy.CodeInterpreterError("line 1")
        if kind == "bridge":
            from bridge import errors

            raise errors.NotAllowed("closed on Sundays", day="Sunday")
        raise LookupError(f"no passage about {kind}")


class Typed(dspy.Signature):
    """Find the place."""

    question: str = dspy.InputField(desc="what is asked")
    near: Place | None = dspy.InputField()
    day: datetime.date = dspy.InputField()
    place: Place = dspy.OutputField()
    others: list[Place] = dspy.OutputField()
    color: Color = dspy.OutputField()


class Declares(dspy.Module):
    """Has a signature, and takes its inputs as keyword arguments."""

    signature = Typed

    def __init__(self):
        self.predict = dspy.Predict(Typed)

    def forward(self, **inputs):
        assert isinstance(inputs["day"], datetime.date)
        assert isinstance(inputs.get("near"), Place | None)
        return self.predict(**inputs)


class Annotates(dspy.Module):
    """Has annotations of several kinds."""

    def forward(
        self,
        count: Annotated[int, pydantic.Field(ge=1)],
        amount: Decimal = 0,
        words: list[str] = None,  # noqa: RUF013  # as many write it
        shape: Shape | None = None,
        lm=None,
    ):
        return {"count": count, "amount": type(amount).__name__, "words": words, "shape": shape}


class WithoutSelf(dspy.Module):
    """Has a forward that needs no instance."""

    @staticmethod
    def forward(count: int):
        return {"count": count}


class Open(dspy.Module):
    """Takes any keyword arguments."""

    def __init__(self):
        self.first, self.second = dspy.Predict("q -> a"), dspy.Predict("q -> b")

    def forward(self, **inputs):
        return {"names": sorted(inputs)}


class NoForward(dspy.Module):
    """Has no forward."""


class NeedsArgument(dspy.Module):
    """Cannot be created without arguments."""

    def __init__(self, corpus):
        self.corpus = corpus

    def forward(self):
        return {}


class AsyncForward(dspy.Module):
    """Has to be awaited."""

    async def forward(self, q: str):
        return {}


class PositionalOnly(dspy.Module):
    """Has an input without a name."""

    def forward(self, q, /):
        return {}


class TakesUnreadable(dspy.Module):
    """Needs an input whose values cannot be checked."""

    def forward(self, q: Unreadable):
        return {}


class Privileged(dspy.Module):
    """Needs an input that would control DSPy."""

    def forward(self, lm):
        return {}


predictor = dspy.Predict("question -> answer")


def wrapped():
    """Return a module that takes only what the module in it takes."""
    return dspy.BestOfN(dspy.ChainOfThought("question -> answer"), 2, lambda args, result: result.answer == "b", 1.0)


def failing():
    """Raise the exception of a factory."""
    raise OSError("the corpus is missing")


class Asking(dspy.Module):
    """Asks with settings of its own, as often as it takes; or asks the model itself, without a signature."""

    def __init__(self):
        self.ask = dspy.Predict("question -> answer")

    def forward(self, name: str, value: Any, insists: bool = False):
        while insists:
            with contextlib.suppress(Exception):
                return self.ask(question="?", config={name: value})
        if name == "prompt":
            return dspy.Prediction(answer=dspy.settings.lm(value)[0])
        return self.ask(question="?", config={name: value})
