"""The options of each optimizer, as hosts send them. The defaults keep an optimization small."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec

from bridge import errors
from bridge.adapters.dspy.chosen_model import ModelChoice

Count = Annotated[int, msgspec.Meta(ge=1, le=100)]
Demos = Annotated[int, msgspec.Meta(ge=0, le=100)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Temperature = Annotated[float, msgspec.Meta(ge=0, le=2)]


class Options(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The options that all optimizers have.

    seed: of every random choice; 0 also keeps the order of the trainset, other seeds shuffle it. threads: how many rows
    run at once. max_errors: how many rows may fail before the optimization does; a failed row scores 0.
    """

    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] = 0
    threads: Annotated[int, msgspec.Meta(ge=1, le=32)] = 4
    max_errors: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 10

    def models(self) -> Iterator[tuple[str, ModelChoice]]:
        """Yield the configured models that the options name, each with the name of the option."""
        for name in ("teacher", "prompt_model", "task_model"):
            choice = getattr(self, name, None)
            if choice is not None:
                yield name, choice

    def inner(self) -> Iterator[tuple[str, Step]]:
        """Yield the optimizers inside of this one, each with its path below the options."""
        yield from ()

    def of_program(self) -> dict[str, int]:
        """Return what becomes an option of the optimized program, for an optimizer that changes its type."""
        return {}

    def check(self, path: str) -> None:
        """Raise InvalidArgs for options that exclude each other. path: of the options in the args."""


def _check_one_of(path: str, options: Options, *names: str) -> None:
    given = [name for name in names if getattr(options, name) is not None]
    if len(given) > 1:
        where = f"{path}.{given[1]}"
        raise errors.InvalidArgs(f"{where}: not together with {given[0]}", path=where)


class LabeledFewShot(Options):
    """k: demos for each predictor, taken from the trainset."""

    k: Demos = 8


class BootstrapFewShot(Options):
    """Demos are runs of the program on the trainset that the metric approves of, and rows of the trainset.

    max_bootstrapped_demos, max_labeled_demos: how many of each a predictor gets; the second counts both. max_rounds:
    how often a row is tried. metric_threshold: the least score of a run that becomes a demo. teacher: the model of
    these runs.
    """

    max_bootstrapped_demos: Count = 4
    max_labeled_demos: Demos = 4
    max_rounds: Annotated[int, msgspec.Meta(ge=1, le=10)] = 1
    metric_threshold: Share = 0.7
    teacher: ModelChoice | None = None


class BootstrapRandomSearch(BootstrapFewShot):
    """num_candidates: sets of demos that are tried, besides none, labeled ones and those of bootstrap_few_shot.

    stop_at_score: ends the search early.
    """

    num_candidates: Count = 6
    stop_at_score: Share | None = None


class KNNFewShot(Options):
    """k: the rows of the trainset most similar to the inputs, which are the demos of a run."""

    k: Count = 3

    def of_program(self) -> dict[str, int]:
        return {"k": self.k}


class COPRO(Options):
    """breadth: instructions that are proposed at a time. depth: how often. prompt_model: which proposes them."""

    breadth: Annotated[int, msgspec.Meta(ge=2, le=50)] = 4
    depth: Annotated[int, msgspec.Meta(ge=1, le=10)] = 2
    init_temperature: Temperature = 1.4
    prompt_model: ModelChoice | None = None


