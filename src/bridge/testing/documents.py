"""What programs of a mock have learned, and their documents, in the form that a worker reads and writes. No DSPy."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import msgspec

from bridge import errors
from bridge.adapters.dspy.commands.documents import ImportArgs, LoadArgs, SaveArgs
from bridge.adapters.dspy.commands.programs import GetArgs, ProgramArgs, get_program_info
from bridge.adapters.dspy.modules import module_type
from bridge.adapters.dspy.programs import add_program, check_id, check_program, find_program
from bridge.adapters.dspy.state import Definition, Learned, Program, State
from bridge.adapters.dspy.state_files import read, write
from bridge.adapters.dspy.tools import Tool
from bridge.records import EncodedValue

if TYPE_CHECKING:
    from bridge._dispatch import Context

VERSION = 1  # of the definition in a document


def get(args: GetArgs, context: Context) -> dict[str, Any]:
    """Return the result of `get_program`, whose predictors are the main one and those that have learned something."""
    info = get_program_info(args, context)
    program = find_program(args.program_id, context)
    if not args.include:
        return info
    fields = {} if program.is_registered else _names(program)
    predictors: dict[str, Any] = {}
    for name, learned in _learned(program).items():
        demos = [_sides(demo, fields) for demo in learned.demos]
        facts: dict[str, Any] = {"demos": demos, "instructions": learned.instructions}
        predictors[name] = {key: facts[key] for key in args.include}
    main = predictors.get(main_of(program), {})
    return {**info, **main, "predictors": predictors}


def export(args: ProgramArgs, context: Context) -> dict[str, Any]:
    """Return the result of `export_program`."""
    program = find_program(args.program_id, context)
    return {"program_id": program.id, "document": document_of(program)}


def save(args: SaveArgs, context: Context) -> dict[str, Any]:
    """Write a program to a file, and return the result of `save_program`."""
    program = find_program(args.program_id, context)
    data = msgspec.json.format(msgspec.json.encode(document_of(program)))
    size = write(context.worker.options.state_dir, args.path, data)
    return {"program_id": program.id, "status": "saved", "path": args.path, "bytes": size}


def import_(args: ImportArgs, context: Context) -> dict[str, Any]:
    """Create a program from a document, and return the result of `import_program`."""
    return _imported(args.document, args, context, "args.document")


def load(args: LoadArgs, context: Context) -> dict[str, Any]:
    """Create a program from a file, and return the result of `load_program`."""
    return _imported(read(context.worker.options.state_dir, args.path), args, context, "args.path")


def main_of(program: Program) -> str:
    """Return the name of the predictor that writes the outputs, or of the one that a mock has in place of several."""
    return "self" if program.is_registered else module_type(program.definition).main or "self"


def _learned(program: Program) -> dict[str, Learned]:
    """Return what each predictor has learned; its instructions are those of the signature if it has learned none."""
    known = {main_of(program): Learned(), **program.definition.learned}
    own = _instructions(program)
    return {name: Learned(each.instructions or own, each.demos) for name, each in known.items()}


def _instructions(program: Program) -> str:
    signature = program.signature
    inputs, outputs = (
        ", ".join(f"`{field.label}`" for field in fields) for fields in (signature.inputs, signature.outputs)
    )
    return signature.description or f"Given the fields {inputs}, produce the fields {outputs}."


def _names(program: Program) -> dict[str, tuple[str, str]]:
    """Return the side and the host's name of each field by its label."""
    sides = (("inputs", program.signature.inputs), ("outputs", program.signature.outputs))
    return {field.label: (side, field.name) for side, fields in sides for field in fields}


