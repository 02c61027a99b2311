"""The commands that create, list, describe and delete programs."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from bridge import errors
from bridge.adapter import Ignored
from bridge.adapters.dspy.chosen_model import ModelChoice, names_of
from bridge.adapters.dspy.commands import adapter
from bridge.adapters.dspy.format_choice import FormatArg, read_choice
from bridge.adapters.dspy.modules.options import Options
from bridge.adapters.dspy.providers import GEMINI, full_model
from bridge.adapters.dspy.state import Definition, Learned, Program, State, visible_tools
from bridge.records import EncodedValue

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.adapters.dspy.modules import ModuleType
    from bridge.adapters.dspy.tools import Tool

MOST_LISTED = 1_000_000
_COMPARED = ("program_type", "model", "models", "options", "learned", "adapter")  # of two definitions
QUESTION_ANSWER = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]}


class CreateArgs(Options, kw_only=True):
    """The args of create_program, and those of its type: see `Options`.

    id: generated if missing. signature: see signatures.py. program_type: a key of modules.MODULES. demos: examples for
    the prompt, each with all outputs. model: the names of the models that it runs on (see chosen_model). adapter: the
    format of prompts and replies. if_exists: what to do if the session has a program with this id: fail ("error"), keep
    it unchanged ("keep"), or replace it ("replace").
    """

    signature: msgspec.Raw
    id: str | None = None
    program_type: str = "predict"
    demos: list[Any] = msgspec.field(default_factory=list)
    adapter: FormatArg | None = None
    model: ModelChoice | None = None
    if_exists: Literal["error", "keep", "replace"] = "error"
    session_id: str | None = None
    modules: Ignored = None  # sent by hosts that describe programs in more detail
    pool_name: Ignored = None


@adapter.command("create_program", CreateArgs, lane="session")
def create_program(args: CreateArgs, context: Context) -> dict[str, Any]:
    """Create a program from a typed signature."""
    return _create(args, context, models=names_of(args.model))


class CreateGeminiArgs(CreateArgs, kw_only=True):
    """The args of create_gemini_program.

    signature: question -> answer if missing. model: as in configure_lm; the program runs on it whatever the session's
    model is.
    """

    signature: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    model: str | None = None  # of a provider, not of a configured model


@adapter.command("create_gemini_program", CreateGeminiArgs, lane="session")
def create_gemini_program(args: CreateGeminiArgs, context: Context) -> dict[str, Any]:
    """Create a program that runs on its own model."""
    if not args.signature:
        args.signature = msgspec.Raw(context.format.encode(QUESTION_ANSWER))
    if args.model is not None:
        full_model(args.model, default=GEMINI)  # raises InvalidArgs
    created = _create(args, context, model=args.model)
    state: State = context.session.state
    model = state.model(context.shared)
    name = args.model or (model.settings.name if model else None)
    return {**created, "type": "gemini", "model_name": name}


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

    _type_of(program.definition, path)
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


def _type_of(definition: Definition, path: str) -> ModuleType:
    """Return the type of a program. Raises InvalidArgs if it does not exist. path: of the definition in the args."""
    from bridge.adapters.dspy.modules import MODULES, module_type
    from bridge.adapters.dspy.modules.checks import unknown_type

    if definition.program_type not in MODULES:
        raise unknown_type(definition.program_type, f"{path}.program_type")
    return module_type(definition)


def _has_definition(program: Program, other: Definition) -> bool:
    """Return whether a program created from `other` would be the same. Raises InvalidArgs if `other` is wrong."""
    from bridge.adapters.dspy.modules import DEFAULT_ITERATIONS, module_type

    own = program.definition
    if any(getattr(own, name) != getattr(other, name) for name in _COMPARED):
        return False
    if module_type(own).takes_tools:
        iterations = [each.max_iters or DEFAULT_ITERATIONS for each in (own, other)]
        tools = [{tool.name: tool for tool in each.tools} for each in (own, other)]
        if iterations[0] != iterations[1] or tools[0] != tools[1]:
            return False
    return program.has_signature(msgspec.Raw(other.signature.data), other.signature.own_format)


def _create(
    args: CreateArgs, context: Context, *, model: str | None = None, models: tuple[str, ...] = ()
) -> dict[str, Any]:
    from bridge.adapters.dspy.modules.checks import check_options

    state: State = context.session.state
    program_id = args.id if args.id is not None else str(uuid.uuid4())
    existing = state.get(program_id)
    if existing is None:
        check_id(program_id, context)
    if existing is not None and args.if_exists == "error":
        raise errors.ProgramExists(f"Program with ID '{program_id}' already exists", program_id=program_id)
    given = args.given()
    definition = Definition(
        EncodedValue(bytes(args.signature), context.format.name),
        args.program_type,
        model=model,
        max_iters=args.max_iters,
        options={name: value for name, value in given.items() if name not in ("tools", "max_iters")},
        adapter=read_choice(args.adapter, "args.adapter"),
        models=models,
    )
    kind = _type_of(definition, "args")
    check_options(given, definition)
    definition = msgspec.structs.replace(definition, tools=_chosen_tools(args, context))
    if args.stages is not None:
        definition = _staged(definition, args.stages, context)
    check_code(definition, context)
    _check_indexes(definition, context)
    if kind.needs_demos and not args.demos:
        raise errors.InvalidArgs(
            f"args.demos: {args.program_type} needs demos, of which it shows the nearest", path="args.demos"
        )
    if args.demos:
        learned = _demonstrated(definition, args.demos)
        definition = msgspec.structs.replace(definition, learned=learned)
    if existing is not None and args.if_exists == "keep":
        check_program(Program(program_id, definition))
        return {
            "program_id": program_id,
            "status": "exists",
            "signature": existing.definition.signature.in_format(context.format),
            "program_type": existing.definition.program_type,
            "same_definition": _has_definition(existing, definition),
        }
    add_program(state, program_id, definition)
    return {
        "program_id": program_id,
        "status": "created" if existing is None else "replaced",
        "signature": args.signature,
        "program_type": args.program_type,
    }


def _staged(definition: Definition, stages: Any, context: Context) -> Definition:
    """Return the definition of a pipeline with complete stages. Raises InvalidArgs and ProgramNotFound."""
    from bridge.adapters.dspy.pipelines.stages import resolve

    resolved = resolve(stages, lambda program_id, path: find_program(program_id, context), visible_tools(context))
    options = {**definition.options, "stages": resolved.stages}
    return msgspec.structs.replace(definition, options=options, learned=resolved.learned)


def _demonstrated(definition: Definition, demos: list[Any]) -> dict[str, Learned]:
    """Return what a program learns from `demos`. Raises InvalidArgs if they or the definition are wrong."""
    from bridge.adapters.dspy.examples import Examples
    from bridge.adapters.dspy.values.inputs import plain

    kind, signature = _type_of(definition, "args"), Program("", definition).signature
    if kind.main is None:
        raise errors.InvalidArgs(f"args.demos: programs of type {definition.program_type} take none", path="args.demos")
    examples = Examples(signature, ("reasoning",) if kind.has_reasoning else ())
    inputs = {field.name: field.label for field in signature.inputs}
    outputs = {"reasoning": "reasoning"} | {field.name: field.label for field in signature.outputs}
    given = [
        {inputs[name]: plain(value) for name, value in each.inputs.items()}
        | {outputs[name]: plain(value) for name, value in each.outputs.items()}
        for each in examples.read(demos, "args.demos", complete=True)
    ]
    return {kind.main: Learned(demos=tuple(given))}


def _check_indexes(definition: Definition, context: Context) -> None:
    """Raise InvalidArgs if a program, or a stage of it, names an index that does not exist."""
    from bridge.adapters.dspy.modules.checks import stages_in

    parts = {path: stage.get("options", {}) for path, stage in stages_in(definition.options)}
    for path, options in {"args": definition.options, **parts}.items():
        named = {f"{path}.indexes[{number}]": each for number, each in enumerate(options.get("indexes", ()))}
        if "index" in options:
            named[f"{path}.index"] = options["index"]
        for where, index_id in named.items():
            from bridge.adapters.dspy.retrieval.search import find_index  # loads numpy

            find_index(index_id, context, where)


def _chosen_tools(args: CreateArgs, context: Context) -> tuple[Tool, ...]:
    """Return the tools for a new program. Raises InvalidArgs for an unknown tool."""
    tools = visible_tools(context)
    names = tools if args.tools is None else args.tools
    unknown = [name for name in names if name not in tools]
    if unknown:
        raise errors.InvalidArgs(
            f"args.tools: no tool {', '.join(unknown)} is registered in this session or the default session",
            path="args.tools",
        )
    return tuple(tools[name] for name in names)
