"""The commands of a mock: those of a worker with DSPy, except for what needs a model, and what a test has set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from bridge._framing import Frame, Outbox, buffers_of, envelope_of, is_multipart
from bridge.adapter import Adapter, CommandSpec
from bridge.adapters.dspy import adapter as dspy_adapter
from bridge.adapters.dspy.commands import batch
from bridge.adapters.dspy.commands.batch import BatchArgs
from bridge.adapters.dspy.commands.embedders import ConfigureEmbedderArgs, configure_embedder
from bridge.adapters.dspy.commands.evaluation import EvaluateArgs
from bridge.adapters.dspy.commands.execution import ExecuteArgs, execute
from bridge.adapters.dspy.commands.models import ConfigureArgs, configure
from bridge.adapters.dspy.commands.optimization import OptimizeArgs, improve
from bridge.adapters.dspy.credentials import check_destination
from bridge.adapters.dspy.state import Definition, RegisteredProgram
from bridge.options import Options
from bridge.records import EncodedValue
from bridge.testing import documents, scoring
from bridge.testing.runs import run
from bridge.testing.script import Recorded, Script
from bridge.wire._frames import format_of
from bridge.wire.arrays import args_decoder
from bridge.worker.control import HelloArgs, LogLevelArgs, hello
from bridge.worker.dispatch import Dispatcher

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.adapters.dspy.settings import Model

NO_PROGRAMS: Mapping[str, Any] = MappingProxyType({})

_any_args = args_decoder(dict[str, Any])


class MockDispatcher(Dispatcher):
    """Answers requests as a worker does, with what a test has set in `script`, where it records them."""

    def __init__(self, script: Script, options: Options, programs: Mapping[str, Any] = NO_PROGRAMS) -> None:
        """Answer as a worker with `options`. programs: the signatures of the operator's programs, by their names."""
        self._script = script
        names = tuple(f"{name}=mock:{name}" for name in programs)
        super().__init__(_mock_adapter(programs), msgspec.structs.replace(options, programs=names))

    def add(self, adapter: Adapter) -> None:
        """Add the commands of `adapter`, with the test's errors and results before their handlers."""
        mocked = adapter.extended(adapter.name)
        mocked.commands.update({name: self._mocked(spec) for name, spec in adapter.commands.items()})
        super().add(mocked)

    def answer(self, frame: Frame, outbox: Outbox, deliver: Any) -> bool:
        """Record a request, and answer it as `FastPath.answer` does."""
        request = _request_of(frame)
        if request is not None:
            self._script.record(request)
            if self._script.has_result(request.command) and request.command not in self.commands:
                own = Adapter("own")
                own.command(request.command, dict[str, Any])(_own_command)
                self.add(own)
        return self.path.answer(frame, outbox, deliver)

    def _mocked(self, spec: CommandSpec) -> CommandSpec:
        handler = _REPLACED.get(spec.name)
        if handler is not None:
            return msgspec.structs.replace(spec, handler=partial(handler, self._script))
        return msgspec.structs.replace(spec, handler=partial(self._handle, spec))

    def _handle(self, spec: CommandSpec, args: Any, context: Context) -> Any:
        if (delay := self._script.delay(spec.name)) and not spec.lane.inline:
            context.wait(delay)
        self._script.raise_error(spec.name)
        if self._script.has_result(spec.name):
            return self._script.result(spec.name, _sent(context))
        return _WITHOUT_DSPY.get(spec.name, spec.handler)(args, context)


def _mock_adapter(programs: Mapping[str, Any]) -> Adapter:
    """Return DSPy's adapter as a worker has it, without anything that imports DSPy."""
    adapter = Adapter(
        dspy_adapter.name,
        new_state=dspy_adapter.new_state,
        counted=dspy_adapter.counted,
        available=lambda name: name == "dspy",
        load_programs=lambda names: {name: registered(name, signature) for name, signature in programs.items()},
        describe=dspy_adapter.describe,
    )
    adapter.commands.update(dspy_adapter.commands)
    return adapter


