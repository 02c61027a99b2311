"""The commands that list, describe and delete programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from bridge import errors
from bridge.adapters.dspy.commands import adapter
from bridge.adapters.dspy.programs import find_program
from bridge.adapters.dspy.state import State

if TYPE_CHECKING:
    from bridge._dispatch import Context

MOST_LISTED = 1_000_000


class ListProgramsArgs(msgspec.Struct):
    """The args of list_programs. limit: how many are listed, the oldest first."""

    limit: Annotated[int, msgspec.Meta(ge=0, le=MOST_LISTED)] = MOST_LISTED
    session_id: str | None = None


@adapter.command("list_programs", ListProgramsArgs, idempotent=True)
def list_programs(args: ListProgramsArgs, context: Context) -> dict[str, Any]:
    """List the session's programs, and the ids of those it inherits from the default session or the operator."""
    state: State = context.session.state
    inherited: State | None = context.session.inherited
    ids = state.program_ids
    programs = (state.get(program_id) for program_id in ids[: args.limit])
    listed = [{"id": program.id, **program.info(context.format)} for program in programs if program is not None]
    result: dict[str, Any] = {"programs": listed, "total_count": len(ids)}
    if inherited is not None:
        own = set(ids)
        others = [name for name in inherited.program_ids if name not in own]
        result["inherited"] = others[: args.limit]
    if context.shared["programs"]:
        result["registered"] = list(context.shared["programs"])[: args.limit]
    return result


class ProgramArgs(msgspec.Struct):
    """The args of a command on one program.

    program_id: required; optional here because hosts look for the text of the error.
    """

    program_id: str | None = None
    session_id: str | None = None


@adapter.command("get_program_info", ProgramArgs, idempotent=True)
def get_program_info(args: ProgramArgs, context: Context) -> dict[str, Any]:
    """Return a program's signature and options, and how often it ran."""
    program = find_program(args.program_id, context)
    info = program.info(context.format)
    if program.definition.options:
        info["options"] = program.definition.options
    if not program.is_registered and context.session.state.get(program.id) is None:
        info["inherited"] = True
    return info


class GetArgs(ProgramArgs):
    """The args of get_program. include: what to return besides the entry of get_program_info."""

    include: list[Literal["demos", "instructions"]] = []


@adapter.command("get_program", GetArgs, idempotent=True)
def get_program(args: GetArgs, context: Context) -> dict[str, Any]:
    """Return a program's signature, and what it and each of its predictors have learned."""
    info = get_program_info(args, context)
    program = find_program(args.program_id, context)
    if args.include:
        from bridge.adapters.dspy.documents import description_of

        info |= description_of(program, args.include)
    return info


@adapter.command("delete_program", ProgramArgs, lane="session")
def delete_program(args: ProgramArgs, context: Context) -> dict[str, Any]:
    """Delete a program. Runs that have started continue."""
    program = find_program(args.program_id, context)
    if program.is_registered:
        raise errors.NotAllowed(
            f"{program.id} was registered by the operator of the worker (--program) and cannot be deleted",
            program_id=program.id,
            registered=True,
        )
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
