"""The commands that create programs."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from bridge import errors
from bridge.adapter import Ignored
from bridge.adapters.dspy.chosen_model import ModelChoice, names_of
from bridge.adapters.dspy.commands import adapter
from bridge.adapters.dspy.format_choice import FormatArg, read_choice
from bridge.adapters.dspy.modules.options import Options
from bridge.adapters.dspy.programs import add_program, check_code, check_id, check_program, find_program, type_of
from bridge.adapters.dspy.providers import GEMINI, full_model
from bridge.adapters.dspy.state import Definition, Learned, Program, State, visible_tools
from bridge.records import EncodedValue

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.adapters.dspy.tools import Tool

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
    kind = type_of(definition, "args")
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

    kind, signature = type_of(definition, "args"), Program("", definition).signature
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