class MIPROv2(Options):
    """auto: how much is tried; or else num_candidates (sets of demos, and instructions; 4) and num_trials (8).

    minibatch_size: rows of the valset that a trial is scored on, where the valset has more; every
    minibatch_full_eval_steps trials the best one is scored on all of them. prompt_model: proposes instructions;
    task_model: runs the program; teacher: bootstraps demos.
    """

    auto: Literal["light", "medium", "heavy"] | None = None
    num_candidates: Annotated[int, msgspec.Meta(ge=2, le=100)] | None = None
    num_trials: Annotated[int, msgspec.Meta(ge=1, le=1000)] | None = None
    max_bootstrapped_demos: Demos = 4
    max_labeled_demos: Demos = 4
    minibatch_size: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 35
    minibatch_full_eval_steps: Count = 5
    metric_threshold: Share = 0.7
    init_temperature: Temperature = 1.0
    prompt_model: ModelChoice | None = None
    task_model: ModelChoice | None = None
    teacher: ModelChoice | None = None

    def check(self, path: str) -> None:
        _check_one_of(path, self, "auto", "num_candidates")
        _check_one_of(path, self, "auto", "num_trials")

    def budget(self) -> tuple[int | None, int | None]:
        """Return the numbers of candidates and of trials, None if `auto` says how many."""
        return (None, None) if self.auto else (self.num_candidates or 4, self.num_trials or 8)


class SIMBA(Options):
    """bsize: rows in a step, at most those of the trainset. num_candidates: programs that a step proposes.

    max_steps: how many steps. max_demos: of a predictor; 0: only rules are added to its instructions. prompt_model:
    writes the rules.
    """

    bsize: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 32
    num_candidates: Annotated[int, msgspec.Meta(ge=2, le=20)] = 4
    max_steps: Annotated[int, msgspec.Meta(ge=1, le=50)] = 4
    max_demos: Demos = 4
    temperature_for_sampling: Annotated[float, msgspec.Meta(gt=0, le=2)] = 0.2
    temperature_for_candidates: Annotated[float, msgspec.Meta(gt=0, le=2)] = 0.2
    prompt_model: ModelChoice | None = None


class InferRules(BootstrapFewShot):
    """num_candidates: sets of rules that are tried. num_rules: in each. teacher: also finds the rules."""

    num_candidates: Count = 3
    num_rules: Count = 5


class GEPA(Options):
    """One of auto, max_metric_calls and max_full_evals (of trainset and valset) is the budget; 6 of the last.

    prompt_model: reflects on the runs and rewrites instructions. reflection_minibatch_size: runs that it sees at a
    time.
    """

    auto: Literal["light", "medium", "heavy"] | None = None
    max_metric_calls: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    max_full_evals: Annotated[int, msgspec.Meta(ge=1, le=1000)] | None = None
    prompt_model: ModelChoice | None = None
    reflection_minibatch_size: Count = 3
    candidate_selection_strategy: Literal["pareto", "current_best"] = "pareto"
    skip_perfect_score: bool = True
    use_merge: bool = True
    max_merge_invocations: Count = 5

    def check(self, path: str) -> None:
        _check_one_of(path, self, "auto", "max_metric_calls", "max_full_evals")

    def full_evaluations(self) -> int | None:
        """Return max_full_evals, or its default if there is no other budget."""
        return self.max_full_evals or (None if self.auto or self.max_metric_calls else 6)


class Step(msgspec.Struct, forbid_unknown_fields=True):
    """An optimizer inside of another one, and its options."""

    optimizer: str
    options: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)


class Ensemble(Options):
    """size: how many candidates vote. of: the optimizer that finds them."""

    size: Annotated[int, msgspec.Meta(ge=2, le=20)] = 3
    of: Step = msgspec.field(default_factory=lambda: Step("bootstrap_random_search"))

    def inner(self) -> Iterator[tuple[str, Step]]:
        yield "of", self.of

    def of_program(self) -> dict[str, int]:
        return {"n": self.size}


class BetterTogether(Options):
    """steps: optimizers that are run one after another, of which the best result is kept.

    shuffle: whether the trainset is shuffled before each step.
    """

    steps: Annotated[list[Step], msgspec.Meta(min_length=1, max_length=8)] = msgspec.field(
        default_factory=lambda: [Step("bootstrap_random_search"), Step("copro")]
    )
    shuffle: bool = True

    def inner(self) -> Iterator[tuple[str, Step]]:
        for number, step in enumerate(self.steps):
            yield f"steps[{number}]", step
