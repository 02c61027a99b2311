"""Checks of the definitions of programs, as far as they depend on the program type. DSPy is not needed."""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from bridge import errors
from bridge.adapters.dspy.modules import IN_SANDBOX, MODULES, module_type, tools_of
from bridge.adapters.dspy.modules.options import Options
from bridge.adapters.dspy.sandbox.lowering import check_source

if TYPE_CHECKING:
    from bridge.adapters.dspy.signatures import Signature
    from bridge.adapters.dspy.state import Definition

# Types of DSPy that are not built, and what to use instead.
_REMOVED = {
    name: f"{name} goes away in DSPy 3.5 and is not available: use rlm, which also writes and runs code"
    for name in ("program_of_thought", "code_act")
}


def runs_code(definition: Definition) -> str | None:
    """Return the type of a program, or of a stage of it, that runs code which a model has written; None: none does."""
    kinds = [definition.program_type, *(stage["program_type"] for _, stage in stages_in(definition.options))]
    return next((kind for kind in kinds if kind in MODULES and MODULES[kind].runs_code), None)


def stages_in(options: dict[str, Any], path: str = "args") -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the stages of a program with these options and their paths, also those of stages that are pipelines."""
    for number, stage in enumerate(options.get("stages", ())):
        at = f"{path}.stages[{number}]"
        yield at, stage
        yield from stages_in(stage.get("options", {}), at)


def check(definition: Definition, signature: Signature, path: str = "args") -> None:
    """Raise InvalidArgs if the type of a program does not exist, or its options are wrong or do not fit the signature.

    path: of the definition in the args.
    """
    if definition.program_type not in MODULES:
        raise unknown_type(definition.program_type, f"{path}.program_type")
    given = definition.options
    if definition.max_iters is not None:
        given = {**given, "max_iters": definition.max_iters}
    try:
        msgspec.convert(given, Options)
    except msgspec.ValidationError as error:
        reason, _, where = str(error).partition(" - at `$")
        at = path + where.rstrip("`")
        raise errors.InvalidArgs(f"{at}: {reason}", path=at) from None
    check_options(given, definition, path)
    options, outer = definition.options, MODULES[definition.program_type]
    if options.get("base", outer.bases[0]) not in outer.bases:
        kinds = " or ".join(outer.bases)
        raise errors.InvalidArgs(
            f"{path}.base: {definition.program_type} runs programs of type {kinds}", path=f"{path}.base"
        )
    has_tools = definition.tools or options.get("indexes") or options.get("allow_no_tools")
    if module_type(definition).needs_tools and not has_tools:
        raise errors.InvalidArgs(
            f"{path}.tools: {definition.program_type} needs tools, and the session has none: send register_tools"
            " first, with the same session_id, name indexes to search, or allow_no_tools if the program needs none",
            path=f"{path}.tools",
        )
    if outer.runs_code:
        for tool in tools_of(definition):
            if not tool.name.isidentifier() or keyword.iskeyword(tool.name) or tool.name in IN_SANDBOX:
                reason = f"code calls tools as functions, and {tool.name[:100]!r} cannot be the name of one"
                raise errors.InvalidArgs(f"{path}.tools: {reason}", path=f"{path}.tools")
    fields = [field.label for field in (*signature.inputs, *signature.outputs)]
    for name in fields:
        if name in outer.own_fields or (outer.runs_code and name in {tool.name for tool in definition.tools}):
            reason = f"programs of type {definition.program_type} have a {name!r} of their own: use another name"
            raise errors.InvalidArgs(f"{path}.signature: {reason}", path=f"{path}.signature")
    if "source" in options:
        try:
            check_source(options["source"])
        except ValueError as error:
            raise errors.InvalidArgs(f"{path}.source: {error}", path=f"{path}.source") from None
    if outer.check is not None:
        outer.check(signature, definition, path)
    names = [field.name for field in signature.outputs]
    if options.get("field", names[-1]) not in names:
        reason = f"the signature has no output {options['field']!r}; its outputs: {', '.join(names)}"
        raise errors.InvalidArgs(f"{path}.field: {reason}", path=f"{path}.field")


def check_options(given: Iterable[str], definition: Definition, path: str = "args") -> None:
    """Raise InvalidArgs for an option in `given` that programs of this type do not take."""
    takes = module_type(definition).takes
    for name in given:
        if name not in takes:
            takers = [kind for kind, row in MODULES.items() if name in row.takes]
            reason = f"only for programs of type {' or '.join(takers)}" if takers else "unknown"
            raise errors.InvalidArgs(f"{path}.{name}: {reason}", path=f"{path}.{name}")


def unknown_type(name: str, path: str) -> errors.InvalidArgs:
    """Return the error for a program type that does not exist. path: of it in the args."""
    reason = _REMOVED.get(name, f"unknown program type {name[:100]!r}; known: {', '.join(MODULES)}")
    return errors.InvalidArgs(f"{path}: {reason}", path=path, expected=" | ".join(MODULES))
