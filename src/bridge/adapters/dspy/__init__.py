"""DSPy programs as commands. Nothing here imports DSPy before the first one needs it."""

from __future__ import annotations

import importlib.util
import uuid
from typing import TYPE_CHECKING, Any

from bridge import errors
from bridge.adapter import Adapter
from bridge.adapters.dspy.messages import (
    ConfigureArgs,
    CreateArgs,
    CreateGeminiArgs,
    ExecuteArgs,
    ProgramArgs,
)
from bridge.adapters.dspy.state import Program, State

if TYPE_CHECKING:
    from bridge._dispatch import Context


def _warm_up() -> None:
    from bridge.adapters.dspy import runtime  # noqa: F401  # importing it is the point


adapter = Adapter(
    "dspy",
    new_state=State,
    available=lambda: importlib.util.find_spec("dspy") is not None,
    warm_up=_warm_up,
)


@adapter.command("configure_lm", ConfigureArgs, lane="session", idempotent=True)
def configure_lm(args: ConfigureArgs, context: Context) -> dict[str, Any]:
    """Sets the session's language model; without a session, that of all sessions without one."""
    from bridge.adapters.dspy import runtime

    settings = args.settings()
    runtime.check(settings)
    if context.session_id is None:
        context.session.shared["lm"] = settings
    else:
        context.session.state.lm = settings
    return {
        "status": "configured",
        "model": settings.name,
        "provider": settings.provider,
        "temperature": settings.temperature,
    }


@adapter.command("create_program", CreateArgs, lane="session")
def create_program(args: CreateArgs, context: Context) -> dict[str, Any]:
    """Makes a program from a typed signature."""
    return _create(args, context, model=None)


@adapter.command("create_gemini_program", CreateGeminiArgs, lane="session")
def create_gemini_program(args: CreateGeminiArgs, context: Context) -> dict[str, Any]:
    """As create_program, for a model of its own."""
    return _create(args, context, model=args.model)


@adapter.command("execute_program", ExecuteArgs, lane="session")
def execute_program(args: ExecuteArgs, context: Context) -> dict[str, Any]:
    """Runs a program on inputs; what it needs of the session is fixed when its turn comes."""
    from bridge.adapters.dspy import runtime

    program = _find_or_rebuild(args, context)
    settings = context.session.state.lm or context.session.shared.get("lm")
    context.release()
    return runtime.execute(program, settings, args.inputs, args.options)


adapter.command("execute_gemini_program", ExecuteArgs, lane="session")(execute_program)


@adapter.command("list_programs", idempotent=True)
def list_programs(args: None, context: Context) -> dict[str, Any]:
    """The session's programs."""
    programs: list[Program] = list(context.session.state.programs.values())
    listed = [{"id": p.id, **p.info(context.format)} for p in programs]
    return {"programs": listed, "total_count": len(listed)}


@adapter.command("get_program_info", ProgramArgs, idempotent=True)
def get_program_info(args: ProgramArgs, context: Context) -> dict[str, Any]:
    """One program: its signature and how often it ran."""
    program: Program = context.session.state.find(args.program_id)
    return program.info(context.format)


@adapter.command("delete_program", ProgramArgs, lane="session")
def delete_program(args: ProgramArgs, context: Context) -> dict[str, Any]:
    """Drops a program; runs of it that are under way go on."""
    program = context.session.state.find(args.program_id)
    del context.session.state.programs[program.id]
    return {"program_id": program.id, "status": "deleted"}


def _create(args: CreateArgs, context: Context, model: str | None) -> dict[str, Any]:
    state: State = context.session.state
    program_id = args.id if args.id is not None else str(uuid.uuid4())
    if program_id in state.programs:
        raise errors.ProgramExists(
            f"Program with ID '{program_id}' already exists", program_id=program_id
        )
    program = Program.build(program_id, args.signature, context.format, args.program_type, model)
    state.programs[program_id] = program
    return {
        "program_id": program_id,
        "status": "created",
        "signature": args.signature,
        "program_type": args.program_type,
    }


def _find_or_rebuild(args: ExecuteArgs, context: Context) -> Program:
    """The session's program, or one from `program_data`, which hosts with many workers send."""
    state: State = context.session.state
    data = args.program_data
    if data is None or args.program_id is None or not data.definition():
        return state.find(args.program_id)
    program = state.programs.get(args.program_id)
    if program is None or program.definition != bytes(data.definition()):
        program = Program.build(
            args.program_id, data.definition(), context.format, data.program_type, None
        )
        state.programs[args.program_id] = program
    return program


__all__ = ["adapter"]
