"""What a run knows of the code in its sandbox: its steps are events, and it ends with the call."""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bridge import errors
from bridge.errors import CallEnded

if TYPE_CHECKING:
    from bridge.adapters.dspy.current_run import Run

_POLL = 0.05  # seconds
_CUT = "\n… (the rest of the output was dropped)"
_HOST_TOKEN = "__dspy_host_token"  # a variable that only the code gets that makes `dspy` known


class Supervised:
    """What each sandbox has: its steps are events, and the end of a call passes through the code in it.

    output: characters of what a step may print or return. ended: what a function of the host has raised to end the run,
    which the code cannot handle.
    """

    def __init__(self, run: Run, output: int, **settings: Any) -> None:
        super().__init__(**settings)
        self._run = run
        self._most_output = output
        self._step = 0
        self.ended: BaseException | None = None

    def guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` as the code may call it."""

        @functools.wraps(function)
        def call(*args: Any, **arguments: Any) -> Any:
            try:
                self._run.check()
                return function(*args, **arguments)
            except Exception:
                raise
            except BaseException as error:
                self.ended = error
                raise

        return call

    def execute(self, code: str, variables: dict[str, Any] | None = None) -> Any:
        """Run a step, and return what DSPy expects of a sandbox."""
        self._run.check()
        if _HOST_TOKEN in (variables or ()):
            return self.install(code, variables)
        self._step += 1
        emit, step = self._run.context.emit, self._step
        emit("code", {"step": step, "code": code})
        try:
            result = super().execute(code, variables)  # type: ignore[misc]
        except Exception as error:
            self._end()
            self._run.check()
            emit("code_result", {"step": step, "output": self._cut(errors.text_of(error)), "is_error": True})
            raise
        self._end()
        if isinstance(result, str):
            result = self._cut(result)
        text = "" if result is None else self._cut(str(getattr(result, "output", result)))
        emit("code_result", {"step": step, "output": text, "is_error": False})
        return result

    def install(self, code: str, variables: Any) -> Any:
        """Run the code that makes `dspy` known, whose functions DSPy has added to the tools."""
        return super().execute(code, variables)  # type: ignore[misc]

    def _cut(self, text: str) -> str:
        return text if len(text) <= self._most_output else text[: self._most_output] + _CUT

    def _end(self) -> None:
        if self.ended is not None:
            raise self.ended


@contextmanager
def killed_at_end(run: Run, process: int | None) -> Iterator[None]:
    """Kill the process of a sandbox when the run's call ends inside the `with` statement."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(_POLL):
            try:
                run.check()
            except CallEnded:
                if process is not None and not is_over.is_set():
                    os.kill(process, signal.SIGKILL)
                return

    thread = threading.Thread(target=watch, name="bridge-sandbox", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
