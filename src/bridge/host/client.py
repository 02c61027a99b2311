"""A worker of one's own: starts it, talks to it from any thread, ends it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import msgspec

from bridge import errors
from bridge._apart import FORGED, LONG, OTHER, apart_in
from bridge._framing import (
    DEFAULT_MAX_FRAME,
    Frame,
    Outbox,
    Reader,
    Writer,
    buffers_of,
    envelope_of,
    is_multipart,
    set_pipe_size,
)
from bridge.codec import Format, by_name, format_of
from bridge.host.calls import Call, OnEvent, Stream
from bridge.host.tools import Callables, Tools, described
from bridge.messages import Incoming
from bridge.tensors import collecting, resolve, set_apart

SLACK = 0.25  # seconds that a call waits beyond its timeout for the worker to say so itself
LONGEST_ERROR = 1000  # characters of what a tool raises
STOP_TIMEOUT = 3.0  # seconds; a worker's own grace period is 2 s


class Client:
    """A worker process and the pipe to it. Usable from any number of threads.

    Make one with `Client.start()`; as a context manager it stops its worker at the end.
    """

    def __init__(self, process: subprocess.Popen[bytes], format: Format, max_frame: int) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._format = format
        self._writer = Writer(process.stdin.fileno())
        self._reader = Reader(process.stdout.fileno(), max_frame)
        self._max_frame = max_frame
        for stream in (process.stdin, process.stdout):
            set_pipe_size(stream.fileno())
        self._ids = itertools.count(1)
        self._calls: dict[int, Call] = {}
        self._tools = Tools()
        self._lock = threading.Lock()
        # Held while something is written, so that the descriptor is not closed meanwhile.
        self._writing = threading.Lock()
        self._gone: str | None = None  # why there is no worker any more
        self._exit_status: int | None = None
        self._router = threading.Thread(target=self._route, name="bridge-client", daemon=True)
        self._router.start()

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
        tools: Callables = (),
        timeout: float = 10.0,
    ) -> Client:
        """Start a worker, and wait until it answers.

        adapter: "dspy", "echo" or "module:attr". python: its interpreter. flags: further flags of
        `python -m bridge worker`. env: added to this process's environment. tools: as for
        `register_tools`. timeout: seconds.
        Raises WorkerCrashed (category initialization) with the way it ended.
        """
        chosen = by_name(format)
        if chosen is None:
            raise ValueError(f"no format {format!r}")
        if not 4096 <= max_frame <= 1 << 30:
            raise ValueError(f"max_frame is 4096 to 1073741824 bytes, not {max_frame}")
        command = [python, "-P", "-m", "bridge", "worker", "--adapter", adapter]
        command += ["--max-frame", str(max_frame), *flags]
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        except OSError as error:
            raise _not_started(f"{python}: {error.strerror}") from error
        client = cls(process, chosen, max_frame)
        try:
            client.call("hello", {"offers": {"buffers": True}}, timeout=timeout)
            if tools:
                client.register_tools(tools)
        except errors.BridgeError as error:
            client.kill()
            raise _not_started(str(error), **error.details) from error
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
        """The result of `command`. timeout: seconds, None to wait forever. traceparent: of the
        caller's span, as W3C Trace Context writes it.

        Raises the class of bridge.errors that belongs to the reply's code; DeadlineExceeded when
        the time is over (the worker is told, a later reply is dropped); WorkerCrashed when the
        worker is gone. A caller that gives up, by KeyboardInterrupt say, cancels the call.
        """
        call = self.submit(
            command, args, timeout=timeout, session_id=session_id, traceparent=traceparent
        )
        try:
            return call.result(None if timeout is None else timeout + SLACK)
        except concurrent.futures.TimeoutError:
            call.cancel()
            raise errors.DeadlineExceeded(
                f"no reply to {command} within {timeout} s", timeout=timeout
            ) from None
        except BaseException:
            call.cancel()
            raise
        finally:
            self._calls.pop(call.id, None)

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

        timeout: seconds until the worker ends it. on_event(event, data): called on the client's
        own thread for each event; it must not wait. timing: fill the future's `timing`.
        traceparent: as for `call`.
        """
        envelope: dict[str, Any] = {}
        if timeout is not None:
            envelope["timeout_ms"] = timeout * 1000
        if on_event is not None:
            envelope["stream"] = True
        if timing:
            envelope["timing"] = True
        if traceparent is not None:
            envelope["traceparent"] = traceparent
        return self._send(command, args, session_id, on_event, envelope)

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
        return Stream(
            lambda put: self.submit(
                command,
                args,
                timeout=timeout,
                session_id=session_id,
                on_event=put,
                traceparent=traceparent,
            ),
            self,
        )

    def register_tools(self, tools: Callables, *, session_id: str | None = None) -> None:
        """Offer plain functions to the session's programs, by their names.

        Their annotations and docstrings are what the language model sees. They run on threads of
        their own, at any time, and may call this client. Raises TypeError for what is no tool.
        """
        callables = list(tools)
        declared = [described(function) for function in callables]
        self.call("hello", {"offers": {"tools": True, "buffers": True}})
        done = self.call("register_tools", {"tools": declared}, session_id=session_id)
        self._tools.add(done["session_id"], callables)

    def cast(self, command: str, args: Any = None, *, session_id: str | None = None) -> None:
        """Send `command` and do not wait; its reply is dropped. Raises WorkerCrashed."""
        call = self._send(command, args, session_id, None, {})
        self._calls.pop(call.id, None)

    def stats(self) -> dict[str, Any]:
        """The worker's statistics: the result of `get_stats`."""
        result: dict[str, Any] = self.call("get_stats")
        return result

    def stop(self, timeout: float = STOP_TIMEOUT) -> int:
        """End the worker: close its pipe, so that open calls get its grace period, and wait.

        After `timeout` seconds it is killed, with its children. Its exit status. Calls after this
        raise WorkerCrashed.
        """
        process, deadline = self._process, time.monotonic() + timeout
        assert process.stdin is not None
        assert process.stdout is not None
        with self._lock:
            self._gone = self._gone or "the client was stopped"
        # A worker that does not read holds up who writes to it, until it is gone.
        if self._writing.acquire(timeout=timeout):
            process.stdin.close()
            self._writing.release()
        try:
            status = process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):  # it has ended just now
                os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
        with self._writing:
            process.stdin.close()
        self._router.join()  # it reads to the end of what the worker has sent
        process.stdout.close()
        return status

    def kill(self) -> int:
        """End the worker and its children at once; its exit status."""
        return self.stop(0.0)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _send(
        self,
        command: str,
        args: Any,
        session_id: str | None,
        on_event: OnEvent | None,
        envelope: dict[str, Any],
    ) -> Call:
        call = Call(self, next(self._ids), on_event)
        request = {"id": call.id, "command": command, "args": {} if args is None else args}
        if session_id is not None:
            request["session_id"] = session_id
        outbox = self._encoded(request | envelope)
        with self._lock:
            if self._gone is not None:
                raise self._crashed()
            self._calls[call.id] = call
        try:
            self._write(outbox)
        except OSError as error:
            self._calls.pop(call.id, None)
            self._lost()
            raise self._crashed() from error
        return call

    def _write(self, outbox: Outbox) -> None:
        """Send frames. Raises OSError, also where the pipe was closed meanwhile."""
        assert self._process.stdin is not None
        with self._writing:
            if self._process.stdin.closed:
                raise BrokenPipeError(errno.EPIPE, "the pipe to the worker is closed")
            self._writer.flush(outbox)

    def _encoded(self, request: dict[str, Any]) -> Outbox:
        outbox = Outbox()
        buffers: list[Any] = []
        try:
            found = apart_in(request)
            if not found & (LONG | OTHER):
                outbox.append(self._format.encode_into, request)
            elif found & FORGED:
                raise ValueError("a map of $buffer or $tensor alone is how arrays are named")
            else:
                encode_into = collecting(self._format.encode_into, buffers)
                outbox.append_multipart(encode_into, set_apart(request), buffers)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise errors.NotEncodable(f"args are no {self._format.name}: {error}") from error
        if len(outbox) - 4 > self._max_frame:
            raise errors.FrameTooLarge.announced(len(outbox) - 4, self._max_frame)
        return outbox

    def _route(self) -> None:
        """Hand each reply to the call it belongs to, until the stream ends."""
        try:
            while (frame := self._reader.read()) is not None:
                if len(frame):
                    self._deliver(frame)
                del frame  # it may be large, and the next may be long in coming
        except (errors.BridgeError, OSError):
            pass  # the worker broke the stream: the same to every caller as its end
        finally:
            self._lost()
            while self._calls:
                with contextlib.suppress(KeyError, concurrent.futures.InvalidStateError):
                    self._calls.popitem()[1].set_exception(self._crashed())

    def _lost(self) -> None:
        """The worker is gone, or about to be: find out how."""
        reason = "the worker closed its pipe"
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._exit_status = self._process.wait(1.0)
            reason = f"the worker ended with status {self._exit_status}"
        with self._lock:
            self._gone = self._gone or reason

    def _deliver(self, frame: Any) -> None:
        envelope, format = frame, None
        try:
            if is_multipart(frame):
                envelope = envelope_of(frame)
            format = format_of(envelope)
            incoming: Incoming = format.decode(envelope, Incoming)  # type: ignore[union-attr]
            if envelope is not frame:
                _resolve(incoming, buffers_of(frame))
        except (AttributeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            self._unreadable(format, envelope, error)
            return
        if incoming.command is not None:
            thread = threading.Thread(target=self._answer, args=(incoming,), daemon=True)
            thread.start()
        elif incoming.event is not None:
            call = self._calls.get(incoming.id)  # type: ignore[arg-type]  # ours are integers
            if call is not None:
                call.happen(incoming.event, incoming.data)
        else:
            call = self._calls.pop(incoming.id, None)  # type: ignore[arg-type]
            if call is not None:
                call.settle(incoming)

    def _answer(self, question: Incoming) -> None:
        """Answer a call of the worker's."""
        try:
            if question.command != "call_tool":
                raise errors.UnknownCommand(f"Unknown command: {question.command}")
            result = self._tools.call(question.args)
            outbox = self._encoded({"id": question.id, "success": True, "result": result})
        except Exception as raised:
            error = raised
            if not isinstance(error, errors.BridgeError):
                error = errors.HandlerError(f"{type(raised).__name__}: {raised}")
            text = str(error)[:LONGEST_ERROR].encode("utf-8", "replace").decode()
            outbox = self._encoded(
                {"id": question.id, "success": False, "error": text, "code": error.code}
            )
        with contextlib.suppress(OSError):  # the worker is gone
            self._write(outbox)

    def _unreadable(self, format: Format | None, frame: Any, error: Exception) -> None:
        """Fail the call that the frame answers, if that can be read of it."""
        call = self._calls.pop(format.find_id(frame), None) if format else None  # type: ignore[arg-type]
        if call is not None:
            call.set_exception(errors.InvalidFrame(f"the reply does not decode: {error}"))

    def _crashed(self) -> errors.WorkerCrashed:
        return errors.WorkerCrashed(self._gone or "", exit_status=self._exit_status)


def _resolve(incoming: Incoming, buffers: tuple[Frame, ...]) -> None:
    incoming.result = resolve(incoming.result, buffers)
    incoming.data = resolve(incoming.data, buffers)
    incoming.args = resolve(incoming.args, buffers)


def _not_started(reason: str, **details: Any) -> errors.WorkerCrashed:
    error = errors.WorkerCrashed(f"the worker did not start: {reason}", **details)
    error.category = "initialization"
    return error