def _sides(demo: dict[str, Any], fields: dict[str, tuple[str, str]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {"inputs": {}, "outputs": {}}
    for label, value in demo.items():
        side, name = fields.get(label, ("outputs", label))
        found[side][name] = value
    return found


def document_of(program: Program) -> dict[str, Any]:
    """Return a program as a document. Raises NotAllowed for one of the operator."""
    if program.is_registered:
        raise errors.NotAllowed(
            f"{program.id} was registered by the operator of the worker (--program): its code cannot be a document",
            program_id=program.id,
            registered=True,
        )
    definition = program.definition
    signature = program.signature
    outputs = [(field.label, field.description) for field in signature.outputs]
    if module_type(definition).has_reasoning:
        outputs.insert(0, ("reasoning", ""))
    fields = [
        {"prefix": f"{label.replace('_', ' ').title()}:", "description": description or f"${{{label}}}"}
        for label, description in [*((field.label, field.description) for field in signature.inputs), *outputs]
    ]
    states: dict[str, Any] = {
        name: {
            "traces": [],
            "train": [],
            "demos": [*each.demos],
            "signature": {"instructions": each.instructions, "fields": fields},
            "lm": None,
        }
        for name, each in _learned(program).items()
    }
    state = states["self"] if [*states] == ["self"] else states
    own = {
        "version": VERSION,
        "program_type": definition.program_type,
        "signature": definition.signature.own_format.decode(definition.signature.data),
        "tools": [*definition.tools],
        "max_iters": definition.max_iters,
        "options": definition.options,
    }
    given = {key: value for key, value in own.items() if value not in (None, [], {})}
    document: dict[str, Any] = msgspec.to_builtins({**state, "metadata": {"dependency_versions": {}, "bridge": given}})
    return document


def _imported(document: Any, args: ImportArgs | LoadArgs, context: Context, path: str) -> dict[str, Any]:
    state: State = context.session.state
    program_id, if_exists = args.program_id, args.if_exists
    existing = None if program_id is None else state.get(program_id)
    definition = _definition(document, path)
    if definition is None:
        if existing is None:
            raise errors.InvalidArgs(
                f"{path}: a document of DSPy does not define a program: create the program first, in this session, and"
                " send its program_id",
                path="args.program_id",
            )
        definition, if_exists = existing.definition, "replace"
    elif existing is not None and if_exists == "error":
        raise errors.ProgramExists(f"Program with ID '{program_id}' already exists", program_id=program_id)
    definition = msgspec.structs.replace(definition, learned=_read(document, path))
    program = Program(str(uuid.uuid4()) if program_id is None else program_id, definition)
    if existing is None:
        check_id(program.id, context)
    check_program(program, path)
    status = "created" if existing is None else "exists" if if_exists == "keep" else "replaced"
    if status != "exists":
        add_program(state, program.id, definition, path)
    return {
        "program_id": program.id,
        "status": status,
        "program_type": definition.program_type,
        "predictors": [*definition.learned],
    }


def _definition(document: Any, path: str) -> Definition | None:
    """Return the definition in a document, None if DSPy wrote it. Raises InvalidArgs."""
    if not isinstance(document, dict) or not isinstance(document.get("metadata"), dict):
        raise errors.InvalidArgs(
            f"{path}: not a program: expected a map with metadata, as export_program returns or DSPy's save writes",
            path=path,
            expected="document",
        )
    own = document["metadata"].get("bridge")
    if own is None:
        return None
    signature = EncodedValue(msgspec.json.encode(own["signature"]), "json")
    tools = tuple(msgspec.convert(own.get("tools", []), list[Tool]))
    return Definition(
        signature, own["program_type"], tools=tools, max_iters=own.get("max_iters"), options=own.get("options", {})
    )


def _read(document: dict[str, Any], path: str) -> dict[str, Learned]:
    parts = {name: part for name, part in document.items() if name != "metadata"}
    parts = {"self": parts} if "signature" in parts else parts
    try:
        return {name: Learned(part["signature"]["instructions"], tuple(part["demos"])) for name, part in parts.items()}
    except (KeyError, TypeError):
        raise errors.InvalidArgs(f"{path}: not a program: a predictor has demos and a signature", path=path) from None
