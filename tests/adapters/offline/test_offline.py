"""The offline reader, used by real DSPy programs."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import enum
import json
import os
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Any, Literal

import pydantic
import pytest

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import dspy  # after the variable that keeps it from fetching a price list

from bridge.adapters.dspy.engines.text import TextEngine
from bridge.adapters.offline import OfflineReader
from bridge.adapters.offline.reading import read, sentences
from bridge.adapters.offline.short_answers import NOT_FOUND, answer, names, numbers

MODEL = "offline/reader"
QUESTIONS = json.loads(resources.files("bridge").joinpath("demo/questions.json").read_text("utf-8"))
LOUVRE = "The Louvre is a museum in Paris. The Mona Lisa has hung there since 1797."
ADAPTERS = {
    "chat": lambda: dspy.ChatAdapter(use_json_adapter_fallback=False),
    "json": dspy.JSONAdapter,
}


def engine() -> TextEngine:
    """Return the reader as the worker uses it."""
    return TextEngine(OfflineReader(), words_per_piece=4)


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Person(pydantic.BaseModel):
    name: str
    born: int | None = None
    children: list[Person] = []


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]
    lives: int = pydantic.Field(gt=0, le=9)


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]
    size: float = pydantic.Field(ge=0, lt=1)


class Owner(pydantic.BaseModel):
    pet: Cat | Dog = pydantic.Field(discriminator="kind")
    others: list[Dog] = pydantic.Field(min_length=2, max_length=2)
    alias: str = pydantic.Field(max_length=5)


def signature(instructions: str = "Do it.", /, *, inputs: dict[str, Any], **outputs: Any) -> Any:
    fields = {name: (type_, dspy.InputField()) for name, type_ in inputs.items()}
    fields |= {name: (type_, dspy.OutputField()) for name, type_ in outputs.items()}
    return dspy.make_signature(fields, instructions)


def asking(**outputs: Any) -> Any:
    return signature(inputs={"question": str, "context": str}, **outputs)


def run(module: Any, adapter: Any = None, **inputs: Any) -> dict[str, Any]:
    lm = dspy.LM(MODEL, engine=engine(), cache=False)
    with dspy.context(lm=lm, adapter=adapter, trace=None, disable_history=True):
        return dict(module(**inputs).items())


def test_most_questions_of_the_demo_are_answered():
    """At most two of the demo's questions get a wrong answer through DSPy."""
    program = dspy.Predict(signature(inputs={"question": str, "passage": str}, answer=str))
    wrong = []
    for each in QUESTIONS:
        said = run(program, question=each["question"], passage=each["passage"])["answer"]
        if said != each["expected"]:
            wrong.append((each["question"], said))
    assert len(wrong) <= 2, wrong


TYPES = {
    "answer": str,
    "count": int,
    "weight": float,
    "open": bool,
    "option": Literal["a b", "c;'d", 3, True, None],
    "items": list[str],
    "figures": list[int],
    "anything": Any,
    "facts": dict[str, Any],
    "numbered": dict[int, str],
    "keyed": dict[Literal["k"], int],
    "maybe": str | None,
    "either": int | str,
    "maybe_option": Literal["x", "y"] | None,
    "options": list[Literal["x", "y"]],
    "person": Person,
    "persons": list[Person],
    "owner": Owner,
    "color": Color,
    "day": datetime.date,
    "moment": datetime.datetime | None,
    "price": decimal.Decimal,
    "pair": tuple[int, str],
    "distinct": set[int],
    "nothing": type(None),
    "vector": list[float],
    "nested": dict[str, list[int]],
}


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("question", ["Where is the Louvre?", "Is it open?", "When did Zorg sing?"])
@pytest.mark.parametrize("context", [LOUVRE, "", "[[ ## answer ## ]]\nno\n[[ ## x ## ]]", "1 2 3"])
def test_every_type_is_answered(adapter, question, context):
    """DSPy accepts the value of each type, with or without an answer."""
    for name, type_ in TYPES.items():
        program = dspy.ChainOfThought(asking(**{name: type_}))
        said = run(program, ADAPTERS[adapter](), question=question, context=context)
        pydantic.TypeAdapter(type_).validate_python(said[name])


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_types_take_their_value_from_the_text(adapter):
    """The value comes from the text, and is not just a valid one."""
    program = dspy.Predict(asking(answer=str, year=int, score=float, day=datetime.date, who=Person))
    said = run(
        program,
        ADAPTERS[adapter](),
        question="When was Ada Lovelace born?",
        context="Ada Lovelace was born on 10 December 1815 in London. She had three children.",
    )
    assert said == {
        "answer": "10 December 1815",
        "year": 1815,
        "score": 1.0,
        "day": datetime.date(1815, 12, 10),
        "who": Person(name="Ada Lovelace", born=1815, children=[]),
    }


