"""Monty, with limits: the time and the memory of a step, and the length of its output."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dspy.primitives.code_interpreter import CodeExecutionError
from dspy_monty_interpreter import MontyInterpreter
from pydantic_monty import MontyError

from bridge.adapters.dspy.sandbox.lowering import SHIM, lowered
from bridge.adapters.dspy.sandbox.supervised import Supervised, killed_at_end

if TYPE_CHECKING:
    from bridge.adapters.dspy.current_run import Run

MEMORY = 128 << 20  # bytes of the values of the code


class MontySandbox(Supervised, MontyInterpreter):  # type: ignore[misc]  # which is not typed
    """A sandbox for one run, see `sandbox_factory`."""

    def __init__(self, run: Run, seconds: float, output: int, lowers: bool = False) -> None:
        limits = {"max_feed_duration_secs": seconds, "max_memory": MEMORY}
        super().__init__(run, output, resource_limits=limits)
        self._lowers = lowers

    def install(self, code: str, variables: Any) -> Any:
        return MontyInterpreter.execute(self, SHIM)

    def _ensure_session(self) -> Any:
        session = super()._ensure_session()
        return _Session(session, self._discard_session, self._run, self._most_output, self._lowers)


class _Session:
    """A session of Monty that drops output beyond a limit, and ends with the call of the run.

    discard: called when the process of the session has ended; the next step gets another one.
    """

    def __init__(self, session: Any, discard: Callable[[], None], run: Run, output: int, lowers: bool) -> None:
        self._session = session
        self._discard = discard
        self._run = run
        self._most = output
        self._lowers = lowers

    def feed_run(self, code: str, *, print_callback: Any, **settings: Any) -> Any:
        left, code = self._most, lowered(code) if self._lowers else code

        def write(stream: Any, text: str) -> None:
            nonlocal left
            if left >= 0:  # one character more tells that the output was longer
                print_callback(stream, text[: left + 1])
            left -= len(text)

        try:
            with killed_at_end(self._run, self._session.worker_pid):
                return self._session.feed_run(code, print_callback=write, **settings)
        except MontyError as error:
            if self._session.worker_pid is not None:
                raise
            # The process is gone: it has exceeded a limit, which the model may avoid in the next step.
            self._discard()
            raise CodeExecutionError(f"{error}; the sandbox was reset and all variables were lost") from error
