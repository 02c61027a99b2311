"""DSPy programs as commands. Nothing here imports DSPy before the first one needs it."""

from __future__ import annotations

import importlib.util
import os
import uuid
from typing import TYPE_CHECKING, Any

import msgspec

from bridge import errors
from bridge.adapter import Adapter
from bridge.adapters.dspy.args import (
    ConfigureArgs,
    CreateArgs,
    CreateGeminiArgs,
    ExecuteArgs,
    ListProgramsArgs,
    ProgramArgs,
    RegisterToolsArgs,
)
from bridge.adapters.dspy.providers import GEMINI, GEMINI_KEYS, full_model
from bridge.adapters.dspy.state import Definition, Program, State
from bridge.adapters.dspy.tools import Tool, checked
from bridge.records import EncodedValue

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.adapters.dspy.models import Model


def _warm_up() -> None:
    from bridge.adapters.dspy import run  # noqa: F401  # importing it is the point


def _available(name: str) -> bool:
    """Whether DSPy is installed ("dspy"), or the environment has a key for Gemini ("gemini")."""
    if name == "gemini":
        return any(os.environ.get(key, "").strip() for key in GEMINI_KEYS)
    return importlib.util.find_spec("dspy") is not None


adapter = Adapter(
    "dspy",
    new_state=State,
    counted="program",
    available=_available,
    warm_up=_warm_up,
)


QUESTION_ANSWER = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]}


@adapter.command("configure_lm", ConfigureArgs, lane="everyone", idempotent=True)
def configure_lm(args: ConfigureArgs, context: Context) -> dict[str, Any]:
    """Sets the session's language model; without a session, that of all sessions without one."""
    from bridge.adapters.dspy.models import Model

    settings = args.settings()
    allowed = context.shared.get("api_bases", ())
    model = Model(settings, args.cache, session_id=context.session_id, allowed=allowed)
    if context.session_id is None:
        context.shared["model"] = model
    else:
        context.session.state.set_model(model)
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
    if not args.signature:
        args.signature = msgspec.Raw(context.format.encode(QUESTION_ANSWER))
    if args.model is not None:
        full_model(args.model, default=GEMINI)  # the check
    created = _create(args, context, model=args.model)
    model: Model | None = context.session.state.model(context.shared)
    name = args.model or (model.settings.name if model else None)
    return {**created, "type": "gemini", "model_name": name}


@adapter.command("register_tools", RegisterToolsArgs, lane="session", idempotent=True)
def register_tools(args: RegisterToolsArgs, context: Context) -> dict[str, Any]:
    """Declares the host's tools for the session's programs; they are called as `call_tool`."""
    state: State = context.session.state
    before, given = state.tools, checked(args.tools)
    state.set_tools(given if args.replace else before | given)
    return {
        "status": "registered",
        "session_id": context.session.id,
        "tools": list(state.tools),
        "added": [name for name in given if name not in before],
        "replaced": [name for name in given if name in before],
        "removed": [name for name in before if name not in state.tools],
    }


@adapter.command("execute_program", ExecuteArgs, lane="session")
def execute_program(args: ExecuteArgs, context: Context) -> dict[str, Any]:
    """Runs a program on inputs; what it needs of the session is fixed when its turn comes."""
    from bridge.adapters.dspy import run

    program = _find_or_rebuild(args, context)
    model = context.session.state.model(context.shared)
    context.session.commit()
    context.release()
    return run.execute(program, model, args.inputs, args.options, context)


adapter.command("execute_gemini_program", ExecuteArgs, lane="session")(execute_program)


@adapter.command("list_programs", ListProgramsArgs, idempotent=True)
def list_programs(args: ListProgramsArgs, context: Context) -> dict[str, Any]:
    """Lists the session's programs, and the ids of those it inherits from the default session."""
    state: State = context.session.state
    inherited: State | None = context.session.inherited
    ids = state.program_ids
    programs = (state.get(program_id) for program_id in ids[: args.limit])
    listed = [{"id": p.id, **p.info(context.format)} for p in programs if p is not None]
    result: dict[str, Any] = {"programs": listed, "total_count": len(ids)}
    if inherited is not None:
        own = set(ids)
        others = [name for name in inherited.program_ids if name not in own]
        result["inherited"] = others[: args.limit]
    return result


@adapter.command("get_program_info", ProgramArgs, idempotent=True)
def get_program_info(args: ProgramArgs, context: Context) -> dict[str, Any]:
    """One program: its signature and how often it ran."""
    program = _find(args.program_id, context)
    info = program.info(context.format)
    if context.session.state.get(program.id) is None:
        info["inherited"] = True
    return info


