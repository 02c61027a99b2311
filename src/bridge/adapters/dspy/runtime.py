"""The one module that imports DSPy: builds its modules and models, and runs them.

Never `dspy.configure`: every run has its own `dspy.context`, so sessions share nothing.
"""

from __future__ import annotations

import json
import time
import weakref
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import dspy
import pydantic
import pydantic_core

from bridge import errors
from bridge.adapters.dspy.messages import LMSettings, RunOptions
from bridge.adapters.dspy.signatures import Field, Signature
from bridge.adapters.dspy.state import Program

PROGRAM_TYPES: dict[str, Any] = {
    "predict": dspy.Predict,
    "chain_of_thought": dspy.ChainOfThought,
}

# DSPy's response cache ignores key and endpoint of a model, so sessions would read each other's
# answers; the one on disk holds pickles.
dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)


class Runner:
    """A DSPy module for a signature, with the checks of its inputs. Shared between threads."""

    def __init__(self, signature: Signature, program_type: str) -> None:
        self.module = PROGRAM_TYPES[program_type](_dspy_signature(signature))
        self.inputs = {field.name: field for field in signature.inputs}
        self._checks = {field.name: _check(field) for field in signature.inputs}
        self._names = {field.safe_name: field.name for field in signature.outputs}

    def arguments(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The module's arguments. Raises InvalidArgs naming what is undeclared, missing, wrong."""
        unknown = [name for name in inputs if name not in self.inputs]
        if unknown:
            raise errors.InvalidArgs(
                f"inputs not declared by the signature: {', '.join(map(str, unknown))};"
                f" declared: {', '.join(self.inputs) or 'none'}",
                path=f"args.inputs.{unknown[0]}",
                unknown=unknown,
                declared=list(self.inputs),
            )
        missing = [
            name
            for name, check in self._checks.items()
            if name not in inputs and not _is_valid(check, None)
        ]
        if missing:
            raise errors.InvalidArgs(
                f"inputs missing: {', '.join(missing)}",
                path=f"args.inputs.{missing[0]}",
                missing=missing,
            )
        return {
            field.safe_name: self._value(field, inputs.get(name))
            for name, field in self.inputs.items()
        }

    def outputs(self, prediction: Any) -> dict[str, Any]:
        """What the module answered, by the host's names, of types that every format carries."""
        return {self._names.get(name, name): _plain(value) for name, value in prediction.items()}

    def _value(self, field: Field, value: Any) -> Any:
        try:
            return _without_markers(self._checks[field.name].validate_python(value))
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            path = ".".join(map(str, ("args.inputs", field.name, *first["loc"])))
            raise errors.InvalidArgs(
                f"{path}: expected {field.type_name}: {first['msg']}",
                path=path,
                expected=field.type_name,
            ) from None


def module(signature: Signature, program_type: str) -> Runner:
    """The runner of a program; equal ones share it. Raises InvalidArgs for an unknown type."""
    if program_type not in PROGRAM_TYPES:
        raise errors.InvalidArgs(
            f"args.program_type: unknown program type {program_type!r};"
            f" known: {', '.join(PROGRAM_TYPES)}",
            path="args.program_type",
            expected=" | ".join(PROGRAM_TYPES),
        )
    return _runner(signature, program_type)


@lru_cache(maxsize=1024)
def _runner(signature: Signature, program_type: str) -> Runner:
    return Runner(signature, program_type)


def check(settings: LMSettings) -> None:
    """Raise InvalidArgs or LMError where DSPy would not take these settings. Calls no model."""
    _lm(settings)


def execute(
    program: Program,
    settings: LMSettings | None,
    inputs: dict[str, Any],
    options: RunOptions | None,
) -> dict[str, Any]:
    """Run `program`: {program_id, outputs, execution_time in s, model}.

    Raises InvalidArgs before any model is called, LMNotConfigured, LMError.
    """
    runner = module(program.signature, program.program_type)
    arguments = runner.arguments(inputs)
    lm = _lm(_chosen(program, settings))
    if options is not None:
        arguments["config"] = _set_only(options)
    started = time.monotonic()
    try:
        with dspy.context(lm=lm, adapter=_adapter, trace=None, disable_history=True):
            prediction = runner.module(**arguments)
    except dspy.DSPyError as error:
        raise lm_error(error) from error
    program.executed()
    return {
        "program_id": program.id,
        "outputs": runner.outputs(prediction),
        "execution_time": round(time.monotonic() - started, 6),
        "model": lm.model,
    }


def lm_error(error: dspy.DSPyError) -> errors.LMError:
    """DSPy's error as ours: its message without the advice, its code and status as details."""
    facts = {
        "lm_code": error.code,
        "status": error.status,
        "provider": error.provider,
        "retry_after": error.retry_after,
        "retryable": dspy.is_retryable_lm_error(error) or None,
    }
    message = " ".join(str(error).partition("\n\n")[0].split())[:1000]
    return errors.LMError(message, **{name: v for name, v in facts.items() if v is not None})


class _ChatAdapter(dspy.ChatAdapter):  # type: ignore[misc]  # DSPy is not typed
    """DSPy's, with the text that depends on the signature alone made once a signature.

    A quarter of the cost of a call on an instant model. The class keeps DSPy's name, by which its
    streaming knows what it can parse.
    """

    def format_system_message(self, signature: Any) -> str:
        text = _system_messages.get(signature)
        if text is None:
            text = _system_messages[signature] = super().format_system_message(signature)
        return text


_ChatAdapter.__name__ = _ChatAdapter.__qualname__ = "ChatAdapter"
_system_messages: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
# A reply that does not parse is an error: DSPy's fallback would ask the model a second time.
_adapter = _ChatAdapter(use_json_adapter_fallback=False)


@lru_cache(maxsize=256)
def _lm(settings: LMSettings) -> dspy.LM:
    """The model of these settings: one object, so that sessions share its connections."""
    common = {"temperature": settings.temperature, "max_tokens": settings.max_tokens}
    engine = _own_engine(settings)
    if engine is not None:
        connection = {"engine": engine}
    else:
        connection = _set(
            api_key=settings.api_key, api_base=settings.api_base, timeout=settings.timeout
        )
    try:
        return dspy.LM(settings.model, cache=False, **connection, **common)
    except dspy.DSPyError as error:
        raise lm_error(error) from error
    except (ValueError, TypeError) as error:
        raise errors.InvalidArgs(f"args.model: {error}", path="args.model") from error


def _own_engine(settings: LMSettings) -> Any:
    """The model that answers in this process, for the providers that are ours."""
    if settings.provider == "offline":
        from bridge.adapters.dspy.offline import OfflineReader  # loads numpy

        return OfflineReader()
    if settings.provider == "scripted":
        from bridge.adapters.dspy.scripted import ScriptedAnswers

        return ScriptedAnswers(json.loads(settings.answers or "[]"))
    return None


def _chosen(program: Program, settings: LMSettings | None) -> LMSettings:
    if program.model is not None:
        base = settings or LMSettings(program.model, f"gemini/{program.model}")
        return base.with_model(program.model)
    if settings is None:
        raise errors.LMNotConfigured(
            "no language model is configured: send configure_lm first"
            " (provider offline needs neither key nor network)"
        )
    return settings


def _dspy_signature(signature: Signature) -> Any:
    fields = {
        field.safe_name: (field.type, make(desc=_described(field)))
        for make, side in (
            (dspy.InputField, signature.inputs),
            (dspy.OutputField, signature.outputs),
        )
        for field in side
    }
    return dspy.make_signature(fields, signature.description or _instructions(signature))


def _instructions(signature: Signature) -> str:
    """DSPy's own words for a signature that comes without any."""
    inputs, outputs = (
        ", ".join(f"`{field.safe_name}`" for field in side)
        for side in (signature.inputs, signature.outputs)
    )
    return f"Given the fields {inputs}, produce the fields {outputs}."


def _described(field: Field) -> str:
    if field.safe_name == field.name:
        return field.description
    return f"{field.name}: {field.description}" if field.description else field.name


def _check(field: Field) -> pydantic.TypeAdapter[Any]:
    config = pydantic.ConfigDict(coerce_numbers_to_str=True)
    return pydantic.TypeAdapter(field.type, config=config)


def _is_valid(check: pydantic.TypeAdapter[Any], value: Any) -> bool:
    try:
        check.validate_python(value)
    except pydantic.ValidationError:
        return False
    return True


def _without_markers(value: Any) -> Any:
    """`value` with DSPy's marks for images and files broken up: in text from a host they would
    make the provider fetch what the text names."""
    if isinstance(value, str):
        return value.replace("<<CUSTOM-TYPE-", "< <CUSTOM-TYPE-")
    if isinstance(value, Mapping):
        return {_without_markers(key): _without_markers(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_markers(entry) for entry in value]
    return value


def _plain(value: Any) -> Any:
    return pydantic_core.to_jsonable_python(value, inf_nan_mode="constants", fallback=str)


def _set(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _set_only(options: RunOptions) -> dict[str, Any]:
    return _set(temperature=options.temperature, max_tokens=options.max_tokens)