def registered(name: str, signature: Any) -> RegisteredProgram:
    """Return a program of the operator, without its module. Raises InvalidArgs."""
    definition = Definition(EncodedValue(msgspec.json.encode(signature), "json"), "module")
    program = RegisteredProgram(name, definition, name)
    program.parse_signature(f"programs.{name}")
    return program


def _running(handler: Callable[[Script, Any, Context], dict[str, Any]]) -> Any:
    """Return the handler of a command that runs a program, with the test's result in its place."""

    def handle(script: Script, args: Any, context: Context) -> Any:
        name = context.command.name
        if script.has_result(name):
            script.raise_error(name)
            return script.result(name, _sent(context))
        return handler(script, args, context)

    return handle


def _execute(script: Script, args: ExecuteArgs, context: Context) -> dict[str, Any]:
    return execute(args, context, partial(run, script))


def _execute_batch(script: Script, args: BatchArgs, context: Context) -> dict[str, Any]:
    script.raise_error(context.command.name)
    # One row after the other, so that the values that a test has set are in order.
    return batch.execute(msgspec.structs.replace(args, threads=1), context, partial(run, script))


def _evaluate(script: Script, args: EvaluateArgs, context: Context) -> dict[str, Any]:
    script.raise_error(context.command.name)
    return scoring.evaluate(script, args, context)


def _optimize(script: Script, args: OptimizeArgs, context: Context) -> dict[str, Any]:
    script.raise_error(context.command.name)
    return improve(args, context, partial(scoring.optimized, script), documents.document_of)


def _configure(script: Script, args: ConfigureArgs, context: Context) -> dict[str, Any]:
    script.raise_error(context.command.name)
    return configure(args, context, _check_destination)


def _check_destination(model: Model, shared: dict[str, Any]) -> None:
    check_destination(model.settings, shared["api_bases"])


def _configure_embedder(script: Script, args: ConfigureEmbedderArgs, context: Context) -> dict[str, Any]:
    script.raise_error(context.command.name)
    configured = configure_embedder(args, context)
    if configured["model"].partition("/")[0] not in ("offline", "host"):  # a mock calls no provider
        configure_embedder(ConfigureEmbedderArgs("offline", args.name), context)
    return configured


def _hello(script: Script, args: HelloArgs, context: Context) -> dict[str, Any]:
    # Without the process id: a host may kill that process.
    return {key: value for key, value in hello(args, context).items() if key != "pid"}


def _set_log_level(script: Script, args: LogLevelArgs, context: Context) -> dict[str, Any]:
    # The levels of the test's own process stay as they are.
    return {"status": "set", "level": args.level, "logger": args.logger}


def _own_command(args: dict[str, Any], context: Context) -> Any:
    """Return what the test has set."""


# Handlers without DSPy, in place of those that need it.
_WITHOUT_DSPY: dict[str, Any] = {
    "get_program": documents.get,
    "export_program": documents.export,
    "import_program": documents.import_,
    "save_program": documents.save,
    "load_program": documents.load,
}
# The same for handlers that also need what a test has set.
_REPLACED: dict[str, Any] = {
    "execute_program": _running(_execute),
    "execute_gemini_program": _running(_execute),
    "execute_batch": _running(_execute_batch),
    "evaluate": _running(_evaluate),
    "optimize": _running(_optimize),
    "configure_embedder": _configure_embedder,
    "configure_lm": _configure,
    "hello": _hello,
    "set_log_level": _set_log_level,
}


def _sent(context: Context) -> Any:
    """Return the args of a request as the host has sent them."""
    return _any_args(context.format, context.request.args, context.buffers)


def _request_of(frame: Frame) -> Recorded | None:
    """Return the request in a frame, None if there is none that can be read."""
    buffers = None
    try:
        if is_multipart(frame):
            frame, buffers = envelope_of(frame), buffers_of(frame)
        format = format_of(frame)
        if format is None:
            return None
        message = format.decode_envelope(frame)
    except Exception:  # the worker's own code answers what cannot be read
        return None
    if not isinstance(message.command, str) or message.id is msgspec.UNSET:
        return None
    try:
        args = _any_args(format, message.args, buffers)
    except Exception:
        args = None
    session_id = message.session_id
    if session_id is None and isinstance(args, dict):
        session_id = args.get("session_id")
    return Recorded(message.command, args, session_id)
