"""A worker process of your own: start it, call it from any thread, end it."""

from __future__ import annotations

import contextlib
import itertools
import logging
import sys
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn

from bridge import errors
from bridge._framing import (
    DEFAULT_MAX_FRAME,
    Frame,
    Outbox,
    buffers_of,
    envelope_beginning,
    envelope_of,
    is_multipart,
)
from bridge.host.calls import Call, CallTable, OnEvent, Stream
from bridge.host.connection import Connection
from bridge.host.frames import encoded
from bridge.host.launch import launch, not_started
from bridge.host.process import WorkerProcess
from bridge.host.timeouts import seconds_of
from bridge.host.tools import Callables, Tool, Tools, WrongArguments, error_text
from bridge.security.redaction import redact_in, shorten
from bridge.wire._limits import DEFAULT_MAX_VALUES, limited
from bridge.wire.codec import FORMATS, Format, by_name, format_of
from bridge.wire.messages import Incoming
from bridge.wire.tensors import resolve

STOP_TIMEOUT = 3.0  # seconds; a worker's own grace period is 2 s
LONGEST_ERROR = 1000  # characters of what a tool raises


class Client:
    """A worker process and the connection to it. Usable from any number of threads.

    Make one with `Client.start()`; as a context manager it stops its worker at the end. A client
    belongs to the process that started it: in a fork of that, every method raises RuntimeError.
    """

    def __init__(self, process: WorkerProcess, format: Format, max_frame: int, max_values: int) -> None:
        self._process = process
        self._format = format
        self._max_frame = max_frame
        self._max_values = max_values
        self._ids = itertools.count(1)
        self._tools = Tools()
        lock = threading.RLock()  # reentrant, because a destructor may send in the middle of a send
        self._table = CallTable(self._post, lock)
        self._calls = self._table.open
        self._connection = Connection(
            process, max_frame, self._deliver, self._refuse_unread, self._fail_open_calls, lock
        )

    @classmethod
    def start(
        cls,
        *,
        adapter: str = "dspy",
        python: str = sys.executable,
        flags: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        format: str = "msgpack",
        max_frame: int = DEFAULT_MAX_FRAME,
        max_values: int = DEFAULT_MAX_VALUES,
        tools: Callables = (),
        timeout: float | None = 10.0,
    ) -> Client:
        """Start a worker, and wait until it answers.

        adapter: "dspy", "echo" or "module:attr". python: its interpreter. flags: further flags of
        `python -m bridge worker`. env: added to this process's environment. max_frame, max_values:
        bytes and values that a frame may hold, both ways. tools: as for `register_tools`.
        timeout: seconds, None to wait forever.
        Raises WorkerCrashed (category initialization) with the way it ended and, in
        `details["stderr"]`, the last lines that it wrote there; TypeError and ValueError for
        options that are wrong.
        """
        chosen = by_name(format)
        if chosen is None:
            known = ", ".join(known.name for known in FORMATS)
            raise ValueError(f"no format {format!r}; known: {known}")
        seconds_of(timeout)
        process = launch(adapter, python, flags, env, max_frame, max_values)
        try:
            client = cls(process, chosen, max_frame, max_values)
        except BaseException:
            process.kill()
            raise
        try:
            client.call("hello", {"offers": {"buffers": True}}, timeout=timeout)
            if tools:
                client.register_tools(tools)
        except errors.BridgeError as error:
            client.kill()
            details = client._crash_details() | error.details
            raise not_started(errors.text_of(error), **details) from error
        except BaseException:
            client.kill()
            raise
        return client

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    def call(
        self,
        command: str,
        args: Any = None,
        *,
        timeout: float | None = 30.0,
        session_id: str | None = None,
        traceparent: str | None = None,
    ) -> Any:
        """Return the result of `command`. timeout: seconds, also for sending what the worker does
        not read; None to wait forever. traceparent: of the caller's span, as W3C Trace Context
        writes it.

        Raises the class of bridge.errors that belongs to the reply's code; DeadlineExceeded when
        the time is over (the call is cancelled, a later reply is dropped); WorkerCrashed when the
        worker is gone. A caller that gives up, by KeyboardInterrupt say, cancels the call.
        """
        call, request = self._request(command, args, timeout, session_id, traceparent)
        self._send(call, request)
        try:
            return call.result()
        except BaseException:
            call.cancel()
            raise

    def submit(
        self,
        command: str,
        args: Any = None,
        *,
        timeout: float | None = None,
        session_id: str | None = None,
        on_event: OnEvent | None = None,
        timing: bool = False,
        traceparent: str | None = None,
    ) -> Call:
        """Start `command` and go on: a future of its result, with cancel().

        timeout: seconds until the call ends, sending included. on_event(event, data): called for
        each event, one after the other, on a thread of the call's; what it raises ends the call.
        timing: fill the future's `timing`. traceparent: as for `call`.
        Raises as `call` does where the request cannot be sent.
        """
        call, request = self._request(command, args, timeout, session_id, traceparent, stream=on_event is not None)
        if timing:
            request["timing"] = True
        self._send(call, request, on_event)
        return call

    def stream(
        self,
        command: str,
        args: Any = None,
        *,
        timeout: float | None = None,
        session_id: str | None = None,
        traceparent: str | None = None,
    ) -> Stream:
        """Start `command` and iterate over its events. The options are those of `submit`."""
        call, request = self._request(command, args, timeout, session_id, traceparent, stream=True)
        self._send(call, request)
        return Stream(call)

    def register_tools(self, tools: Callables, *, session_id: str | None = None) -> None:
        """Offer Python functions to the session's programs, by their names.

        Their annotations and docstrings are what the language model sees; its arguments are
        converted to the annotated types. They run on threads of their own, at any time, and may
        call this client. Raises TypeError for what cannot be a tool.
        """
        self._table.check_process()
        known = [Tool(function) for function in tools]
        self.call("hello", {"offers": {"tools": True, "buffers": True}})
        declared = [tool.declaration for tool in known]
        done = self.call("register_tools", {"tools": declared}, session_id=session_id)
        self._tools.add(done["session_id"], known)

    def cast(self, command: str, args: Any = None, *, session_id: str | None = None) -> None:
        """Send `command` and do not wait for its reply, which is dropped. Raises WorkerCrashed."""
        call, request = self._request(command, args, None, session_id)
        self._send(call, request)
        self._table.claim(call)

    def stats(self) -> dict[str, Any]:
        """Return the worker's statistics: the result of `get_stats`."""
        result: dict[str, Any] = self.call("get_stats")
        return result

    def stop(self, timeout: float | None = STOP_TIMEOUT) -> int:
        """End the worker: close its pipe, so that open calls get its grace period, and wait.

        After `timeout` seconds it is killed, with its children, and at once where the interpreter
        is ending. Returns its exit status. Calls after this raise WorkerCrashed.
        """
        self._table.check_process()
        self._connection.close("the client was stopped", seconds_of(timeout))
        assert self._process.exit_status is not None
        return self._process.exit_status

    def kill(self) -> int:
        """End the worker and its children at once; return its exit status."""
        return self.stop(0.0)

    def __enter__(self) -> Client:
        self._table.check_process()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._table.is_usable_here:  # a fork must not end the worker of its parent
            self.stop()

    def __repr__(self) -> str:
        state = self._connection.end_reason or "running"
        if not self._table.is_usable_here:
            state = "of another process"
        return f"<Client pid={self.pid} format={self._format.name}: {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Client cannot be pickled: start one in each process")

    def _request(
        self,
        command: str,
        args: Any,
        timeout: float | None,
        session_id: str | None,
        traceparent: str | None = None,
        stream: bool = False,
    ) -> tuple[Call, dict[str, Any]]:
        """A call that is not open yet, and the envelope of its request."""
        self._table.check_process()
        if sys.is_finalizing():  # the threads that would take in the reply are gone
            raise RuntimeError("a Client cannot call its worker while the interpreter is ending")
        seconds = seconds_of(timeout)
        call = Call(self._table, next(self._ids), command, seconds, has_events=stream)
        request = {"id": call.id, "command": command, "args": {} if args is None else args}
        if session_id is not None:
            request["session_id"] = session_id
        if seconds is not None:
            request["timeout_ms"] = seconds * 1000
        if stream:
            request["stream"] = True
        if traceparent is not None:
            request["traceparent"] = traceparent
        return call, request

    def _send(self, call: Call, request: dict[str, Any], on_event: OnEvent | None = None) -> None:
        outbox = self._encoded(request, "args")
        self._calls[call.id] = call
        try:
            if on_event is not None:
                call.listen(on_event)
            self._connection.send(outbox, call.deadline)
        except TimeoutError:
            call.end_late()
            call.result()
        except ConnectionError as error:
            self._connection.wait_until_lost()
            call.fail(self._crashed())
            raise self._crashed() from error
        except BaseException:
            call.cancel()
            raise

    def _post(self, command: str, args: dict[str, Any]) -> None:
        request = {"id": next(self._ids), "command": command, "args": args}
        self._connection.post(self._encoded(request, "args"))

    def _encoded(self, message: dict[str, Any], name: str) -> Outbox:
        return encoded(message, name, self._format, self._max_frame)

    def _deliver(self, frame: Frame) -> None:
        """Hand a frame to the call that it belongs to. Raises InvalidFrame if that is not known."""
        envelope, format = frame, None
        try:
            has_buffers = is_multipart(frame)
            if has_buffers:
                envelope = envelope_of(frame)
            format = format_of(envelope)
            envelope = limited(envelope, self._max_frame, self._max_values)
            incoming: Incoming = format.decode(envelope, Incoming)  # type: ignore[union-attr]
            if has_buffers:
                _resolve(incoming, buffers_of(frame))
        except Exception as error:
            self._refuse(format, envelope, error)
            return
        if incoming.command is not None:
            self._answer_elsewhere(incoming)
        elif incoming.event is not None:
            call = self._calls.get(incoming.id)  # type: ignore[arg-type]  # ours are integers
            if call is not None:
                call.happen(incoming.event, incoming.data)
        elif incoming.id is None:
            self._take_blame(incoming)
        else:
            call = self._calls.get(incoming.id)  # type: ignore[arg-type]
            if call is not None:
                call.settle(incoming)

    def _refuse(self, format: Format | None, frame: Frame, error: Exception) -> None:
        """Fail the call that an unreadable frame answers. Raises InvalidFrame if there is none."""
        text = f"{type(error).__name__}: {errors.text_of(error)}"
        if format is None and not isinstance(error, errors.BridgeError):
            text = f"{bytes(memoryview(frame)[:2])!r} begins no message of a known format"
        call = self._calls.get(format.find_id(frame)) if format else None  # type: ignore[arg-type]
        if call is None:
            raise errors.InvalidFrame(text) from error
        if not isinstance(error, errors.FrameTooLarge | errors.Overloaded):
            error = errors.InvalidFrame(f"the reply does not decode: {text}")
        if call.fail(error):
            self._post("cancel", {"id": call.id})  # where the frame was an event

    def _refuse_unread(self, beginning: Frame, error: errors.BridgeError) -> None:
        envelope = envelope_beginning(beginning)
        self._refuse(format_of(envelope), envelope, error)

    def _take_blame(self, refusal: Incoming) -> None:
        """Take in the refusal of a frame whose id the worker could not read."""
        error = errors.from_reply(refusal.code, refusal.error, refusal.category, refusal.details)
        if len(self._calls) == 1:
            for call in list(self._calls.values()):
                call.fail(error)
        else:
            _log.error("the worker refused a frame; a call will have no reply: %s", error)

    def _answer_elsewhere(self, question: Incoming) -> None:
        try:
            self._table.threads.run(lambda: self._answer(question))
        except RuntimeError as error:
            reply = _failure(question, errors.Overloaded(f"the host: {error}"))
            self._connection.post(self._encoded(reply, "error"))

    def _answer(self, question: Incoming) -> None:
        """Answer a call of the worker's, whatever a tool does."""
        try:
            if question.command != "call_tool":
                raise errors.UnknownCommand(f"Unknown command: {question.command}")
            result = self._tools.call(question.args)
            reply = {"id": question.id, "success": True, "result": result}
            outbox = self._encoded(reply, "result")
        except BaseException as error:
            outbox = self._encoded(_failure(question, error), "error")
            if not isinstance(error, WrongArguments):  # which is the model's mistake
                with contextlib.suppress(Exception):  # a handler's; the answer has to leave
                    _log.exception("tool %s failed", question.args.get("name"))
        with contextlib.suppress(OSError):  # the worker is gone
            self._connection.send(outbox)

    def _fail_open_calls(self) -> None:
        for call in list(self._calls.values()):
            call.fail(self._crashed())

    def _crashed(self) -> errors.WorkerCrashed:
        return errors.WorkerCrashed(self._connection.end_reason or "", **self._crash_details())

    def _crash_details(self) -> dict[str, Any]:
        details: dict[str, Any] = {"exit_status": self._process.exit_status}
        last_lines = self._process.last_lines()
        if last_lines:
            details["stderr"] = redact_in(last_lines)
        return details


def _failure(question: Incoming, error: BaseException) -> dict[str, Any]:
    """The reply to a call of the worker's that failed."""
    code = error.code if isinstance(error, errors.BridgeError) else errors.HandlerError.code
    text = shorten(error_text(error), LONGEST_ERROR).encode("utf-8", "replace").decode()
    return {"id": question.id, "success": False, "error": text, "code": code}


def _resolve(incoming: Incoming, buffers: tuple[Frame, ...]) -> None:
    incoming.result = resolve(incoming.result, buffers)
    incoming.data = resolve(incoming.data, buffers)
    incoming.args = resolve(incoming.args, buffers)


_log = logging.getLogger("bridge")
