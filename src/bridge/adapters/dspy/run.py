"""One run of a program.

Every run has its own `dspy.context` and nothing calls `dspy.configure`, so sessions share no settings.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import dspy

from bridge.adapters.dspy import chat_format, models, parallel  # noqa: F401  # parallel is imported for its effect
from bridge.adapters.dspy.answer_cache import cache_of
from bridge.adapters.dspy.chosen_model import model_for, model_or_default
from bridge.adapters.dspy.current_run import ModelCall, PassedError, Run, current_run
from bridge.adapters.dspy.model_errors import lm_error, unreadable_reply
from bridge.adapters.dspy.prepared import prepared
from bridge.adapters.dspy.state import visible_tools
from bridge.telemetry.activity import activity

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.adapters.dspy.settings import Model
    from bridge.adapters.dspy.state import Program
    from bridge.adapters.dspy.tools import Tool


def execute(
    program: Program,
    model: Model | None,
    inputs: dict[str, Any],
    config: dict[str, Any],
    context: Context,
    tools: tuple[Tool, ...] = (),
) -> dict[str, Any]:
    """Run `program`, and return its id, the outputs, the execution time in seconds and the name of the model.

    model: the session's. config: settings of the model for this run. tools: of the host, for a module that asks for
    them. The result has the key truncated if a reply was cut off. Raises InvalidArgs before any model is called,
    LMNotConfigured, LMError, NotEncodable, CallEnded.
    """
    ready = prepared(program)
    arguments = ready.arguments(inputs)
    model = model_for(program, model, context)
    lm = models.lm_for(model, context)
    if config and ready.takes_config:
        arguments["config"] = config
    elif config:
        lm = lm.copy(**config)
    started = time.monotonic()
    run = Run(context, ready.names, cache_of(model, context.session.state), ready.is_own, tools)
    with _activity(program):
        prediction = _predicted(ready.module, arguments, lm, run)
    program.executed()
    result = {
        "program_id": program.id,
        "outputs": ready.outputs(prediction),
        "execution_time": round(time.monotonic() - started, 6),
        "model": lm.model,
    }
    if run.truncated:
        result["truncated"] = True
    return result


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
    model = model_or_default(context.session.state.model(context.shared), context)
    lm = models.lm_for(model, context)
    if config:
        lm = lm.copy(**config)
    tools = tuple(visible_tools(context).values())
    run = Run(context, {}, cache_of(model, context.session.state), True, tools)
    with activity("stage", "invoke_workflow", workflow=type(module).__name__):
        return _predicted(module, inputs, lm, run)


def _predicted(module: Any, arguments: dict[str, Any], lm: dspy.LM, run: Run) -> Any:
    """Return the module's prediction, with DSPy's errors converted to ours."""
    token = current_run.set(run)
    try:
        # BestOfN and Refine need a trace. DSPy's own modules do not, and it would hold all of their inputs.
        trace: list[Any] | None = [] if run.is_own else None
        with dspy.context(lm=lm, adapter=chat_format.adapter, trace=trace, disable_history=True):
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
