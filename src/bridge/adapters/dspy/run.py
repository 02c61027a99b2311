"""Programs: from checked signatures to DSPy's modules, and their runs.

Never `dspy.configure`: every run has its own `dspy.context`, so sessions share nothing.
"""

from __future__ import annotations

import datetime
import time
import types
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import dspy
import pydantic
import pydantic_core

from bridge import errors
from bridge.adapters.dspy import chat_format, supervised_engine, tools
from bridge.adapters.dspy.args import LMSettings, RunOptions
from bridge.adapters.dspy.field_values import read_key, read_moment
from bridge.adapters.dspy.model_errors import lm_error, unreadable
from bridge.adapters.dspy.models import Model, from_environment, in_time
from bridge.adapters.dspy.prompt_fields import LABEL
from bridge.adapters.dspy.prompt_values import rounded_float, without_text_form
from bridge.adapters.dspy.providers import GEMINI, full_model
from bridge.adapters.dspy.signatures import Field, Signature
from bridge.adapters.dspy.tool_schema import ToolSchema
from bridge.adapters.dspy.tools import Tool, model_names
from bridge.telemetry.activity import activity

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.adapters.dspy.state import Program

DEFAULT_ITERATIONS = 20
LARGEST_SHARED = 16_384  # characters of a signature; 1024 runners stay in memory without a program


class Runner:
    """A DSPy module for a signature, with the checks of its inputs. Shared between threads."""

    def __init__(self, signature: Signature, module: Any) -> None:
        self.module = module
        self.inputs = {field.name: field for field in signature.inputs}
        self._checks = {field.name: _check(field) for field in signature.inputs}
        self.labels = {field.label: field.name for field in signature.outputs}
        self._names = {field.python_name: field.name for field in signature.outputs}
        self._host_names = set(self._names.values())

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
        missing = [name for name, check in self._checks.items() if name not in inputs and not _is_valid(check, None)]
        if missing:
            raise errors.InvalidArgs(
                f"inputs missing: {', '.join(missing)}",
                path=f"args.inputs.{missing[0]}",
                missing=missing,
            )
        return {field.python_name: self._value(field, inputs.get(name)) for name, field in self.inputs.items()}

    def outputs(self, prediction: Any) -> dict[str, Any]:
        """What the module answered, by the host's names, of types that every format carries.

        Of what modules add by themselves only the reasoning, unless an output of the host's has
        that name; trajectories are events.
        """
        return {
            self._names.get(name, name): _plain(value)
            for name, value in prediction.items()
            if name in self._names or (name == "reasoning" and name not in self._host_names)
        }

    def _value(self, field: Field, value: Any) -> Any:
        unreadable = without_text_form(value, f"args.inputs.{field.name}")
        if unreadable is not None:
            path, kind = unreadable
            raise errors.InvalidArgs(
                f"{path}: {kind} has no text form for a prompt",
                path=path,
                expected=field.type_name,
            )
        rounded = rounded_float(value, f"args.inputs.{field.name}") if field.is_exact else None
        if rounded is not None:
            raise errors.InvalidArgs(
                f"{rounded}: a float may have been rounded: send a decimal of so many digits as a string",
                path=rounded,
                expected=field.type_name,
            )
        try:
            return self._checks[field.name].validate_python(value)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            path = f"args.inputs.{field.name}" + "".join(
                f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]
            )
            raise errors.InvalidArgs(
                f"{path}: expected {field.type_name}: {first['msg']}",
                path=path,
                expected=field.type_name,
            ) from None


def runner(
    signature: Signature,
    program_type: str,
    tools: tuple[Tool, ...] = (),
    max_iters: int | None = None,
) -> Runner:
    """The runner of a program that was checked; equal ones without tools share it."""
    if program_type == "react":
        return _react(signature, tools, max_iters)
    if signature.size > LARGEST_SHARED:
        return _predictor(signature, program_type)
    return _shared_predictor(signature, program_type)


def _predictor(signature: Signature, program_type: str) -> Runner:
    module = dspy.Predict if program_type == "predict" else dspy.ChainOfThought
    return Runner(signature, module(_dspy_signature(signature)))


_shared_predictor = lru_cache(maxsize=1024)(_predictor)


def _react(signature: Signature, tools: tuple[Tool, ...], max_iters: int | None) -> Runner:
    names = model_names(tools, ("finish",))  # which is DSPy's own
    made = [_dspy_tool(tool, name) for tool, name in zip(tools, names, strict=True)]
    module = dspy.ReAct(_dspy_signature(signature), made, max_iters=max_iters or DEFAULT_ITERATIONS)
    react = module.react.signature
    module.react.signature = react.with_instructions(signature.with_labels(react.instructions))
    return Runner(signature, module)


class HostTool(dspy.Tool):  # type: ignore[misc]  # DSPy is not typed
    """A tool whose arguments may have any names: `dspy.Tool` has parameters of its own beside
    them, and shows the model a traceback where they are wrong."""

    def __call__(self, /, **arguments: Any) -> Any:
        return self.func(arguments)


def _dspy_tool(tool: Tool, name: str) -> Any:
    schema = ToolSchema.of(tool.args)

    def call(arguments: dict[str, Any]) -> Any:
        run = supervised_engine.running.get()
        if run is None:
            raise RuntimeError(f"{tool.name} was called outside of a run")
        try:
            return tools.call(tool, schema, run.context, _plain(arguments))
        except Exception as error:  # DSPy would show the model its traceback
            raise supervised_engine.OwnError(error) from error

    description = tool.description
    if name != tool.name:
        description = f"{tool.name}: {description}" if description else tool.name
    return HostTool(
        call,
        name=name,
        desc=description,
        args=schema.properties,
        arg_types=dict.fromkeys(schema.properties, Any),
    )


