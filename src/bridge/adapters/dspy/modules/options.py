"""The further args of create_program, which depend on the type of the program. Data only."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

MOST_ITERATIONS = 100  # calls of tools, or steps of code, in one run
MOST_ATTEMPTS = 64
MOST_INDEXES = 64
MOST_NEIGHBOURS = 100
MOST_CALLS = 1000
MOST_OUTPUT = 1_000_000  # characters
MOST_SECONDS = 300
MOST_SOURCE = 65_536  # characters

Count = Annotated[int, msgspec.Meta(ge=1, le=MOST_ATTEMPTS)]


class HostFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A function of the host. host: its name."""

    host: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class Options(msgspec.Struct, kw_only=True):
    """The args of create_program that only some types take; `MODULES` says which.

    tools: the names of those to use of the session's and the default session's tools (default: all). max_iters: how
    many calls of tools, or steps of code, a run may make. allow_no_tools: whether there may be no tools.
    indexes: the ids of indexes, each of which becomes a tool that searches it.
    base: the type of the program inside. n: how many attempts. reward: how good an attempt is: "filled", the share of
    outputs that have a value, or a function of the host. threshold: the reward that is good enough. field: the output
    that is compared (default: the last one). index: the id of the index that is searched. k: how many of its texts are
    found, or of the demos shown: those most similar to the inputs.
    max_llm_calls, max_output_chars, max_step_seconds: limits of code: how often it may call the model in a run, how
    much a step may print, and how long it may take. source: of the module of a program of type flex.
    stages: of a pipeline, see `GivenStage`. outputs: where outputs of a pipeline come from: STAGE.OUTPUT, if names do
    not tell.
    """

    tools: list[str] | None = None
    max_iters: Annotated[int, msgspec.Meta(ge=1, le=MOST_ITERATIONS)] | None = None
    allow_no_tools: bool | None = None
    indexes: Annotated[list[str], msgspec.Meta(max_length=MOST_INDEXES)] | None = None
    index: str | None = None
    base: Literal["predict", "chain_of_thought", "react"] | None = None
    n: Count | None = None
    reward: Literal["filled"] | HostFunction | None = None
    threshold: float | None = None
    field: str | None = None
    k: Annotated[int, msgspec.Meta(ge=1, le=MOST_NEIGHBOURS)] | None = None
    max_llm_calls: Annotated[int, msgspec.Meta(ge=0, le=MOST_CALLS)] | None = None
    max_output_chars: Annotated[int, msgspec.Meta(ge=100, le=MOST_OUTPUT)] | None = None
    max_step_seconds: Annotated[float, msgspec.Meta(gt=0, le=MOST_SECONDS)] | None = None
    source: Annotated[str, msgspec.Meta(min_length=1, max_length=MOST_SOURCE)] | None = None
    stages: list[dict[str, Any]] | dict[str, dict[str, Any]] | None = None
    outputs: dict[str, str] | None = None

    def given(self) -> dict[str, Any]:
        """Return the options that are set, as plain data."""
        names = Options.__struct_fields__
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return {
            name: msgspec.to_builtins(value) if isinstance(value, msgspec.Struct) else value
            for name, value in given.items()
        }
