"""The programs that a session sees: finding, checking and adding them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge import errors
from bridge.adapters.dspy.state import Definition, Program, State

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.adapters.dspy.modules import ModuleType


def find_program(program_id: str | None, context: Context) -> Program:
    """Return the session's program `program_id`, or else the default session's, or else the operator's.

    Raises ProgramNotFound, and InvalidArgs for None.
    """
    if program_id is None:
        raise errors.InvalidArgs("Program ID is required", path="args.program_id")
    program = visible_program(program_id, context)
    if program is None:
        # Other sessions may be other users', so they are not mentioned.
        is_default = context.session.inherited is None
        where = "" if is_default else f" (in session {context.session.id!r} or the default session)"
        raise errors.ProgramNotFound(
            f"Program not found: {program_id}{where}",
            program_id=program_id,
            session_id=context.session.id,
        )
    return program


def visible_program(program_id: str, context: Context) -> Program | None:
    """Return the session's program `program_id`, or else the default session's, or else the operator's, or None."""
    state: State = context.session.state
    program = state.get(program_id)
    if program is None:
        inherited: State | None = context.session.inherited
        program = None if inherited is None else inherited.get(program_id)
    registered: dict[str, Program] = context.shared["programs"]
    return registered.get(program_id) if program is None else program


def check_id(program_id: str, context: Context) -> None:
    """Raise ProgramExists if the operator has registered a program of that id: no session may create another one."""
    if program_id in context.shared["programs"]:
        raise errors.ProgramExists(
            f"Program with ID '{program_id}' already exists: the operator of the worker has registered it (--program)",
            program_id=program_id,
            registered=True,
        )


def add_program(
    state: State, program_id: str, definition: Definition, path: str = "args", name: str = "signature"
) -> Program:
    """Add a program. Raises QuotaExceeded, and InvalidArgs for a wrong definition.

    path: where the definition is in the args; name: the signature's name there.
    """
    program = Program(program_id, definition)
    state.check(program)  # first, because a parsed signature takes much more memory than its definition
    check_program(program, path, name)
    state.add(program)
    return program


def check_program(program: Program, path: str = "args", name: str = "signature") -> None:
    """Raise InvalidArgs if the definition of `program` is wrong. path, name: as for `add_program`."""
    from bridge.adapters.dspy.modules.checks import check

    type_of(program.definition, path)
    signature = program.parse_signature(f"{path}.{name}")
    check(program.definition, signature, path)
    if program.definition.program_type == "pipeline":
        from bridge.adapters.dspy.pipelines.plan import plan

        plan(program.definition, signature, path)


def check_code(definition: Definition, context: Context) -> None:
    """Raise NotAllowed if a program would run code that a model has written and the operator has not allowed that."""
    from bridge.adapters.dspy.modules.checks import runs_code
    from bridge.adapters.dspy.sandbox.allowed import check_allowed

    kind = runs_code(definition)
    if kind is not None:
        check_allowed(f"a program of the type {kind}", context)


def type_of(definition: Definition, path: str) -> ModuleType:
    """Return the type of a program. Raises InvalidArgs if it does not exist. path: of the definition in the args."""
    from bridge.adapters.dspy.modules import MODULES, module_type
    from bridge.adapters.dspy.modules.checks import unknown_type

    if definition.program_type not in MODULES:
        raise unknown_type(definition.program_type, f"{path}.program_type")
    return module_type(definition)
