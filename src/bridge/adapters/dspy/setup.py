"""What the runs of a program need from their session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from bridge.adapters.dspy.include import NOTHING, Include

if TYPE_CHECKING:
    from bridge.adapters.dspy.format_choice import FormatChoice
    from bridge.adapters.dspy.settings import Model
    from bridge.adapters.dspy.state import Program
    from bridge.adapters.dspy.tools import Tool


class Setup(NamedTuple):
    """Everything that runs of a program take from their session: during the call's turn, before it is released.

    models: that they run on, in order (see ModelsInOrder); () if none is configured. tools: of the host, for a module
    of the operator that asks for them. config: settings of the models for these runs. include: what the results have in
    addition. format: of prompts and replies; None: chat. extractors: the model that extracts fields from prose, for a
    format in two steps that names one. judges: the models of a metric that judges; (): the program's.
    """

    program: Program
    models: tuple[Model, ...]
    tools: tuple[Tool, ...] = ()
    config: dict[str, Any] = {}  # noqa: RUF012  # nothing changes it
    include: Include = NOTHING
    format: FormatChoice | None = None
    extractors: tuple[Model, ...] = ()
    judges: tuple[Model, ...] = ()
