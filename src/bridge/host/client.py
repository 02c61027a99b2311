"""A worker of one's own: starts it, talks to it from any thread, ends it."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import msgspec

from bridge import errors
from bridge._framing import DEFAULT_MAX_FRAME, Outbox, Reader, Writer, set_pipe_size
from bridge.codec import Format, by_first_byte, by_name
from bridge.messages import Answer

STOP_TIMEOUT = 3.0  # seconds; a worker's own grace period is 2 s


class Call:
    """One open call: what its caller waits on."""

    __slots__ = ("_answer", "_done", "_error")

    def __init__(self) -> None:
        self._done = threading.Event()
        self._answer: Answer | None = None
        self._error: errors.BridgeError | None = None

    def answered(self, answer: Answer) -> None:
        self._answer = answer
        self._done.set()

    def failed(self, error: errors.BridgeError) -> None:
        self._error = error
        self._done.set()

    def result(self, timeout: float | None) -> Any:
        """The command's result. Raises what it failed with, or TimeoutError."""
        if not self._done.wait(timeout):
            raise TimeoutError
        if self._error is not None:
            raise self._error
        assert self._answer is not None
        if self._answer.success:
            return self._answer.result
        answer = self._answer
        raise errors.from_reply(answer.code, answer.error, answer.category, answer.details)


class Client:
    """A worker process and the pipe to it. Usable from any number of threads.

    Make one with `Client.start()`; as a context manager it stops its worker at the end.
    """

    def __init__(self, process: subprocess.Popen[bytes], format: Format, max_frame: int) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._format = format
        self._formats = by_first_byte()
        self._writer = Writer(process.stdin.fileno())
        self._reader = Reader(process.stdout.fileno(), max_frame)
        self._max_frame = max_frame
        for stream in (process.stdin, process.stdout):
            set_pipe_size(stream.fileno())
        self._ids = itertools.count(1)
        self._calls: dict[int, Call] = {}
        self._lock = threading.Lock()
        self._gone: errors.WorkerCrashed | None = None
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
        timeout: float = 10.0,
    ) -> Client:
        """Start a worker, and wait until it answers.

        adapter: "dspy", "echo" or "module:attr". python: its interpreter. flags: further flags of
        `python -m bridge worker`. env: added to this process's environment. timeout: seconds.
        Raises WorkerCrashed (category initialization) with the way it ended.
        """
        chosen = by_name(format)
        if chosen is None:
            raise ValueError(f"no format {format!r}")
        command = [python, "-P", "-m", "bridge", "worker", "--adapter", adapter]
        command += ["--max-frame", str(max_frame), *flags]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
        client = cls(process, chosen, max_frame)
        try:
            client.call("ping", timeout=timeout)
        except errors.BridgeError as error:
            client.kill()
            failed = errors.WorkerCrashed(f"the worker did not start: {error}", **error.details)
            failed.category = "initialization"
            raise failed from error
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
    ) -> Any:
        """The result of `command`. timeout: seconds, None to wait forever.

        Raises the class of bridge.errors that belongs to the reply's code; DeadlineExceeded when
        the time is over (a later reply is dropped); WorkerCrashed when the worker is gone.
        """
        request_id, call = self._send(command, args, session_id)
        try:
            return call.result(timeout)
        except TimeoutError:
            raise errors.DeadlineExceeded(
                f"no reply to {command} within {timeout} s", timeout=timeout
            ) from None
        finally:
            self._calls.pop(request_id, None)

    def cast(self, command: str, args: Any = None, *, session_id: str | None = None) -> None:
        """Send `command` and do not wait; its reply is dropped. Raises WorkerCrashed."""
        request_id, _ = self._send(command, args, session_id)
        self._calls.pop(request_id, None)

    def stats(self) -> dict[str, Any]:
        """The worker's statistics: the result of `get_stats`."""
        result: dict[str, Any] = self.call("get_stats")
        return result

    def stop(self, timeout: float = STOP_TIMEOUT) -> int:
        """End the worker and wait for it, killing it after `timeout` seconds; its exit status."""
        with contextlib.suppress(errors.BridgeError):  # gone, or about to be: seen to below
            self.call("shutdown", timeout=timeout)
        return self._reap(timeout)

    def kill(self) -> int:
        """End the worker and its children at once; its exit status."""
        return self._reap(0.0)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _send(self, command: str, args: Any, session_id: str | None) -> tuple[int, Call]:
        request_id, call = next(self._ids), Call()
        request = {"id": request_id, "command": command, "args": {} if args is None else args}
        if session_id is not None:
            request["session_id"] = session_id
        outbox = self._encoded(request)
        with self._lock:
            if self._gone is not None:
                raise self._gone
            self._calls[request_id] = call
        try:
            self._writer.flush(outbox)
        except OSError as error:
            self._calls.pop(request_id, None)
            raise self._crashed() from error
        return request_id, call

    def _encoded(self, request: dict[str, Any]) -> Outbox:
        outbox = Outbox()
        try:
            outbox.append(self._format.encode_into, request)
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
        except (errors.BridgeError, OSError):
            pass  # the worker broke the stream: the same to every caller as its end
        with self._lock:
            self._gone = self._crashed()
            calls = list(self._calls.values())
        for call in calls:
            call.failed(self._gone)

    def _deliver(self, frame: Any) -> None:
        format = self._formats[memoryview(frame)[0]]
        try:
            answer: Answer = format.decode(frame, Answer)  # type: ignore[union-attr]
        except (AttributeError, ValueError, msgspec.MsgspecError):
            return  # not a reply: nobody waits for it
        call = self._calls.get(answer.id)  # type: ignore[arg-type]  # ours are all integers
        if call is not None:
            call.answered(answer)

    def _crashed(self) -> errors.WorkerCrashed:
        try:
            status = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return errors.WorkerCrashed("the worker closed its pipe")
        return errors.WorkerCrashed(f"the worker ended with status {status}", exit_status=status)

    def _reap(self, timeout: float) -> int:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
        self._router.join()  # it reads to the end of what the worker has sent
        process.stdout.close()
        return status
