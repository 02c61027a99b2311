"""The DSPy adapter. The modules of this package declare its commands, each below the type of its args."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

from bridge.adapter import Adapter, AdapterFailed, reason_of
from bridge.adapters.dspy.providers import GEMINI_KEYS
from bridge.adapters.dspy.state import RegisteredProgram, State


def _warm_up() -> None:
    from bridge.adapters.dspy import run  # noqa: F401  # imports DSPy


def _available(name: str) -> bool:
    """Return whether DSPy is installed ("dspy"), or the environment has a key for Gemini ("gemini")."""
    if name == "gemini":
        return any(os.environ.get(key, "").strip() for key in GEMINI_KEYS)
    return importlib.util.find_spec("dspy") is not None


def _load_programs(given: tuple[str, ...]) -> dict[str, RegisteredProgram]:
    try:
        from bridge.adapters.dspy.registered import load_programs  # imports DSPy
    except ImportError as error:
        raise AdapterFailed(f"program {given[0]!r}: DSPy cannot be imported: {reason_of(error)}") from error
    return load_programs(given)


def _rehearse(call: Callable[..., Any]) -> None:
    """Run a program, which loads twice as much of DSPy as its import, and load what a model of a provider needs."""
    from bridge.adapters.dspy.engines.prices import load_prices

    load_prices()
    call("configure_lm", {"model": "offline/reader"})
    question = {"question": "Where is the Louvre?"}
    for inputs in (question, {**question, "passage": "The Louvre is in Paris."}):  # which are read in different ways
        signature = {"inputs": [{"name": name} for name in inputs], "outputs": [{"name": "answer"}]}
        call("create_program", {"id": "rehearsal", "signature": signature, "if_exists": "replace"})
        call("execute_program", {"program_id": "rehearsal", "inputs": inputs})


def _describe() -> dict[str, Any]:
    """Return the names that args may have, with what is worth knowing about each."""
    # Which the first program needs, not a worker's start.
    from bridge.adapters.dspy.format_choice import NAMES
    from bridge.adapters.dspy.metrics import METRICS
    from bridge.adapters.dspy.modules import MODULES
    from bridge.adapters.dspy.optimizers import OPTIMIZERS

    return {
        "program_types": {
            name: {"takes": sorted(row.takes), **_marks(experimental=row.is_experimental, runs_code=row.runs_code)}
            for name, row in MODULES.items()
        },
        "adapters": {name: {} for name in NAMES},
        "metrics": {name: {} for name in METRICS},
        "optimizers": {
            name: {**({"needs": row.needs} if row.needs else {}), **_marks(experimental=row.is_experimental)}
            for name, row in OPTIMIZERS.items()
        },
    }


def _marks(**marks: bool) -> dict[str, bool]:
    return {name: is_set for name, is_set in marks.items() if is_set}


adapter = Adapter(
    "dspy",
    new_state=State,
    counted="program",
    available=_available,
    warm_up=_warm_up,
    rehearse=_rehearse,
    load_programs=_load_programs,
    describe=_describe,
)
