"""The optimizers. A new one is a row of `OPTIMIZERS`, with the function that creates DSPy's object for it.

DSPy is imported by those functions only: args are checked without it.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from bridge import errors
from bridge.adapters.dspy.modules import MODULES
from bridge.adapters.dspy.optimizing import options

if TYPE_CHECKING:
    from bridge.adapters.dspy.chosen_model import ModelChoice
    from bridge.adapters.dspy.optimizing.task import Task
    from bridge.adapters.dspy.state import Definition
    from bridge.wire.codec import Format

Created = tuple[Any, dict[str, Any]]


class Optimizer(NamedTuple):
    """An optimizer.

    options: the type of its options. create(options, task): returns DSPy's object, and the arguments of its method
    `compile` besides the program and the rows. splits: whether it needs a valset, and takes a part of the trainset if
    there is none. needs: a library that it needs besides DSPy. becomes: the program type of its result, if that is not
    the program's own. has_candidates: whether its result has all programs that it has scored; votes: whether it takes
    those of another optimizer. is_experimental: whether DSPy says so.
    """

    options: type[options.Options]
    create: Callable[[Any, Task], Created]
    splits: bool = False
    needs: str | None = None
    becomes: str | None = None
    has_candidates: bool = False
    votes: bool = False
    is_experimental: bool = False


def read_options(name: str, given: msgspec.Raw, format: Format, path: str = "args") -> options.Options:
    """Return the options of the optimizer `name`, and check those of optimizers inside of it.

    given: the options, encoded in `format`. path: of the map that has both. Raises InvalidArgs, and NotAllowed if a
    library is not installed.
    """
    optimizer = OPTIMIZERS.get(name)
    if optimizer is None:
        raise errors.InvalidArgs(
            f"{path}.optimizer: unknown optimizer {errors.shown(name)}; known: {', '.join(OPTIMIZERS)}",
            path=f"{path}.optimizer",
            expected=" | ".join(OPTIMIZERS),
        )
    if optimizer.needs is not None and importlib.util.find_spec(optimizer.needs) is None:
        raise errors.NotAllowed(
            f"the optimizer {name} needs {optimizer.needs}, which is not installed:"
            " pip install 'dspex-bridge[optimize]'",
            optimizer=name,
            missing=optimizer.needs,
        )
    read: options.Options = format.decode_args(given, optimizer.options, path=f"{path}.options", undecodable="refuse")
    read.check(f"{path}.options")
    for where, step in read.inner():
        at = f"{path}.options.{where}"
        read_step(step, format, at)
        if not optimizer.votes and OPTIMIZERS[step.optimizer].becomes is not None:
            raise errors.InvalidArgs(
                f"{at}.optimizer: {step.optimizer} makes a program of another type, which no other step could follow",
                path=f"{at}.optimizer",
            )
        if optimizer.votes and not OPTIMIZERS[step.optimizer].has_candidates:
            known = ", ".join(each for each, row in OPTIMIZERS.items() if row.has_candidates)
            raise errors.InvalidArgs(
                f"{at}.optimizer: {step.optimizer} has no candidates that could vote; use {known}",
                path=f"{at}.optimizer",
            )
    return read


def read_step(step: options.Step, format: Format, path: str = "args") -> options.Options:
    """Return the options of an optimizer inside of another one. Raises what `read_options` raises."""
    return read_options(step.optimizer, step.options, format, path)


def splits(name: str, given: options.Options, format: Format) -> bool:
    """Return whether the optimizer `name`, or one inside of its checked options, needs a valset."""
    inner = [(step.optimizer, read_step(step, format)) for _, step in given.inner()]
    return OPTIMIZERS[name].splits or any(splits(*each, format) for each in inner)


def models_of(given: options.Options, format: Format, path: str = "args.options") -> Iterator[tuple[str, ModelChoice]]:
    """Yield the configured models that checked options name, also inside of them, each with its path in the args."""
    for name, choice in given.models():
        yield f"{path}.{name}", choice
    for where, step in given.inner():
        yield from models_of(read_step(step, format), format, f"{path}.{where}.options")


def becoming(name: str, given: options.Options, definition: Definition) -> Definition:
    """Return the definition that the optimized program has before it has learned anything.

    Raises InvalidArgs if the optimizer `name` cannot be used for programs of that type.
    """
    kind = OPTIMIZERS[name].becomes
    if kind is None:
        return definition
    bases = MODULES[kind].bases
    if definition.program_type not in bases:
        raise errors.InvalidArgs(
            f"args.optimizer: {name} is for programs of type {' or '.join(bases)}, not {definition.program_type}",
            path="args.optimizer",
        )
    options = {**definition.options, "base": definition.program_type, **given.of_program()}
    return msgspec.structs.replace(definition, program_type=kind, options=options)


def compile(name: str, given: Any, task: Task) -> Any:
    """Return the module that the optimizer `name` makes of the task's."""
    optimizer, arguments = OPTIMIZERS[name].create(given, task)
    takes = inspect.signature(optimizer.compile).parameters
    rows = {"trainset": task.trainset, "valset": task.valset}
    return optimizer.compile(task.student, **{name: rows[name] for name in rows if name in takes} | arguments)


