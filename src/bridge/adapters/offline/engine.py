"""The reader as an engine for `dspy.LM`: a prompt in, every output field answered, a reply out."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from dspy import lm15

from bridge.adapters.offline import prompt
from bridge.adapters.offline.reading import Reading, read, sentences, stems
from bridge.adapters.offline.schema_values import value
from bridge.adapters.offline.short_answers import answer, names, numbers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MODEL = "offline/reader"
_DELTA_WORDS = 4  # words in one piece of a streamed reply


class OfflineReader:
    """A deterministic engine without state: `dspy.LM(MODEL, engine=OfflineReader(), cache=False)`.

    It answers from the inputs alone; what they do not hold is "not found in the inputs". One
    instance serves any number of threads. Usage counts words instead of tokens.
    """

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Return the reply to DSPy's chat or JSON prompt, or to a plain question."""
        system = _system_text(request)
        texts = [message.text or "" for message in request.messages]
        text = _answered(system, texts[-1])
        return lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant(text),
            finish_reason="stop",
            usage=lm15.Usage(
                input_tokens=sum(len(each.split()) for each in (system, *texts)),
                output_tokens=len(text.split()),
            ),
        )

    def stream(self, request: lm15.Request) -> Iterator[lm15.StreamEvent]:
        """Yield the same reply: a start event, deltas of a few words, an end event with usage."""
        response = self.complete(request)
        words = re.findall(r"\s*\S+|\s+", response.message.text or "")
        yield lm15.StreamStartEvent(model=response.model)
        for first in range(0, len(words), _DELTA_WORDS):
            piece = "".join(words[first : first + _DELTA_WORDS])
            yield lm15.StreamDeltaEvent(delta=lm15.TextDelta(text=piece))
        yield lm15.StreamEndEvent(finish_reason=response.finish_reason, usage=response.usage)

    def close(self) -> None:
        """Nothing is held open."""


def _system_text(request: lm15.Request) -> str:
    system = request.system or ""
    return system if isinstance(system, str) else "".join(part.text for part in system)


def _answered(system: str, message: str) -> str:
    outputs = prompt.outputs(system)
    if not outputs:
        question, rest = _question_in(message)
        return answer(read(question, rest)).text
    task = _task(prompt.inputs(system, message))
    if outputs.keys() >= {"next_thought", "next_tool_name", "next_tool_args"}:
        values = _next_step(prompt.tools(system), task)
    else:
        values = _values(outputs, task)
    return prompt.reply(values, outputs, message)


# What is asked, and what is to be read


class _Task(NamedTuple):
    question: str
    passages: list[str]
    observations: list[str]


_ASKING = ("question", "query", "q", "problem", "request", "prompt")


def _task(texts: dict[str, str]) -> _Task:
    """The input named like a question, else one that ends like it, asks; the others are read."""
    observations = prompt.observations(texts.pop("trajectory", ""))
    asking = [name for name in _ASKING if name in texts]
    asking += [name for name, text in texts.items() if text.endswith("?")]
    question = texts.pop(asking[0]) if asking else ""
    passages = [passage for text in texts.values() for passage in prompt.passages(text)]
    if question and not passages:
        question, passages = _question_in(question)
    return _Task(question, passages, observations)


def _question_in(text: str) -> tuple[str, list[str]]:
    """The last question of a text (else its first sentence), and its other sentences."""
    parts = sentences(text)
    asking = [part for part in parts if part.endswith("?")] or parts[:1] or [""]
    question = asking[-1]
    return question, [part for part in parts if part != question]


def _values(outputs: Mapping[str, prompt.Output], task: _Task) -> dict[str, Any]:
    reading = _reading(task) if task.question else None
    return {
        name: value(output.schema, name, reading or _reading_for(name, output, task))
        for name, output in outputs.items()
    }


def _reading(task: _Task) -> Reading:
    """The reading of the question; what a tool said counts even where no word is shared."""
    reading = read(task.question, task.passages + task.observations)
    if reading.found or not task.observations:
        return reading
    return read("", task.observations[-1:])._replace(question=task.question)


def _reading_for(name: str, output: prompt.Output, task: _Task) -> Reading:
    """Where no input asks, the name and the description of the output do."""
    passages = task.passages + task.observations
    asked = read(f"{name.replace('_', ' ')} {output.description}", passages)
    decides = output.schema.get("type") == "boolean"
    return asked if asked.found or decides else read("", passages)


# Tools

_ANY_TEXT = frozenset({"query", "question", "q", "text", "input", "prompt", "search"})
_FORMULA = frozenset({"expression", "formula", "calculation", "equation"})
_CALCULATION = re.compile(r"[\d(][\d\s.()]*[-+*/^%][\d\s.()+*/^%-]*[\d)]")


def _next_step(tools: tuple[prompt.Tool, ...], task: _Task) -> dict[str, Any]:
    """Call the tool that fits the question best, once; then finish."""
    if task.observations or not tools:
        return _step("Nothing is left to be looked up.", "finish", {})
    asked = " ".join([task.question, *task.passages])
    tool = max(tools, key=lambda tool: _fit(tool, asked))
    thought = f"The tool {tool.name} fits the question best."
    return _step(thought, tool.name, _arguments(tool, task.question or asked))


def _fit(tool: prompt.Tool, asked: str) -> float:
    """The shared words, those of the name twice; without any, a tool for any text comes first."""
    takes = {name.lower() for name in tool.arguments}
    if takes & _FORMULA and _CALCULATION.search(asked):
        return math.inf
    shared = 2 * len(stems(asked) & stems(tool.name)) + len(stems(asked) & stems(tool.description))
    return shared or 0.5 * bool(takes & _ANY_TEXT)


def _step(thought: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"next_thought": thought, "next_tool_name": name, "next_tool_args": arguments}


def _arguments(tool: prompt.Tool, asked: str) -> dict[str, Any]:
    """The required arguments: numbers and names of the question in their order, else all of it."""
    figures = iter(numbers(asked))
    proper = (name for name in names(asked) if not asked.startswith(name))
    return {
        name: _argument(name, schema, asked, figures, proper)
        for name, schema in tool.arguments.items()
        if "default" not in schema
    }


def _argument(name: str, schema: prompt.Schema, asked: str, figures: Iterator[float], proper: Iterator[str]) -> Any:
    match schema.get("type"):
        case "integer":
            return round(next(figures, 0))
        case "number":
            return next(figures, 0.0)
        case "string" if "enum" not in schema:
            calculation = _CALCULATION.search(asked)
            if calculation and name.lower() in _FORMULA:
                return calculation[0]
            return asked if name.lower() in _ANY_TEXT else next(proper, asked)
    return value(schema, name, read("", [asked]))
