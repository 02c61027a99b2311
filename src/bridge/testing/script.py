"""What a test wants its mock to answer, and what the mock was asked."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from bridge import errors

ToolCalls = Iterable[tuple[str, Mapping[str, Any]]]

# Commands that clients send by themselves.
HOUSEKEEPING = frozenset({"cancel", "hello", "pause", "resume"})


class Recorded(NamedTuple):
    """A request that a mock has received. args: as they were sent, None if they cannot be decoded."""

    command: str
    args: Any
    session_id: str | None


class Script:
    """The answers that a test has set, and the requests that have arrived. Usable from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._outputs: dict[tuple[str | None, str], list[Any]] = {}
            self._results: dict[str, Any] = {}
            self._errors: dict[str, tuple[errors.BridgeError, int | None]] = {}
            self._delays: dict[str, float] = {}
            self._tool_calls: dict[str | None, list[tuple[str, dict[str, Any]]]] = {}
            self._requests: list[Recorded] = []

    def set_outputs(self, field: str, values: list[Any], program_id: str | None) -> None:
        """Give `values` to the next runs, one to each; the last one to all further runs."""
        if not values:
            raise ValueError(f"at least one value is needed for {field!r}")
        with self._lock:
            self._outputs[program_id, field] = values

    def output(self, program_id: str, field: str, inputs: dict[str, Any]) -> list[Any]:
        """Return the value of an output field in a list, which is empty if the test has set none."""
        with self._lock:
            values = self._outputs.get((program_id, field)) or self._outputs.get((None, field))
            if values is None:
                return []
            value = values.pop(0) if len(values) > 1 else values[0]
        return [value(inputs) if callable(value) else value]

    def set_result(self, command: str, result: Any) -> None:
        with self._lock:
            self._results[command] = result

    def has_result(self, command: str) -> bool:
        return command in self._results

    def result(self, command: str, args: Any) -> Any:
        """Return the result that the test has set for a command."""
        result = self._results[command]
        return result(args) if callable(result) else result

    def set_error(self, command: str, error: errors.BridgeError | None, times: int | None) -> None:
        with self._lock:
            if error is None:
                self._errors.pop(command, None)
            else:
                self._errors[command] = (error, times)

    def raise_error(self, command: str) -> None:
        """Raise the error that the test has set for a command, if any."""
        with self._lock:
            if command not in self._errors:
                return
            error, times = self._errors[command]
            if times == 1:
                del self._errors[command]
            elif times is not None:
                self._errors[command] = (error, times - 1)
        raise error

    def set_delay(self, command: str, seconds: float) -> None:
        with self._lock:
            self._delays[command] = seconds

    def delay(self, command: str) -> float:
        """Return for how many seconds a call takes."""
        return self._delays.get(command, 0.0)

    def set_tool_calls(self, calls: ToolCalls, program_id: str | None) -> None:
        with self._lock:
            self._tool_calls[program_id] = [(name, dict(args)) for name, args in calls]

    def tool_calls(self, program_id: str) -> list[tuple[str, dict[str, Any]]] | None:
        """Return the calls of tools in a run, None if the test has set none."""
        with self._lock:
            return self._tool_calls.get(program_id, self._tool_calls.get(None))

    def record(self, request: Recorded) -> None:
        with self._lock:
            self._requests.append(request)

    def requests(self, command: str | None) -> list[Recorded]:
        """Return the requests of a command, or all that clients do not send by themselves."""
        with self._lock:
            return [each for each in self._requests if _is_wanted(each.command, command)]


def _is_wanted(name: str, command: str | None) -> bool:
    return name not in HOUSEKEEPING if command is None else name == command
