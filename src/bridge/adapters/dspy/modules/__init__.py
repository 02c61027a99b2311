"""The DSPy module of each program type. A new type is one row in `MODULES`, with the function that creates its module.

DSPy is imported by those functions only: create_program checks types without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from bridge import errors
from bridge.adapters.dspy.modules.options import MOST_ATTEMPTS
from bridge.adapters.dspy.tools import SearchTool

if TYPE_CHECKING:
    from bridge.adapters.dspy.signatures import Signature
    from bridge.adapters.dspy.state import Definition
    from bridge.adapters.dspy.tools import Tool

DEFAULT_ITERATIONS = 20  # calls of tools in one run
RETRIEVE = "retrieve"  # the type of programs that search an index
DEFAULT_N = 3
DEFAULT_K = 3
DEFAULT_CALLS = 50  # of the model, by code in one run
DEFAULT_OUTPUT = 10_000  # characters that a step of code may print
DEFAULT_SECONDS = 10.0  # of a step of code
TOOLS = frozenset({"tools", "max_iters", "allow_no_tools", "indexes"})
CODE = frozenset({"tools", "indexes", "max_llm_calls", "max_output_chars", "max_step_seconds"})
SAMPLES = frozenset({"base", "n"})
# Names that code in a sandbox has from DSPy.
IN_SANDBOX = frozenset({"llm_query", "llm_query_batched", "SUBMIT", "print", "dspy"})
ADDED = ("reasoning", "rationale")  # outputs that modules add, and that results have


class ModuleType(NamedTuple):
    """The DSPy module of one program type.

    create: returns a module for a signature and the definition of a program.

    main: the name of the predictor that writes the outputs and gets the `demos` of create_program; None: there is none.
    takes: the args of create_program that this type takes, see `Options`.
    has_reasoning: whether the main predictor also writes `reasoning`.
    names_calls: whether events name the predictor and the call, because one run calls several.
    bases: the types that the program inside may have, if there is one; inside: the name of its module.
    needs_demos: whether create_program needs `demos`.
    is_experimental: whether DSPy may change or remove the module without a warning.
    runs_code: whether the module runs code that a model has written, which the operator must allow.
    own_tools: the names of tools that the module adds to those of the host. own_fields: the names of fields that it
    adds to prompts, or of what its code has, which a signature cannot have.
    check: raises InvalidArgs, with a path below the given one, for a signature and a definition that do not fit.
    """

    create: Callable[[Signature, Definition], Any]
    main: str | None
    takes: frozenset[str] = frozenset()
    has_reasoning: bool = False
    names_calls: bool = False
    bases: tuple[str, ...] = ("predict", "chain_of_thought", "react")
    inside: str = "module"
    needs_demos: bool = False
    is_experimental: bool = False
    runs_code: bool = False
    own_tools: tuple[str, ...] = ("finish",)
    own_fields: frozenset[str] = frozenset()
    check: Callable[[Signature, Definition, str], None] | None = None

    @property
    def takes_tools(self) -> bool:
        """Return whether programs of this type have tools."""
        return "tools" in self.takes

    @property
    def needs_tools(self) -> bool:
        """Return whether programs of this type need a tool, unless `allow_no_tools` is set."""
        return "allow_no_tools" in self.takes


def module_type(definition: Definition) -> ModuleType:
    """Return the type of a program, as it is with the type of the program inside, if there is one.

    Raises KeyError for a type that does not exist.
    """
    outer = MODULES[definition.program_type]
    if "base" not in outer.takes:
        return outer
    inner = _inner(definition)
    main = outer.main
    if main is None:  # that of the program inside
        main = outer.inside if inner.main == "self" else f"{outer.inside}.{inner.main}"
    elif main == "self":
        main = inner.main
    return outer._replace(main=main, takes=outer.takes | inner.takes, has_reasoning=inner.has_reasoning)


def _inner(definition: Definition) -> ModuleType:
    return MODULES[definition.options.get("base", "predict")]


def _predict(signature: Signature, definition: Definition) -> Any:
    from bridge.adapters.dspy.predictor import predictor
    from bridge.adapters.dspy.prompt_fields import dspy_signature

    return predictor(dspy_signature(signature))


def _chain_of_thought(signature: Signature, definition: Definition) -> Any:
    import dspy

    from bridge.adapters.dspy.predictor import predictor
    from bridge.adapters.dspy.prompt_fields import dspy_signature

    module = dspy.ChainOfThought(dspy_signature(signature))
    module.predict = predictor(module.predict.signature)
    return module


def _react(signature: Signature, definition: Definition) -> Any:
    from bridge.adapters.dspy.modules.agents import react

    return react(signature, tools_of(definition), definition.max_iters or DEFAULT_ITERATIONS)


def _react_v2(signature: Signature, definition: Definition) -> Any:
    from bridge.adapters.dspy.modules.agents import react_v2

    return react_v2(signature, tools_of(definition), definition.max_iters or DEFAULT_ITERATIONS)


def tools_of(definition: Definition) -> tuple[Tool, ...]:
    """Return the tools of a program: those of the host, and one for each index that it searches."""
    return (*definition.tools, *map(SearchTool.of, definition.options.get("indexes", ())))


def _best_of_n(signature: Signature, definition: Definition) -> Any:
    from bridge.adapters.dspy.modules.attempts import BestOfN

    return _attempts(BestOfN, signature, definition)


def _refine(signature: Signature, definition: Definition) -> Any:
    from bridge.adapters.dspy.modules.attempts import Refine

    return _attempts(Refine, signature, definition)


def _attempts(kind: Any, signature: Signature, definition: Definition) -> Any:
    from bridge.adapters.dspy.rewards import FILLED, reward_of

    options = definition.options
    reward = reward_of(options.get("reward", FILLED), signature)
    inner = _inner(definition).create(signature, definition)
    return kind(inner, options.get("n", DEFAULT_N), reward, options.get("threshold", 1.0))


def _majority(signature: Signature, definition: Definition) -> Any:
    from bridge.adapters.dspy.modules.samples import Majority

    field = _compared_field(signature, definition)
    return Majority(_inner(definition).create(signature, definition), definition.options.get("n", DEFAULT_N), field)


def _ensemble(signature: Signature, definition: Definition) -> Any:
    import dspy

    from bridge.adapters.dspy.modules.samples import most_frequent

    programs = [_inner(definition).create(signature, definition) for _ in range(definition.options.get("n", DEFAULT_N))]
    field = _compared_field(signature, definition)
    return dspy.Ensemble(reduce_fn=lambda predictions: most_frequent(predictions, field)).compile(programs)


def _compared_field(signature: Signature, definition: Definition) -> str:
    """Return the name in DSPy of the output by which predictions are compared."""
    names = {field.name: field.python_name for field in signature.outputs}
    return names[definition.options["field"]] if "field" in definition.options else [*names.values()][-1]


def _multi_chain_comparison(signature: Signature, definition: Definition) -> Any:
    from bridge.adapters.dspy.modules.samples import Comparison
    from bridge.adapters.dspy.prompt_fields import dspy_signature

    chain = _chain_of_thought(signature, definition)
    return Comparison(dspy_signature(signature), chain, definition.options.get("n", DEFAULT_N))


def _knn(signature: Signature, definition: Definition) -> Any:
    from bridge.adapters.dspy.modules.neighbours import NeighbourPredictor

    k = definition.options.get("k", DEFAULT_K)
    module = _inner(definition).create(signature, definition)
    if hasattr(module, "predict"):
        module.predict = NeighbourPredictor(module.predict.signature, k)
        return module
    return NeighbourPredictor(module.signature, k)


def _retrieve(signature: Signature, definition: Definition) -> Any:
    from bridge.adapters.dspy.modules.retrieving import Retrieve

    return Retrieve(signature, definition.options["index"], definition.options.get("k", DEFAULT_K))


def _check_retrieve(signature: Signature, definition: Definition, path: str) -> None:
    if "index" not in definition.options:
        raise errors.InvalidArgs(f"{path}.index: a program of type retrieve needs an index", path=f"{path}.index")
    for kind, fields, allowed in (("input", signature.inputs, ()), ("output", signature.outputs, (list[str],))):
        if len(fields) != 1 or fields[0].type not in (str, *allowed):
            expected = " or ".join(("string", *("list<string>" for _ in allowed)))
            raise errors.InvalidArgs(
                f"{path}.signature: a program of type retrieve has one {kind}, of type {expected}",
                path=f"{path}.signature",
            )


def _pipeline(signature: Signature, definition: Definition) -> Any:
    raise TypeError("a pipeline is made of prepared programs: see prepared.py")


def _rlm(signature: Signature, definition: Definition) -> Any:
    from bridge.adapters.dspy.modules.recursive import Rlm

    options = definition.options
    return Rlm(
        signature,
        tools_of(definition),
        options.get("max_step_seconds", DEFAULT_SECONDS),
        max_iters=definition.max_iters or DEFAULT_ITERATIONS,
        max_llm_calls=options.get("max_llm_calls", DEFAULT_CALLS),
        max_output_chars=options.get("max_output_chars", DEFAULT_OUTPUT),
    )


def _flex(signature: Signature, definition: Definition) -> Any:
    from bridge.adapters.dspy.modules.flexible import Flex

    options = definition.options
    return Flex(
        signature,
        tools_of(definition),
        options.get("source", ""),
        options.get("max_llm_calls", DEFAULT_CALLS),
        options.get("max_step_seconds", DEFAULT_SECONDS),
        options.get("max_output_chars", DEFAULT_OUTPUT),
    )


_CODE = ModuleType(
    _rlm,
    None,
    names_calls=True,
    is_experimental=True,
    runs_code=True,
    own_tools=("llm_query",),
    own_fields=IN_SANDBOX | {"variables_info", "repl_history", "iteration", "code", "final_reasoning"},
)
MODULES: dict[str, ModuleType] = {
    "predict": ModuleType(_predict, "self"),
    "chain_of_thought": ModuleType(_chain_of_thought, "predict", has_reasoning=True),
    "react": ModuleType(_react, "extract.predict", TOOLS, has_reasoning=True),
    "react_v2": ModuleType(
        _react_v2,
        None,
        TOOLS,
        names_calls=True,
        is_experimental=True,
        own_tools=("submit",),
        own_fields=frozenset({"history", "tools", "tool_calls", "termination_reason"}),
    ),
    "best_of_n": ModuleType(_best_of_n, None, SAMPLES | {"reward", "threshold"}, names_calls=True),
    "refine": ModuleType(
        _refine, None, SAMPLES | {"reward", "threshold"}, names_calls=True, own_fields=frozenset({"hint_"})
    ),
    "majority": ModuleType(_majority, None, SAMPLES | {"field"}, names_calls=True),
    "ensemble": ModuleType(_ensemble, None, SAMPLES | {"field"}, names_calls=True, inside="programs[0]"),
    "multi_chain_comparison": ModuleType(
        _multi_chain_comparison,
        "predict",
        frozenset({"n"}),
        names_calls=True,
        own_fields=frozenset({"rationale", *(f"reasoning_attempt_{n + 1}" for n in range(MOST_ATTEMPTS))}),
    ),
    "rlm": _CODE._replace(create=_rlm, takes=CODE | {"max_iters"}),
    "flex": _CODE._replace(create=_flex, takes=CODE | {"source"}, own_tools=("submit",)),
    RETRIEVE: ModuleType(_retrieve, None, frozenset({"index", "k"}), names_calls=True, check=_check_retrieve),
    "pipeline": ModuleType(_pipeline, None, frozenset({"stages", "outputs"}), names_calls=True),
    "knn": ModuleType(_knn, "self", frozenset({"base", "k"}), bases=("predict", "chain_of_thought"), needs_demos=True),
}
