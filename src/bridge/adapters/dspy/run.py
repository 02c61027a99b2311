"""One run of a program.

Every run has its own `dspy.context` and nothing calls `dspy.configure`, so sessions share no settings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

import dspy

from bridge.adapters.dspy import formats, models, parallel  # noqa: F401  # parallel is imported for its effect
from bridge.adapters.dspy.answer_cache import AnswerCache, cache_of
from bridge.adapters.dspy.chosen_model import configured, default_models, extractors_of
from bridge.adapters.dspy.current_run import ModelCall, PassedError, Run, current_run
from bridge.adapters.dspy.formats.format import Format
from bridge.adapters.dspy.history import history_of
from bridge.adapters.dspy.include import NOTHING, RECORDED, Include, included
from bridge.adapters.dspy.model_errors import lm_error, unreadable_reply
from bridge.adapters.dspy.prepared import prepared
from bridge.adapters.dspy.recorder import Recorder
from bridge.adapters.dspy.state import visible_tools
from bridge.telemetry.activity import activity

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.adapters.dspy.settings import LMSettings, Model
    from bridge.adapters.dspy.setup import Setup
    from bridge.adapters.dspy.state import Program
    from bridge.adapters.dspy.tools import Tool


def execute(setup: Setup, inputs: dict[str, Any], context: Context, path: str = "args.inputs") -> dict[str, Any]:
    """Run a program, and return its id, the outputs, the execution time in seconds and the name of the model.

    path: of the inputs in the args. The result has the key truncated if a reply was cut off. Raises InvalidArgs before
    any model is called, LMNotConfigured, LMError, NotEncodable, CallEnded.
    """
    ready = prepared(setup.program)
    arguments = ready.arguments(inputs, path)
    started = time.monotonic()
    done = predict(setup, arguments, context)
    result = {
        "program_id": setup.program.id,
        "outputs": ready.outputs(done.prediction),
        "execution_time": round(time.monotonic() - started, 6),
        "model": done.model,
    }
    if done.run.truncated:
        result["truncated"] = True
    if setup.include:
        result |= included(setup.include, ready, done.prediction, done.run.recorder)
    return result


class Done(NamedTuple):
    """A run that is over: what the module returned, and the name of the model."""

    prediction: Any
    run: Run
    model: str


def predict(
    setup: Setup, arguments: dict[str, Any], context: Context, trace: list[tuple[Any, Any, Any]] | None = None
) -> Done:
    """Run a program on the arguments of its module. Any number of threads may do so for the same setup.

    trace: DSPy adds each call of a predictor to it: the predictor, its arguments and its prediction. Raises
    LMNotConfigured, LMError, CallEnded, and what a module of the operator raises.
    """
    program = setup.program
    ready = prepared(program)
    lm = _lm(setup.models, setup.config, context)
    run = _run(setup, context, setup.include)
    with _activity(program):
        prediction = _predicted(ready.module, arguments, lm, run, _format(setup, lm, context), trace)
    program.executed()
    return Done(prediction, run, run.model or lm.model)


def perform(setup: Setup, context: Context, work: Callable[[], Any], others: Sequence[Model] = ()) -> Any:
    """Return what `work` returns, which calls the module of a program, or copies of it, as often as it likes.

    All its calls are one run. others: further models that it calls. Raises what `predict` raises.
    """
    lm = _lm(setup.models, setup.config, context)
    run = _run(setup, context)
    run.caches |= _caches(others, context)
    with _activity(setup.program):
        return _predicted(work, {}, lm, run, _format(setup, lm, context))


def run_module(
    module: dspy.Module, inputs: dict[str, Any], context: Context, config: dict[str, Any] | None = None
) -> Any:
    """Run `module` in a command, with the session's model, its tools, streaming, statistics, cancel and deadline.

    inputs: the keyword arguments of the module; they are not checked. config: settings of the model for this run
    (temperature, max_tokens). Returns what the module returns, usually a dspy.Prediction. Raises LMNotConfigured,
    LMError, CallEnded, what the module raises, and ValueError if the command's lane has no session.
    """
    if context.session is None:
        raise ValueError("run_module needs a session, which commands in the lanes inline and worker do not have")
    used = default_models(context.session.state, context)
    return run_on(used, module, inputs, context, config, tuple(visible_tools(context).values()))


def run_on(
    used: tuple[Model, ...],
    module: dspy.Module,
    inputs: dict[str, Any],
    context: Context,
    config: dict[str, Any] | None = None,
    tools: tuple[Tool, ...] = (),
) -> Any:
    """Run a module that is not a program on the models `used`. Otherwise like `run_module`."""
    lm = _lm(used, config or {}, context)
    choice = used[0].format
    extractors = extractors_of(choice, context.session.state, context, "adapter.model")
    run = Run(context, {}, _caches((*used, *extractors), context), True, tools, _recorder(used, context))
    with activity("stage", "invoke_workflow", workflow=type(module).__name__):
        format = formats.format_of(choice, _lm(extractors, {}, context) if extractors else lm)
        return _predicted(module, inputs, lm, run, format)


def _recorder(
    used: tuple[Model, ...], context: Context, include: Include = NOTHING, program_id: str | None = None
) -> Recorder | None:
    """Return what records the requests of a run to models, if its result or the session's history has some of them."""
    size = max((model.history for model in used), default=0)
    if size:
        add = history_of(context.session).add
        return Recorder(lambda exchange: add(exchange, program_id, size))
    return Recorder() if include & RECORDED else None