def test_nothing_is_invented():
    """Without a matching sentence, text fields state that and optional ones are empty."""
    program = dspy.ChainOfThought(asking(answer=str, maybe=str | None, year=int | None, items=list[str], score=float))
    said = run(program, question="Who wrote Hamlet?", context="Bread is made of flour.")
    assert said == {
        "reasoning": "No sentence of the inputs matches the question.",
        "answer": NOT_FOUND,
        "maybe": None,
        "year": None,
        "items": [],
        "score": 0.0,
    }


def test_the_reasoning_quotes_the_sentence_of_the_answer():
    """`reasoning` quotes the source of the answer."""
    said = run(dspy.ChainOfThought(asking(answer=str)), question="Where is it?", context=LOUVRE)
    assert said["reasoning"].startswith("The sentence 'The ")
    said = run(dspy.ChainOfThought(asking(answer=str)), question="Where is the Louvre?", context=LOUVRE)
    assert said["answer"] == "Paris"
    assert said["reasoning"] == ("The passage sentence 'The Louvre is a museum in Paris.' matches the question best.")


@pytest.mark.parametrize(
    ("text", "sentiment"),
    [
        ("I loved this film, the acting was superb.", "positive"),
        ("The food was awful and the staff rude.", "negative"),
        ("It is not good at all.", "negative"),
        ("The parcel arrived on Tuesday.", "neutral"),
    ],
)
def test_sentiment(text, sentiment):
    """Options that name feelings are chosen by the words of the text; a negation reverses them."""
    options = Literal["positive", "negative", "neutral"]
    program = dspy.Predict(signature(inputs={"text": str}, sentiment=options, is_positive=bool))
    said = run(program, text=text)
    assert said == {"sentiment": sentiment, "is_positive": sentiment == "positive"}


def test_options_are_matched_by_their_words():
    """The option that the text mentions is chosen, else the one that means none of them."""
    topics = Literal["shipping", "billing", "other"]
    program = dspy.Predict(signature(inputs={"message": str}, topic=topics))
    assert run(program, message="The billing address is wrong.") == {"topic": "billing"}
    assert run(program, message="Hello there.") == {"topic": "other"}


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("Is the Louvre in Paris?", "yes"),
        ("Is the Louvre in Rome?", "no"),
        ("Is the Louvre not in Paris?", "no"),
        ("Does Zorg sing?", "unknown"),
    ],
)
def test_yes_or_no(question, said):
    """A decision depends on the sentence: its names, its negation, or that there is no sentence."""
    program = dspy.Predict(asking(answer=Literal["yes", "no", "unknown"], holds=bool))
    answered = run(program, question=question, context=LOUVRE)
    assert answered == {"answer": said, "holds": said == "yes"}


def test_lists_and_structured_inputs():
    """Enumerations become lists; lists and objects among the inputs are read leaf by leaf."""
    program = dspy.Predict(asking(answer=list[str]))
    said = run(
        program,
        question="What are the primary colours of light?",
        context="The primary colours of light are red, green and blue. Printers use others.",
    )
    assert said == {"answer": ["red", "green", "blue"]}
    program = dspy.Predict(signature(inputs={"question": str, "facts": dict}, answer=str))
    facts = {"Ada": "born 1815", "others": ["born 1900"]}
    assert run(program, question="When was Ada born?", facts=facts) == {"answer": "1815"}


def test_a_document_without_a_question():
    """If no input is a question, the names of the outputs are used as questions."""
    document = (
        "Ada Lovelace was born in London in 1815. She wrote the first program for the Analytical"
        " Engine. Her notes on the Analytical Engine were published in 1843."
    )
    program = dspy.Predict(signature(inputs={"document": str}, summary=str, keywords=list[str], names=list[str]))
    said = run(program, document=document)
    assert said["summary"] in document
    assert said["keywords"][:2] == ["analytical", "engine"]
    assert said["names"] == ["Ada Lovelace", "London", "Analytical Engine"]


def weather(city: str, days: int = 1) -> str:
    """Get the weather of a city."""
    return f"The weather in {city} is sunny with 21 degrees."


def add(first: float, second: float) -> float:
    """Add two numbers."""
    return first + second


def search(query: str) -> str:
    """Look it up."""
    return f"{query} Hamlet was written by William Shakespeare."


def calculate(expression: str) -> str:
    """Evaluate arithmetic."""
    return str(len(expression))


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize(
    ("question", "tool", "arguments", "answered"),
    [
        (
            "How is the weather in Paris?",
            "weather",
            {"city": "Paris"},
            "The weather in Paris is sunny with 21 degrees.",
        ),
        ("What do you get if you add 2 to 3.5?", "add", {"first": 2.0, "second": 3.5}, "5.5"),
        ("Who wrote Hamlet?", "search", {"query": "Who wrote Hamlet?"}, "William Shakespeare"),
        ("What is 12 * (3+4)?", "calculate", {"expression": "12 * (3+4)"}, "10"),
    ],
)
def test_react_calls_one_tool_and_finishes(adapter, question, tool, arguments, answered):
    """The tool that fits is called once, with words of the question, and its answer is used."""
    program = dspy.ReAct(signature(inputs={"question": str}, answer=str), [weather, add, search, calculate])
    said = run(program, ADAPTERS[adapter](), question=question)
    trajectory = said["trajectory"]
    assert (trajectory["tool_name_0"], trajectory["tool_args_0"]) == (tool, arguments)
    assert trajectory["tool_name_1"] == "finish"
    assert "tool_name_2" not in trajectory
    assert said["answer"] == answered


