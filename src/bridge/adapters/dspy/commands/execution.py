"""The command that runs a program."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from bridge.adapter import Ignored
from bridge.adapters.dspy.chosen_model import ModelChoice, extractors_of, models_for, names_of
from bridge.adapters.dspy.commands import adapter
from bridge.adapters.dspy.format_choice import FormatArg, read_choice
from bridge.adapters.dspy.generation import Generation
from bridge.adapters.dspy.include import NOTHING, Include
from bridge.adapters.dspy.programs import add_program, check_code, check_id, find_program, visible_program
from bridge.adapters.dspy.setup import Setup
from bridge.adapters.dspy.state import Definition, Program, State, visible_tools
from bridge.records import EncodedValue
from bridge.wire.codec import Format

if TYPE_CHECKING:
    from bridge._dispatch import Context


Run = Callable[[Setup, dict[str, Any], "Context", str], dict[str, Any]]


class ProgramData(msgspec.Struct):
    """A program as hosts that store programs themselves send it with each execute_program. Other keys are ignored."""

    signature: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    signature_def: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    program_type: str | None = None

    def definition(self, format: Format) -> tuple[str, msgspec.Raw]:
        """Return the name and the value, encoded in `format`, of the signature; both are empty if there is none."""
        for name in ("signature", "signature_def"):
            raw: msgspec.Raw = getattr(self, name)
            if not format.is_empty(raw):
                return name, raw
        return "", msgspec.Raw()


class RunOptions(Generation, frozen=True, forbid_unknown_fields=True):
    """Settings of the language model for one run."""

    # Sent by hosts that pass on the options of their pool.
    pool_name: Ignored = None
    session_id: Ignored = None
    timeout: Ignored = None
    pool_timeout: Ignored = None


class RunArgs(msgspec.Struct):
    """The args of every command that runs a program.

    model: the names of configured models to run it on (see chosen_model). options: settings of the model for these
    runs. adapter: the format of prompts and replies, in place of the program's and the model's.
    """

    program_id: str | None = None
    model: ModelChoice | None = None
    options: RunOptions | None = None
    adapter: FormatArg | None = None
    session_id: str | None = None

    def setup(self, program: Program, context: Context, include: Include = NOTHING) -> Setup:
        """Return what the runs of `program` need from the session, then let the session's later calls start."""
        format = read_choice(self.adapter, "args.adapter") or program.definition.adapter
        state: State = context.session.state
        config = self._config()
        models = models_for(program, names_of(self.model), state, context)
        if format is None and models:
            format = models[0].format
        extractors = extractors_of(format, state, context, "args.adapter.model")
        tools = tuple(visible_tools(context).values()) if program.is_registered else ()
        context.release()
        return Setup(program, models, tools, config, include, format, extractors)

    def _config(self) -> dict[str, Any]:
        if self.options is None:
            return {}
        self.options.check("args.options")
        return self.options.given()


class ExecuteArgs(RunArgs):
    """The args of execute_program.

    inputs: a value for each input of the signature. include: what the result has in addition.
    """

    inputs: dict[str, Any] = {}
    include: Include = NOTHING
    program_data: ProgramData | None = None


@adapter.command("execute_gemini_program", ExecuteArgs, lane="run")
@adapter.command("execute_program", ExecuteArgs, lane="run")
def execute_program(args: ExecuteArgs, context: Context) -> dict[str, Any]:
    """Run a program on inputs. Later changes of the session do not affect a run that has started."""
    from bridge.adapters.dspy import run

    return execute(args, context, run.execute)


def execute(args: ExecuteArgs, context: Context, run: Run) -> dict[str, Any]:
    """Run a program for `execute_program`. run: called as `run.execute` of this adapter is."""
    return run(args.setup(_find_or_add(args, context), context, args.include), args.inputs, context, "args.inputs")


def _find_or_add(args: ExecuteArgs, context: Context) -> Program:
    """Return the program, created from `program_data` if the session lacks it or has another definition of it."""
    data = args.program_data
    name, signature = ("", msgspec.Raw()) if data is None else data.definition(context.format)
    if data is None or args.program_id is None or not name:
        return find_program(args.program_id, context)
    known = visible_program(args.program_id, context)
    if known is None or known.is_registered:
        check_id(args.program_id, context)
    path = f"args.program_data.{name}"
    if (
        known is not None
        and data.program_type in (None, known.definition.program_type)
        and known.has_signature(signature, context.format, path)
    ):
        return known
    definition = Definition(
        EncodedValue(bytes(signature), context.format.name),
        data.program_type or (known.definition.program_type if known else "predict"),
        tools=tuple(visible_tools(context).values()),
    )
    check_code(definition, context)
    return add_program(context.session.state, args.program_id, definition, "args.program_data", name)