def _run(setup: Setup, context: Context, include: Include = NOTHING) -> Run:
    program = setup.program
    ready = prepared(program)
    caches = _caches((*setup.models, *setup.extractors), context)
    recorder = _recorder(setup.models, context, include, program.id)
    return Run(context, ready.names, caches, ready.names_calls, setup.tools, recorder)


def _format(setup: Setup, lm: dspy.LM, context: Context) -> Format:
    return formats.format_of(setup.format, _lm(setup.extractors, {}, context) if setup.extractors else lm)


def _lm(used: tuple[Model, ...], config: dict[str, Any], context: Context) -> dspy.LM:
    """Return DSPy's model for a run. Raises LMNotConfigured if no model is configured."""
    return models.lm_for(configured(used), config, context)


def _caches(used: Sequence[Model], context: Context) -> dict[LMSettings, AnswerCache]:
    found = {model.settings: cache_of(model, context.session.state) for model in used}
    return {settings: cache for settings, cache in found.items() if cache is not None}


def _predicted(
    module: Any,
    arguments: dict[str, Any],
    lm: dspy.LM,
    run: Run,
    format: Format,
    trace: list[tuple[Any, Any, Any]] | None = None,
) -> Any:
    """Return the module's prediction, with DSPy's errors converted to ours."""
    token = current_run.set(run)
    try:
        # DSPy's BestOfN and Refine need a trace. Other modules do not, and it would hold all of their inputs.
        if trace is None and run.names_calls:
            trace = []
        # The values of inputs have been checked, and DSPy's warning about their types would log them.
        settings = {"trace": trace, "disable_history": True, "warn_on_type_mismatch": False}
        with dspy.context(lm=lm, adapter=format, **settings):
            return module(**arguments)
    except PassedError as error:
        raise error.error from error.error.__cause__
    except dspy.AdapterParseError as error:
        call = _call_of(error, run)
        raise unreadable_reply(error, call.reply, run.names, truncated=call.truncated) from error
    except dspy.LMError as error:
        raise lm_error(error, _call_of(error, run).attempts) from error
    finally:
        run.is_over = True
        current_run.reset(token)


def _call_of(error: dspy.LMError | dspy.AdapterParseError, run: Run) -> ModelCall:
    """Return the call of a model that failed with `error`."""
    call: ModelCall | None = getattr(error, "model_call", None)
    if call is None:  # a module has used another adapter
        call = ModelCall(run)
        call.reply = getattr(error, "lm_response", "")
    return call


def _activity(program: Program) -> AbstractContextManager[dict[str, Any]]:
    return activity(
        "stage",
        "invoke_workflow",
        workflow=program.workflow,
        program_id=program.id,
        program_type=program.definition.program_type,
    )