def _labeled_few_shot(given: options.LabeledFewShot, task: Task) -> Created:
    import dspy

    return dspy.LabeledFewShot(k=given.k), {}


def _bootstrap_few_shot(given: options.BootstrapFewShot, task: Task) -> Created:
    import dspy

    return dspy.BootstrapFewShot(**_bootstrap(given, task)), {}


def _bootstrap(given: options.BootstrapFewShot, task: Task) -> dict[str, Any]:
    """Return the arguments that all optimizers have that bootstrap demos."""
    return {
        "metric": task.metric,
        "metric_threshold": given.metric_threshold,
        "teacher_settings": task.teacher(given.teacher),
        "max_bootstrapped_demos": given.max_bootstrapped_demos,
        "max_labeled_demos": given.max_labeled_demos,
        "max_rounds": given.max_rounds,
        "max_errors": given.max_errors,
    }


def _bootstrap_random_search(given: options.BootstrapRandomSearch, task: Task) -> Created:
    import dspy

    optimizer = dspy.BootstrapFewShotWithRandomSearch(
        num_candidate_programs=given.num_candidates,
        stop_at_score=None if given.stop_at_score is None else 100 * given.stop_at_score,
        num_threads=given.threads,
        **_bootstrap(given, task),
    )
    return optimizer, {}


def _copro(given: options.COPRO, task: Task) -> Created:
    import dspy

    optimizer = dspy.COPRO(
        prompt_model=task.model(given.prompt_model),
        metric=task.metric,
        breadth=given.breadth,
        depth=given.depth,
        init_temperature=given.init_temperature,
    )
    return optimizer, {"eval_kwargs": {"num_threads": given.threads}}


def _mipro_v2(given: options.MIPROv2, task: Task) -> Created:
    import dspy

    candidates, trials = given.budget()
    optimizer = dspy.MIPROv2(
        metric=task.metric,
        prompt_model=task.model(given.prompt_model),
        task_model=task.model(given.task_model),
        teacher_settings=task.teacher(given.teacher),
        max_bootstrapped_demos=given.max_bootstrapped_demos,
        max_labeled_demos=given.max_labeled_demos,
        auto=given.auto,
        num_candidates=candidates,
        num_threads=given.threads,
        max_errors=given.max_errors,
        init_temperature=given.init_temperature,
        metric_threshold=given.metric_threshold,
    )
    arguments = {
        "num_trials": trials,
        "seed": given.seed,
        "minibatch": len(task.scored) > given.minibatch_size,
        "minibatch_size": given.minibatch_size,
        "minibatch_full_eval_steps": given.minibatch_full_eval_steps,
    }
    return optimizer, arguments


def _simba(given: options.SIMBA, task: Task) -> Created:
    import dspy

    optimizer = dspy.SIMBA(
        metric=task.metric,
        bsize=min(given.bsize, len(task.trainset)),
        num_candidates=given.num_candidates,
        max_steps=given.max_steps,
        max_demos=given.max_demos,
        prompt_model=task.model(given.prompt_model),
        num_threads=given.threads,
        temperature_for_sampling=given.temperature_for_sampling,
        temperature_for_candidates=given.temperature_for_candidates,
    )
    return optimizer, {"seed": given.seed}


