"""A host that runs DSPy programs in a worker over pipes, answers its calls, and keeps its events."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from peer import Peer

QA = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]}


class DspyWorker:
    """A worker with the DSPy adapter. events: of the last call, as (name, data). host_calls: those that it has made.

    answers: what to answer the worker's calls with: a value or a function of the args for each command; an exception is
    an error.
    """

    def __init__(self, *flags: str) -> None:
        self.peer = Peer(*flags, adapter="dspy")
        self.events: list[tuple[str, Any]] = []
        self.host_calls: list[tuple[str, Any]] = []
        self.answers: dict[str, Any] = {}
        self._ids = itertools.count(1)
        self.peer.call("hello", {"offers": {"tools": True}})

    def call(
        self,
        command: str,
        session: str = "s",
        during: Callable[[int], None] | None = None,
        timeout_ms: int | None = None,
        **args: Any,
    ) -> Any:
        """Return the whole reply. during(id): called when the first event arrives."""
        limit = {} if timeout_ms is None else {"timeout_ms": timeout_ms}
        call_id = next(self._ids)
        self.events, self.host_calls = [], []
        self.peer.send(
            {"id": call_id, "command": command, "args": args, "session_id": session, "stream": True, **limit}
        )
        while True:
            message = self.peer.receive()
            if "command" in message:
                self._answer(message)
            elif "event" in message:
                self.events.append((message["event"], message["data"]))
                if during is not None:
                    during(call_id)
                    during = None
            elif message["id"] == call_id:
                return message

    def ask(self, command: str, **args: Any) -> Any:
        """Return the result."""
        reply = self.call(command, **args)
        assert reply["success"], reply
        return reply["result"]

    def refused(self, command: str, **args: Any) -> tuple[str, str, Any]:
        """Return the code, the text and the path of the error."""
        reply = self.call(command, **args)
        assert not reply["success"], reply
        return reply["code"], reply["error"], reply["details"].get("path")

    def script(self, *answers: Any, **args: Any) -> None:
        """Set the session's model: one that gives these answers."""
        self.ask("configure_lm", provider="scripted", answers=[*answers], **args)

    def create(self, program_type: str, signature: Any = QA, **args: Any) -> Any:
        """Create the program `p`, or replace it."""
        args = {"id": "p", "if_exists": "replace", **args}
        return self.ask("create_program", program_type=program_type, signature=signature, **args)

    def run(self, question: Any = "Where?", **args: Any) -> Any:
        """Return the outputs of the program `p`."""
        args = {"program_id": "p", "inputs": {"question": question}, **args}
        return self.ask("execute_program", **args)["outputs"]

    def named(self, event: str) -> list[Any]:
        """Return the data of the events of this name."""
        return [data for name, data in self.events if name == event]

    def _answer(self, message: Any) -> None:
        self.host_calls.append((message["command"], message["args"]))
        answer = self.answers[message["command"]]
        answer = answer(message["args"]) if callable(answer) else answer
        if isinstance(answer, Exception):
            reply = {"id": message["id"], "success": False, "error": str(answer), "code": "handler_error"}
        else:
            reply = {"id": message["id"], "success": True, "result": answer}
        self.peer.send(reply)
