"""How a worker is started: its command line, its environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from bridge import errors
from bridge._framing import DEFAULT_MAX_FRAME
from bridge.host.process import STDERR_FD, WorkerProcess
from bridge.wire._limits import DEFAULT_MAX_VALUES

MIN_FRAME, MAX_FRAME = 4096, 1 << 30  # bytes, of max_frame
MIN_VALUES, MAX_VALUES = 1000, 1 << 30


def launch(
    adapter: str = "dspy",
    python: str = sys.executable,
    flags: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    max_frame: int = DEFAULT_MAX_FRAME,
    max_values: int = DEFAULT_MAX_VALUES,
) -> WorkerProcess:
    """Start a worker; the options are those of `Client.start`.

    Raises TypeError and ValueError for options that are wrong, WorkerCrashed (category
    initialization) if there is no such program.
    """
    if isinstance(flags, str) or not all(isinstance(flag, str) for flag in flags):
        raise TypeError(f'flags is a list of texts, like ["--threads", "8"], not {flags!r}')
    for name, value in (env or {}).items():
        if not isinstance(value, str):
            raise TypeError(f"env[{name!r}] is a text, not {type(value).__name__}")
    if not MIN_FRAME <= max_frame <= MAX_FRAME:
        raise ValueError(f"max_frame is {MIN_FRAME} to {MAX_FRAME} bytes, not {max_frame}")
    if not MIN_VALUES <= max_values <= MAX_VALUES:
        raise ValueError(f"max_values is {MIN_VALUES} to {MAX_VALUES}, not {max_values}")
    command = [python, "-P", "-m", "bridge", "worker", "--adapter", adapter]
    command += ["--max-frame", str(max_frame), "--max-values", str(max_values), *flags]
    # The worker's stderr is a pipe, and what it logs there may reach a terminal all the same.
    defaults = {"BRIDGE_LOG_FORMAT": "text"} if os.isatty(STDERR_FD) else {}
    try:
        return WorkerProcess(command, {**defaults, **os.environ, **(env or {})})
    except OSError as error:
        raise not_started(f"{python}: {error.strerror}") from error


def not_started(reason: str, **details: Any) -> errors.WorkerCrashed:
    """Return the error for a worker that did not start."""
    error = errors.WorkerCrashed(f"the worker did not start: {reason}", **details)
    error.category = "initialization"
    return error
