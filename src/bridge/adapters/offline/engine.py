"""The embedded language model: reads a prompt, answers every output field, and writes the reply."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from bridge.adapters.offline import prompt
from bridge.adapters.offline.examples import Example, choose_like
from bridge.adapters.offline.layouts import fields_in_prose, layout_of
from bridge.adapters.offline.reading import Reading, read, sentences, stems
from bridge.adapters.offline.schema_values import value
from bridge.adapters.offline.short_answers import answer, names, numbers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


class OfflineReader:
    """A deterministic text model without state: it answers from the inputs alone.

    What the inputs do not contain is "not found in the inputs". One instance serves any number of threads.
    """

    def reply(self, system: str, messages: Sequence[str]) -> tuple[str, int]:
        """Return the reply to DSPy's prompt, in its format, or to a question, and the number of words in the prompt."""
        words = sum(len(text.split()) for text in (system, *messages))
        return _answered(system, messages), words


def _answered(system: str, messages: Sequence[str]) -> str:
    message = messages[-1]
    outputs = prompt.outputs(system)
    if not outputs:
        question, rest = _question_in(message)
        return answer(read(question, rest)).text
    layout = layout_of(system, message)
    texts = prompt.inputs(system, message, layout)
    asked = "\n".join(texts.values())
    task = _task(texts)
    if outputs.keys() >= {"next_thought", "next_tool_name", "next_tool_args"}:
        values = _next_step(prompt.tools(system), task)
    else:
        examples = prompt.examples(system, messages[:-1], layout)
        values = _values(outputs, task) | _as_in_examples(examples, outputs, asked)
    schemas = {name: output.schema for name, output in outputs.items()}
    if prompt.is_extraction(system):
        values |= fields_in_prose(asked, schemas)
    return layout.reply(values, schemas)


# The question and the texts to read


class _Task(NamedTuple):
    question: str
    passages: list[str]
    observations: list[str]


_ASKING = ("question", "query", "q", "problem", "request", "prompt")


def _task(texts: dict[str, str]) -> _Task:
    """Return the task: the question is the input named like one, else one that ends with "?"; the others are read."""
    observations = prompt.observations(texts.pop("trajectory", ""))
    asking = [name for name in _ASKING if name in texts]
    asking += [name for name, text in texts.items() if text.endswith("?")]
    question = texts.pop(asking[0]) if asking else ""
    passages = [passage for text in texts.values() for passage in prompt.passages(text)]
    if question and not passages:
        question, passages = _question_in(question)
    return _Task(question, passages, observations)


def _question_in(text: str) -> tuple[str, list[str]]:
    """Return the last question of a text (else its first sentence), and its other sentences."""
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


def _as_in_examples(examples: Sequence[Example], outputs: Mapping[str, prompt.Output], asked: str) -> dict[str, Any]:
    """Return the values of outputs with options for which the prompt has examples."""
    with_options = {name: output.schema["enum"] for name, output in outputs.items() if "enum" in output.schema}
    choices = {name: choose_like(examples, name, options, asked) for name, options in with_options.items()}
    return {name: choice for name, choice in choices.items() if choice is not None}


def _reading(task: _Task) -> Reading:
    """Return the reading of the question. An observation is used even if it shares no word with the question."""
    reading = read(task.question, task.passages + task.observations)
    if reading.found or not task.observations:
        return reading
    return read("", task.observations[-1:])._replace(question=task.question)


def _reading_for(name: str, output: prompt.Output, task: _Task) -> Reading:
    """Return a reading for the name and the description of an output, if no input is a question."""
    passages = task.passages + task.observations
    asked = read(f"{name.replace('_', ' ')} {output.description}", passages)
    decides = output.schema.get("type") == "boolean"
    return asked if asked.found or decides else read("", passages)


# Tools

_ANY_TEXT = frozenset({"query", "question", "q", "text", "input", "prompt", "search"})
_FORMULA = frozenset({"expression", "formula", "calculation", "equation"})
_CALCULATION = re.compile(r"[\d(][\d\s.()]*[-+*/^%][\d\s.()+*/^%-]*[\d)]")


def _next_step(tools: tuple[prompt.Tool, ...], task: _Task) -> dict[str, Any]:
    """Return ReAct's next step: call the tool that fits the question best, once; then finish."""
    if task.observations or not tools:
        return _step("Nothing is left to be looked up.", "finish", {})
    asked = " ".join([task.question, *task.passages])
    tool = max(tools, key=lambda tool: _fit(tool, asked))
    thought = f"The tool {tool.name} fits the question best."
    return _step(thought, tool.name, _arguments(tool, task.question or asked))


def _fit(tool: prompt.Tool, asked: str) -> float:
    """Return how well a tool fits: words in common, those of the name twice, or else whether it takes any text."""
    takes = {name.lower() for name in tool.arguments}
    if takes & _FORMULA and _CALCULATION.search(asked):
        return math.inf
    shared = 2 * len(stems(asked) & stems(tool.name)) + len(stems(asked) & stems(tool.description))
    return shared or 0.5 * bool(takes & _ANY_TEXT)


def _step(thought: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"next_thought": thought, "next_tool_name": name, "next_tool_args": arguments}


def _arguments(tool: prompt.Tool, asked: str) -> dict[str, Any]:
    """Return the required arguments: numbers and names of the question in their order, else all of it."""
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