def execute(
    program: Program,
    model: Model | None,
    inputs: dict[str, Any],
    options: RunOptions | None,
    context: Context,
) -> dict[str, Any]:
    """Run `program`: {program_id, outputs, execution_time in s, model}, and truncated where a reply
    was cut off.

    Raises InvalidArgs before any model is called, LMNotConfigured, LMError, CallEnded.
    """
    runner = program.runner
    arguments = runner.arguments(inputs)
    chosen = _chosen(program, model, context)
    lm = in_time(chosen.lm, context.remaining)
    config = {} if options is None else options.given()
    if config and program.definition.program_type == "react":
        lm = lm.copy(**config)  # it takes no config of its own
    elif config:
        arguments["config"] = config
    started = time.monotonic()
    run = supervised_engine.Run(context, runner.labels, chosen.answers(context.session.state))
    with _stage(program):
        token = supervised_engine.running.set(run)
        try:
            with dspy.context(lm=lm, adapter=chat_format.adapter, trace=None, disable_history=True):
                prediction = runner.module(**arguments)
        except supervised_engine.OwnError as error:
            raise error.error from error.error.__cause__
        except dspy.AdapterParseError as error:
            raise unreadable(error, run.reply, run.names, truncated=run.reply_truncated) from error
        except dspy.DSPyError as error:
            raise lm_error(error, run.attempts) from error
        finally:
            supervised_engine.running.reset(token)
    run.succeeded()
    program.executed()
    result = {
        "program_id": program.id,
        "outputs": runner.outputs(prediction),
        "execution_time": round(time.monotonic() - started, 6),
        "model": lm.model,
    }
    if run.truncated:
        result["truncated"] = True
    return result


def _stage(program: Program) -> AbstractContextManager[dict[str, Any]]:
    return activity(
        "stage",
        "invoke_workflow",
        workflow=program.signature.name,
        program_id=program.id,
        program_type=program.definition.program_type,
    )


def _chosen(program: Program, model: Model | None, context: Context) -> Model:
    name = program.definition.model
    if name is not None:
        base = model.settings if model else LMSettings(name, full_model(name, default=GEMINI))
        settings = base.with_model(name)
        cache = model.cache if model else 0
        own = program.own_model
        if own is None or (own.settings, own.cache) != (settings, cache):
            owner = None if model is None else model.session_id
            own = program.own_model = Model(
                settings,
                cache,
                session_id=owner,
                allowed=context.shared.get("api_bases", ()),
            )
        return own
    if model is None:
        model = from_environment(context.shared)
    if model is None:
        raise errors.LMNotConfigured(
            "no language model is configured: send configure_lm first (provider offline needs neither key nor network)"
        )
    return model


def _dspy_signature(signature: Signature) -> Any:
    fields = {}
    for make, side in (
        (dspy.InputField, signature.inputs),
        (dspy.OutputField, signature.outputs),
    ):
        for field in side:
            made = make(desc=_described(field))
            made.json_schema_extra[LABEL] = field.label
            fields[field.python_name] = (field.type, made)
    return dspy.make_signature(fields, signature.description or _instructions(signature))


def _instructions(signature: Signature) -> str:
    """DSPy's own words for a signature that comes without any."""
    inputs, outputs = (
        ", ".join(f"`{field.label}`" for field in side) for side in (signature.inputs, signature.outputs)
    )
    return f"Given the fields {inputs}, produce the fields {outputs}."


def _described(field: Field) -> str:
    if field.label == field.name:
        return field.description
    name = " ".join(field.name.split())
    return f"{name}: {field.description}" if field.description else name


def _check(field: Field) -> pydantic.TypeAdapter[Any]:
    config = pydantic.ConfigDict(coerce_numbers_to_str=True)
    return pydantic.TypeAdapter(_as_hosts_write(field.type), config=config)


def _as_hosts_write(type: Any) -> Any:
    """`type` with what hosts write for it. Dates and times are ISO 8601 alone, because pydantic
    takes numbers for seconds since 1970, so that 20240229 would be a day of that year. The choices
    of a key may be text, because JSON has no other keys. An empty list is an empty map."""
    if type in (datetime.date, datetime.datetime, datetime.time):
        return _before(type, partial(read_moment, type=type))
    arguments = get_args(type)
    members: Any = tuple(map(_as_hosts_write, arguments))
    origin = get_origin(type)
    if origin is dict:
        key = members[0]
        if get_origin(key) is Literal:
            key = _before(key, partial(read_key, choices=arguments[0].__args__))
        return _before(origin[key, members[1]], _as_map)
    if origin is list:
        return origin[members]
    if origin in (Union, types.UnionType):
        if any(get_origin(each) is list or each is Any for each in arguments):
            members = tuple(map(_plain_dict, members))
        return Union[members]  # noqa: UP007
    return type


def _before(type: Any, read: Callable[[Any], Any]) -> Any:
    return Annotated[type, pydantic.BeforeValidator(read)]


def _as_map(value: Any) -> Any:
    return {} if value == [] else value


def _plain_dict(type: Any) -> Any:
    """A dict that takes no list, which another member of its union is for."""
    is_dict = get_origin(type) is Annotated and get_origin(type.__origin__) is dict
    return type.__origin__ if is_dict else type


def _is_valid(check: pydantic.TypeAdapter[Any], value: Any) -> bool:
    try:
        check.validate_python(value)
    except pydantic.ValidationError:
        return False
    return True


def _plain(value: Any) -> Any:
    return pydantic_core.to_jsonable_python(value, inf_nan_mode="constants", fallback=str)