@adapter.command("delete_program", ProgramArgs, lane="session")
def delete_program(args: ProgramArgs, context: Context) -> dict[str, Any]:
    """Drops a program; runs of it that are under way go on."""
    program = _find(args.program_id, context)
    state: State = context.session.state
    if state.get(program.id) is None:
        raise errors.ProgramNotFound(
            f"Program not found: {program.id} (in session {context.session.id!r}; the default"
            " session has one, which is deleted without a session_id)",
            program_id=program.id,
            session_id=context.session.id,
            inherited=True,
        )
    state.remove(program)
    return {"program_id": program.id, "status": "deleted"}


def _find(program_id: str | None, context: Context) -> Program:
    """The session's program of that id, or else the default session's.

    Raises InvalidArgs (None), ProgramNotFound.
    """
    if program_id is None:
        raise errors.InvalidArgs("Program ID is required", path="args.program_id")
    program = _visible(program_id, context)
    if program is None:
        # Nothing is said of other sessions: they may be other users'.
        is_default = context.session.inherited is None
        where = "" if is_default else f" (in session {context.session.id!r} or the default session)"
        raise errors.ProgramNotFound(
            f"Program not found: {program_id}{where}",
            program_id=program_id,
            session_id=context.session.id,
        )
    return program


def _visible(program_id: str, context: Context) -> Program | None:
    state: State = context.session.state
    program = state.get(program_id)
    if program is None:
        inherited: State | None = context.session.inherited
        program = None if inherited is None else inherited.get(program_id)
    return program


def _create(args: CreateArgs, context: Context, model: str | None) -> dict[str, Any]:
    state: State = context.session.state
    program_id = args.id if args.id is not None else str(uuid.uuid4())
    existing = state.get(program_id)
    if existing is not None and args.if_exists == "error":
        raise errors.ProgramExists(f"Program with ID '{program_id}' already exists", program_id=program_id)
    if args.program_type != "react":
        for name in ("tools", "max_iters"):
            if getattr(args, name) is not None:
                raise errors.InvalidArgs(f"args.{name}: only for programs of type react", path=f"args.{name}")
    definition = Definition(
        EncodedValue(bytes(args.signature), context.format.name),
        args.program_type,
        model=model,
        tools=_chosen_tools(args, context),
        max_iters=args.max_iters,
    )
    if existing is not None and args.if_exists == "keep":
        Program(program_id, definition).check()
        return {
            "program_id": program_id,
            "status": "exists",
            "signature": existing.definition.signature.in_format(context.format),
            "program_type": existing.definition.program_type,
            "same_definition": existing.has_definition(definition),
        }
    _add(state, program_id, definition)
    return {
        "program_id": program_id,
        "status": "created" if existing is None else "replaced",
        "signature": args.signature,
        "program_type": args.program_type,
    }


def _add(
    state: State,
    program_id: str,
    definition: Definition,
    path: str = "args",
    name: str = "signature",
) -> Program:
    """Add a program; path and name: where its definition and its signature came. Raises InvalidArgs
    for a wrong definition, QuotaExceeded."""
    program = Program(program_id, definition)
    state.check(program)  # first: a parsed signature takes much more memory than its definition
    program.check(path, name)
    state.add(program)
    return program


def _chosen_tools(args: CreateArgs, context: Context) -> tuple[Tool, ...]:
    tools = _visible_tools(context)
    names = tools if args.tools is None else args.tools
    unknown = [name for name in names if name not in tools]
    if unknown:
        raise errors.InvalidArgs(
            f"args.tools: no tool {', '.join(unknown)} is registered in this session or the default session",
            path="args.tools",
        )
    return tuple(tools[name] for name in names)


def _visible_tools(context: Context) -> dict[str, Tool]:
    """The session's tools, and those of the default session that have other names."""
    inherited: State | None = context.session.inherited
    return {**({} if inherited is None else inherited.tools), **context.session.state.tools}


def _find_or_rebuild(args: ExecuteArgs, context: Context) -> Program:
    """The session's program, or one from `program_data`, which hosts with many workers send."""
    data = args.program_data
    name, signature = ("", msgspec.Raw()) if data is None else data.definition(context.format)
    if data is None or args.program_id is None or not name:
        return _find(args.program_id, context)
    known = _visible(args.program_id, context)
    path = f"args.program_data.{name}"
    if (
        known is not None
        and data.program_type in (None, known.definition.program_type)
        and known.is_defined_by(signature, context.format, path)
    ):
        return known
    definition = Definition(
        EncodedValue(bytes(signature), context.format.name),
        data.program_type or (known.definition.program_type if known else "predict"),
        tools=tuple(_visible_tools(context).values()),
    )
    return _add(context.session.state, args.program_id, definition, "args.program_data", name)


__all__ = ["adapter"]
