"""What all formats share: calls of models, prompts in which no value is taken for structure, and reading replies.

What depends on the signature only is determined once for each signature. DSPy does that for every call, which takes a
third of the call's time.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import Any, ClassVar

import dspy
from dspy.adapters.utils import apply_output_field_defaults

from bridge.adapters.dspy.current_run import ModelCall, current_call, current_run
from bridge.adapters.dspy.format_choice import FALLBACK
from bridge.adapters.dspy.formats.values import MARK, Formatted, value_text, without_marks
from bridge.adapters.dspy.language_model import LanguageModel
from bridge.adapters.dspy.prompt_fields import LabelledSignature, Layout
from bridge.adapters.dspy.replies.text import Reply, read_fields, well_formed_in


class Format(dspy.Adapter):  # type: ignore[misc]  # DSPy is not typed
    """Changes one of DSPy's adapters, the next base class of a format: it writes what DSPy writes, but escapes values.

    Escaped is what DSPy or a model would take for structure: DSPy's marks of images and files, and the marks with which
    the format separates fields.

    reply: the class that reads the format's replies. fallback: asks the model again if its reply cannot be read.
    """

    reply: ClassVar[type[Reply]]
    _layouts: ClassVar[weakref.WeakKeyDictionary[Any, Layout]]

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        cls._layouts = weakref.WeakKeyDictionary()

    def __init__(self, *, native: bool = True, fallback: Format | None = None, **more: Any) -> None:
        super().__init__(use_native_function_calling=native, **more)
        self.native = native
        self.fallback = fallback

    def __call__(
        self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: list[dict[str, Any]], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        run = current_run.get()
        if run is None:
            return self._answered(lm, lm_kwargs, signature, demos, inputs)
        call = ModelCall(run, tuple(self._layout(signature).outputs), self.reply)
        settings = dict(lm_kwargs)
        try:
            return self._called(call, lm, lm_kwargs, signature, demos, inputs)
        except dspy.AdapterParseError:
            # Text that was sent to the host cannot be withdrawn.
            if self.fallback is None or call.has_streamed:
                raise
        call.announce_fallback(lm.model, FALLBACK)
        return self.fallback(lm, settings, signature, demos, inputs)

    def _called(self, call: ModelCall, *arguments: Any) -> list[dict[str, Any]]:
        """Return the values of the model's answer to `call`."""
        token = current_call.set(call)
        try:
            values = self._answered(*arguments)
        except dspy.DSPyError as error:
            if not hasattr(error, "model_call"):
                error.model_call = call
            raise
        finally:
            current_call.reset(token)
        call.cache_responses()
        return values

    async def acall(self, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        """Call this on another thread: engines are not asynchronous."""
        return await asyncio.to_thread(self, *args, **kwargs)

    def section(self, label: str, text: str) -> str:
        """Return the input `label` with its value, as a part of a message."""
        raise NotImplementedError

    def escaped(self, text: str) -> str:
        """Return a value's `text`, changed where it would be taken for a mark of the format."""
        raise NotImplementedError

    def output(self, field: Any, value: Any) -> Any:
        """Return the `value` of an output in an example, changed where it would be taken for a mark of the format."""
        return value_text(field, value, self.escaped)

    def format_system_message(self, signature: Any) -> str:
        layout = self._layout(signature)
        if layout.system is None:
            layout.system = self.system_message(LabelledSignature(signature))
        return layout.system

    def system_message(self, signature: LabelledSignature) -> str:
        """Return the system message."""
        text: str = super().format_system_message(signature)
        return text

    def user_message_output_requirements(self, signature: Any) -> str:
        layout = self._layout(signature)
        if layout.requirements is None:
            requirements = super().user_message_output_requirements(LabelledSignature(signature))
            layout.requirements = without_marks(requirements)
        return layout.requirements

    def format_assistant_message_content(
        self, signature: Any, outputs: dict[str, Any], missing_field_message: Any = None
    ) -> str:
        fields = signature.output_fields
        values = {  # of demos and of earlier turns
            label: self.output(fields[name], outputs[name])
            for label, (name, _) in self._layout(signature).outputs.items()
            if name in outputs
        }
        text: str = super().format_assistant_message_content(
            LabelledSignature(signature), values, missing_field_message
        )
        return text

    def format_user_message_content(
        self,
        signature: Any,
        inputs: dict[str, Any],
        prefix: str = "",
        suffix: str = "",
        main_request: bool = False,
    ) -> str:
        """Return a message with values: inputs, results of tools, examples."""
        parts = [prefix]
        for name, label, field in self._layout(signature).inputs:
            if name in inputs:
                parts.append(self.section(label, value_text(field, inputs[name], self.escaped)))
        if main_request:
            parts.append(self.user_message_output_requirements(signature))
        return Formatted("\n\n".join([*parts, suffix]).strip())

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        return self._read(signature, completion)

    def _read(self, signature: Any, reply: str) -> dict[str, Any]:
        """Return the values of all output fields: `parse` without the callbacks that DSPy adds to it."""
        outputs = self._layout(signature).outputs
        fields: dict[str, Any] = {}
        read = read_fields(self.reply, reply, outputs)
        for label, text in read.texts.items():
            name, annotation = outputs[label]
            try:
                value = read.value(label, annotation)
                # An escape sequence of JSON can be half of a surrogate pair.
                fields[name] = well_formed_in(value) if "\\u" in text else value
            except Exception as error:  # any parser may fail, and the text may be anything
                raise self._unreadable(signature, reply, read, label, error) from error
        names = [name for name, _ in outputs.values()]
        if [*fields] != names:
            fields = apply_output_field_defaults(signature, fields)
        if not reply or [*fields] != names:
            raise self._unreadable(signature, reply, read)
        return fields

    def _unreadable(
        self, signature: Any, reply: str, read: Reply, label: str | None = None, error: Exception | None = None
    ) -> dspy.AdapterParseError:
        failure = dspy.AdapterParseError(type(self).__name__, signature, reply)
        failure.found = read.headers
        if label is not None:
            failure.field = label
            failure.reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            failure.cause = error
        return failure

    def _answered(
        self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: list[dict[str, Any]], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Return the values of the model's answer. Ask the model directly if possible, otherwise through DSPy."""
        if self._layout(signature).is_plain and isinstance(lm, LanguageModel) and self.asks_for_text(lm):
            messages = self._messages(signature, demos, inputs)
            if not any(MARK in text for _, text in messages):
                reply = lm.ask(messages, lm_kwargs)
                if reply is not None:
                    return [self._read(signature, reply)]
        values: list[dict[str, Any]] = super().__call__(lm, lm_kwargs, signature, demos, inputs)
        return values

    def asks_for_text(self, lm: LanguageModel) -> bool:
        """Return whether requests to `lm` are nothing but messages and the model's settings."""
        return not self.callbacks

    def _messages(self, signature: Any, demos: list[dict[str, Any]], inputs: dict[str, Any]) -> list[tuple[str, str]]:
        """Return what `format` returns, as (role, text), for a signature that is plain."""
        return [
            ("system", self.format_system_message(signature)),
            *((message["role"], message["content"]) for message in self.format_demos(signature, demos)),
            ("user", self.format_user_message_content(signature, inputs, main_request=True)),
        ]

    def _layout(self, signature: Any) -> Layout:
        layout = self._layouts.get(signature)
        if layout is None or layout.instructions is not signature.__doc__:  # which a module may replace
            layout = self._layouts[signature] = Layout(signature, self.native_response_types)
        return layout
