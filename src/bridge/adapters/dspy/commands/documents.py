"""The commands that move programs in and out of a session as documents."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from bridge import errors
from bridge.adapters.dspy.commands import adapter
from bridge.adapters.dspy.commands.programs import ProgramArgs
from bridge.adapters.dspy.programs import add_program, check_code, check_id, check_program, find_program
from bridge.adapters.dspy.state import Program, State

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.adapters.dspy.documents import Loaded


@adapter.command("export_program", ProgramArgs, idempotent=True)
def export_program(args: ProgramArgs, context: Context) -> dict[str, Any]:
    """Return a program as one document, for a host that stores it."""
    from bridge.adapters.dspy.documents import document_of

    program = find_program(args.program_id, context)
    return {"program_id": program.id, "document": document_of(program)}


class ImportArgs(msgspec.Struct):
    """The args of import_program.

    document: as export_program returns it, or as DSPy's `module.save` writes it; the latter only has what a program has
    learned, so the program must exist. program_id: generated if missing. if_exists: as in create_program.
    """

    document: Any
    program_id: str | None = None
    if_exists: Literal["error", "keep", "replace"] = "error"
    session_id: str | None = None


@adapter.command("import_program", ImportArgs, lane="session")
def import_program(args: ImportArgs, context: Context) -> dict[str, Any]:
    """Create a program from a document, or set what an existing one has learned."""
    return _imported(args.document, args.program_id, args.if_exists, context, "args.document")


class SaveArgs(msgspec.Struct):
    """The args of save_program. path: of a .json file in the operator's folder; it is replaced if it exists."""

    path: str
    program_id: str | None = None
    session_id: str | None = None


@adapter.command("save_program", SaveArgs, idempotent=True)
def save_program(args: SaveArgs, context: Context) -> dict[str, Any]:
    """Write a program to a file in the folder that the operator allows (--state-dir)."""
    from bridge.adapters.dspy.documents import document_of
    from bridge.adapters.dspy.state_files import write

    program = find_program(args.program_id, context)
    size = write(
        context.worker.options.state_dir, args.path, msgspec.json.format(msgspec.json.encode(document_of(program)))
    )
    return {"program_id": program.id, "status": "saved", "path": args.path, "bytes": size}


class LoadArgs(msgspec.Struct):
    """The args of load_program: those of import_program, with the path of a file that save_program or DSPy wrote."""

    path: str
    program_id: str | None = None
    if_exists: Literal["error", "keep", "replace"] = "error"
    session_id: str | None = None


@adapter.command("load_program", LoadArgs, lane="session")
def load_program(args: LoadArgs, context: Context) -> dict[str, Any]:
    """Create a program from a file, or set what an existing one has learned."""
    from bridge.adapters.dspy.state_files import read

    document = read(context.worker.options.state_dir, args.path)
    return _imported(document, args.program_id, args.if_exists, context, "args.path")


def _imported(document: Any, program_id: str | None, if_exists: str, context: Context, path: str) -> dict[str, Any]:
    from bridge.adapters.dspy import documents

    state: State = context.session.state
    definition = documents.definition_of(document, path)
    existing = None if program_id is None else state.get(program_id)
    if definition is None:  # of a document of DSPy
        if existing is None:
            raise errors.InvalidArgs(
                f"{path}: a document of DSPy does not define a program: create the program first, in this session, and"
                " send its program_id",
                path="args.program_id",
            )
        definition, if_exists = msgspec.structs.replace(existing.definition, learned={}), "replace"
    elif existing is not None and if_exists == "error":
        raise errors.ProgramExists(f"Program with ID '{program_id}' already exists", program_id=program_id)
    program = Program(str(uuid.uuid4()) if program_id is None else program_id, definition)
    if existing is None:
        check_id(program.id, context)
    check_program(program, path)
    check_code(definition, context)
    loaded = documents.read(document, program, path)
    status = "created" if existing is None else "exists" if if_exists == "keep" else "replaced"
    if status != "exists":
        add_program(state, program.id, msgspec.structs.replace(definition, learned=loaded.learned), path)
    return {
        "program_id": program.id,
        "status": status,
        "program_type": definition.program_type,
        "predictors": [*loaded.learned],
        **_notes(loaded),
    }


def _notes(loaded: Loaded) -> dict[str, Any]:
    """Return what the host should know about a document that was loaded."""
    return {name: getattr(loaded, name) for name in ("ignored", "warnings") if getattr(loaded, name)}
