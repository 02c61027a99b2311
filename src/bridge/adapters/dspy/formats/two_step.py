"""The format in two steps: a model answers in prose, and a second one extracts the fields from its answer."""

from __future__ import annotations

import re
from typing import Any

import dspy

from bridge.adapters.dspy.formats.chat import ChatFormat
from bridge.adapters.dspy.formats.format import Format
from bridge.adapters.dspy.prompt_fields import LabelledSignature, label_of
from bridge.adapters.dspy.replies.prose import ProseReply

_LABEL = re.compile(r"(?<=\n)([ \t]*\w{1,100})(?=:(?:\s|\Z))")
_INSTRUCTIONS = (
    "The input is a text that should contain all the necessary information to produce the fields {fields}."
    " Your job is to extract the fields from the text verbatim."
    " Extract precisely the appropriate value (content) for each field."
)


class TwoStepFormat(Format, dspy.TwoStepAdapter):  # type: ignore[misc]  # DSPy is not typed
    """DSPy's `TwoStepAdapter`.

    lm: the model that extracts the fields, in the chat format. fallback: of the extraction.
    """

    reply = ProseReply

    def __init__(self, lm: Any, *, native: bool = True, fallback: Format | None = None) -> None:
        super().__init__(native=native, extraction_model=lm)
        self._chat = ChatFormat(native=native, fallback=fallback)

    def section(self, label: str, text: str) -> str:
        return f"{label}: {text}"

    def escaped(self, text: str) -> str:
        return _LABEL.sub(r"\1 ", text) if ":" in text else text

    def system_message(self, signature: LabelledSignature) -> str:
        text: str = self.format_task_description(signature)
        return text

    def user_message_output_requirements(self, signature: Any) -> str:
        return ""

    def _read(self, signature: Any, reply: str) -> dict[str, Any]:
        layout = self._layout(signature)
        if layout.extractor is None:
            layout.extractor = _extractor(signature)
        name, extractor = layout.extractor
        # One is enough, of a model that is set to return several completions, too.
        values: list[dict[str, Any]] = self._chat(self.extraction_model, {"n": 1}, extractor, [], {name: reply})
        return values[0]


def _extractor(signature: Any) -> tuple[str, Any]:
    """Return the name of the text, and the signature that has it as input and the outputs of `signature`."""
    outputs = signature.output_fields
    labels = [label_of(*named) for named in outputs.items()]
    taken = {*outputs, *labels}
    name = "text"
    while name in taken:
        name = f"{name}_"
    fields = {name: (str, dspy.InputField()), **{name: (field.annotation, field) for name, field in outputs.items()}}
    asked = ", ".join(f"`{label}`" for label in labels)
    return name, dspy.make_signature(fields, _INSTRUCTIONS.format(fields=asked))