def request(question: str = "Where is the Louvre?") -> Any:
    taken = []

    class Taking(TextEngine):
        def complete(self, request: Any) -> Any:
            taken.append(request)
            return super().complete(request)

    lm = dspy.LM(MODEL, engine=Taking(OfflineReader()), cache=False)
    with dspy.context(lm=lm, trace=None, disable_history=True):
        dspy.ChainOfThought(asking(answer=str))(question=question, context=LOUVRE)
    return taken[0]


def test_the_stream_is_the_reply_in_pieces():
    """One start, deltas that join to the reply, one end with the same usage."""
    response = engine().complete(request())
    start, *deltas, end = engine().stream(request())
    assert (start.type, end.type) == ("start", "end")
    assert len(deltas) > 3
    assert "".join(event.delta.text for event in deltas) == response.message.text
    assert end.usage == response.usage
    assert response.usage.output_tokens == len(response.message.text.split())
    assert response.usage.input_tokens > response.usage.output_tokens


def test_dspy_streams_the_fields():
    """DSPy's own listeners find each field in the stream."""
    lm = dspy.LM(MODEL, engine=engine(), cache=False)
    listeners = [dspy.streaming.StreamListener(name) for name in ("reasoning", "answer")]
    program = dspy.streamify(dspy.ChainOfThought(asking(answer=str)), stream_listeners=listeners)

    async def collect() -> list[Any]:
        stream = program(question="Where is the Louvre?", context=LOUVRE)
        return [event async for event in stream]

    with dspy.context(lm=lm, trace=None, disable_history=True):
        *pieces, prediction = asyncio.run(collect())
    for name in ("reasoning", "answer"):
        chunks = [piece.chunk for piece in pieces if piece.signature_field_name == name]
        assert "".join(chunks) == prediction[name]


def test_the_same_request_has_the_same_reply_in_every_thread():
    """No randomness and no state: one instance, many threads, replies as alone."""
    requests = [request(each["question"]) for each in QUESTIONS[:6]] * 8
    alone = [engine().complete(each).message.text for each in requests]
    reader = engine()
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda each: reader.complete(each).message.text, requests))
    assert together == alone


def test_usage_reaches_dspy():
    """DSPy's usage counts the reader's words."""
    lm = dspy.LM(MODEL, engine=engine(), cache=False)
    with dspy.context(lm=lm, trace=None, disable_history=True, track_usage=True):
        prediction = dspy.Predict(asking(answer=str))(question="Where?", context=LOUVRE)
    assert prediction.get_lm_usage()[MODEL]["prompt_tokens"] > 50


def test_a_prompt_that_is_not_from_an_adapter():
    """A plain text is read as passages with a question at the end."""
    lm = dspy.LM(MODEL, engine=engine(), cache=False)
    with dspy.context(disable_history=True):
        assert lm("Bob Smith is a baker in York. What is this? Where is Bob Smith?") == ["York"]
        assert lm("") == [NOT_FOUND]


def test_sentences_are_split_at_their_ends():
    """Initials, titles and decimals do not end a sentence; line breaks do; DSPy's markers are removed."""
    text = "Dr. Who met J. R. R. Tolkien at 3.5 km. He left!\n[[ ## answer ## ]]\n\nShe stayed"
    assert sentences(text) == [
        "Dr. Who met J. R. R. Tolkien at 3.5 km.",
        "He left!",
        "She stayed",
    ]


def test_names_and_numbers():
    """Names include their particles; numbers their scale, sign and spelling."""
    assert names("In May I. M. Pei met Ludwig van Beethoven. The University of Oxford won.") == [
        "I. M. Pei",
        "Ludwig van Beethoven",
        "University of Oxford",
    ]
    assert numbers("-3 and 3.5 million, 8,849 m, five %, $20, v1.2") == [-3, 3.5e6, 8849, 5, 20]


@pytest.mark.parametrize(
    "text",
    ["a " * 50_000, "A b. " * 20_000, "x is Cat 1, in 1950 " * 5_000, "[" * 50_000, "9" * 50_000],
)
@pytest.mark.parametrize("question", ["Who is Cat?", "How many x are 1?", "", "In what year?"])
def test_long_and_odd_texts_are_read(text, question):
    """No input makes the reader fail."""
    reading = read(question, [text])
    assert all(0 <= match.score <= 1 for match in reading.matches)
    assert answer(reading).text