def _infer_rules(given: options.InferRules, task: Task) -> Created:
    from bridge.adapters.dspy.optimizing.dspy_parts import InferRules

    optimizer = InferRules(
        num_candidates=given.num_candidates,
        num_rules=given.num_rules,
        num_threads=given.threads,
        **_bootstrap(given, task),
    )
    return optimizer, {}


def _gepa(given: options.GEPA, task: Task) -> Created:
    import dspy
    from dspy.teleprompt.gepa import InstructionProposer

    optimizer = dspy.GEPA(
        metric=task.feedback,
        auto=given.auto,
        max_metric_calls=given.max_metric_calls,
        max_full_evals=given.full_evaluations(),
        reflection_lm=task.model(given.prompt_model) or dspy.settings.lm,
        instruction_proposer=InstructionProposer(adapter=dspy.settings.adapter),
        reflection_minibatch_size=given.reflection_minibatch_size,
        candidate_selection_strategy=given.candidate_selection_strategy,
        skip_perfect_score=given.skip_perfect_score,
        use_merge=given.use_merge,
        max_merge_invocations=given.max_merge_invocations,
        num_threads=given.threads,
        log_dir=None,  # where it would save its state as a pickle
        seed=given.seed,
    )
    return optimizer, {"valset": task.scored}


def _knn_few_shot(given: options.KNNFewShot, task: Task) -> Created:
    """Give the predictors all rows: DSPy's object returns a module with a closure, which cannot be stored."""
    import dspy

    return dspy.LabeledFewShot(k=len(task.trainset)), {"sample": False}


def _ensemble(given: options.Ensemble, task: Task) -> Created:
    from bridge.adapters.dspy.optimizing.composed import EnsembleOf

    inner = read_step(given.of, task.format)
    return EnsembleOf(lambda: compile(given.of.optimizer, inner, task), given.size), {}


def _better_together(given: options.BetterTogether, task: Task) -> Created:
    import dspy

    from bridge.adapters.dspy.optimizing.composed import as_step

    made = [OPTIMIZERS[step.optimizer].create(read_step(step, task.format), task) for step in given.steps]
    names = [f"step_{number}" for number in range(len(made))]
    steps = {name: as_step(optimizer) for name, (optimizer, _) in zip(names, made, strict=True)}
    task.student.set_lm(dspy.settings.lm)  # which DSPy needs, because it can also optimize the weights of models
    arguments = {
        "strategy": " -> ".join(names),
        "optimizer_compile_args": {name: each for name, (_, each) in zip(names, made, strict=True)},
        "valset": task.scored,
        "num_threads": given.threads,
        "max_errors": given.max_errors,
        "seed": given.seed,
        "shuffle_trainset_between_steps": given.shuffle,
    }
    return dspy.BetterTogether(metric=task.metric, **steps), arguments


OPTIMIZERS: dict[str, Optimizer] = {
    "labeled_few_shot": Optimizer(options.LabeledFewShot, _labeled_few_shot),
    "bootstrap_few_shot": Optimizer(options.BootstrapFewShot, _bootstrap_few_shot),
    "bootstrap_random_search": Optimizer(options.BootstrapRandomSearch, _bootstrap_random_search, has_candidates=True),
    "knn_few_shot": Optimizer(options.KNNFewShot, _knn_few_shot, becomes="knn"),
    "copro": Optimizer(options.COPRO, _copro, has_candidates=True),
    "mipro_v2": Optimizer(options.MIPROv2, _mipro_v2, splits=True, needs="optuna", has_candidates=True),
    "simba": Optimizer(options.SIMBA, _simba, has_candidates=True),
    "infer_rules": Optimizer(options.InferRules, _infer_rules, splits=True),
    "gepa": Optimizer(options.GEPA, _gepa, needs="gepa", is_experimental=True),
    "ensemble": Optimizer(options.Ensemble, _ensemble, becomes="ensemble", votes=True),
    "better_together": Optimizer(options.BetterTogether, _better_together),
}
