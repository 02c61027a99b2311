"""The client of a worker: start it or connect to it, call it from any thread, stop it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, NoReturn

from bridge import errors
from bridge.host.calls import Call, OnEvent, Stream
from bridge.host.connect import PAUSE, Attempt
from bridge.host.connection import Settings
from bridge.host.functions import NONE, Named, functions
from bridge.host.launch import launch
from bridge.host.open_calls import OpenCall
from bridge.host.threaded import ThreadedConnection
from bridge.host.timeouts import START_TIMEOUT, seconds_of
from bridge.host.tools import Callables, Tool
from bridge.host.worker import Worker
from bridge.options import DEFAULT_MAX_FRAME, DEFAULT_MAX_VALUES

STOP_TIMEOUT = 3.0  # seconds; the worker's own grace period is 2 s


class Client:
    """A worker and the connection to it. Usable from any number of threads.

    Make one with `Client.start()` or `Client.connect()`. As a context manager it stops its worker
    at the end. A client belongs to the process that made it: in a fork of that process, every
    method raises RuntimeError.
    """

    def __init__(self, connection: ThreadedConnection) -> None:
        self._connection = connection

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
        logs: Literal["stderr", "logging"] = "stderr",
        timeout: float | None = START_TIMEOUT,
    ) -> Client:
        """Start a worker, and wait until it answers.

        adapter: "dspy", "echo" or "module:attr". python: the worker's interpreter. flags: further
        flags of `python -m bridge worker`. env: variables added to this process's environment.
        format: "json", "msgpack" or "etf". max_frame: bytes in a frame, in both directions.
        max_values: values in a frame, in both directions. tools: passed to `register_tools`. logs:
        where the worker's logs go once it runs: to this process's stderr, or to the loggers of
        `logging` that have the names of the worker's. timeout: seconds, None to wait forever.
        Raises WorkerCrashed (category initialization) with the way the worker ended and, in
        `details["stderr"]`, the last lines of its output; TypeError and ValueError for invalid
        options.
        """
        settings = Settings.checked(format, max_frame, max_values, logs)
        seconds_of(timeout)
        return cls._of(launch(adapter, python, flags, env, max_frame, max_values), settings, tools, timeout)

    @classmethod
    def connect(
        cls,
        address: str,
        *,
        format: str = "msgpack",
        max_frame: int = DEFAULT_MAX_FRAME,
        max_values: int = DEFAULT_MAX_VALUES,
        tools: Callables = (),
        logs: Literal["stderr", "logging"] = "stderr",
        timeout: float | None = START_TIMEOUT,
    ) -> Client:
        """Connect to a server of workers, and wait until the worker that it provides answers.

        address: "unix:" and the path of the server's socket. Each client has a worker of its own,
        which ends with the connection. logs: "stderr" leaves the worker's logs to the server. The
        other options are those of `start`; the server has limits of its own, and the client sends no
        longer frames than the server accepts.
        Raises WorkerCrashed (category initialization) with the reason and what to do; the worker's
        own error if it answers with one, such as Overloaded; TypeError and ValueError for invalid
        options.
        """
        settings = Settings.checked(format, max_frame, max_values, logs)
        return cls._connected(Attempt(address, seconds_of(timeout)), settings, tools)

    @classmethod
    def _connected(cls, attempt: Attempt, settings: Settings, tools: Callables) -> Client:
        """Return a client of a worker that an attempt reaches. Raises the errors of `connect`."""
        while (worker := attempt.connect()) is None:
            time.sleep(PAUSE)
        return cls._of(worker, settings, tools, attempt.seconds_left)

    @classmethod
    def _of(cls, worker: Worker, settings: Settings, tools: Callables, timeout: float | None) -> Client:
        """Return a client of a worker that has answered it. Raises the errors of `start` or `connect`."""
        try:
            client = cls(ThreadedConnection(worker, settings))
        except BaseException as error:
            worker.discard()
            if isinstance(error, OSError):
                worker.fail_start(error)
            raise
        try:
            hello = client.call("hello", {"offers": client._connection.offers}, timeout=timeout)
            client._connection.introduce(hello)
            if tools:
                client.register_tools(tools)
        except BaseException as error:
            client.kill()
            if isinstance(error, errors.BridgeError):
                worker.fail_start(error)
            raise
        return client

    @property
    def pid(self) -> int | None:
        """Return the worker's process id; None for a connection whose worker has not reported it."""
        return self._connection.worker.pid

    def call(
        self,
        command: str,
        args: Any = None,
        *,
        timeout: float | None = 30.0,
        session_id: str | None = None,
        traceparent: str | None = None,
    ) -> Any:
        """Call `command`, and return its result.

        timeout: seconds, including the time to send the request; None to wait forever.
        traceparent: the caller's span, in W3C Trace Context format.
        Raises the class of bridge.errors that belongs to the reply's code; DeadlineExceeded after
        `timeout` (the call is cancelled, a later reply is dropped); WorkerCrashed if the worker has
        ended. If the caller is interrupted, as by KeyboardInterrupt, the call is cancelled.
        """
        call = self._open(command, timeout)
        try:
            self._connection.start(call, args, session_id, traceparent)
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
        """Start `command`, and return a future of its result, which can be cancelled.

        timeout: seconds until the call ends, including the time to send the request.
        on_event(event, data): called for each event, in order, on a separate thread; an exception
        that it raises ends the call. timing: fill the future's `timing`. traceparent: the caller's
        span, in W3C Trace Context format.
        Raises the errors of `call` if the request cannot be sent.
        """
        has_events = on_event is not None
        call = self._open(command, timeout, has_events=has_events, caller_waits=has_events)
        future = Call(call, self._connection.worker, self._connection.threads)
        self._connection.start(call, args, session_id, traceparent, timing)
        if on_event is not None:
            self._connection.listen(future, call, on_event)
        return future

    def stream(
        self,
        command: str,
        args: Any = None,
        *,
        timeout: float | None = None,
        session_id: str | None = None,
        traceparent: str | None = None,
    ) -> Stream:
        """Start `command`, and return its events to iterate over. The options are those of `submit`."""
        call = self._open(command, timeout, has_events=True)
        stream = Stream(call, self._connection.worker, self._connection.threads)  # which cancels the call at its end
        self._connection.start(call, args, session_id, traceparent)
        return stream

    def register_tools(self, tools: Callables, *, session_id: str | None = None) -> None:
        """Offer Python functions to the session's programs, by their names.

        The language model sees their annotations and docstrings; its arguments are converted to the
        annotated types. The functions run on separate threads, at any time, and may call this
        client. Raises TypeError for a callable that cannot be a tool.
        """
        self._connection.worker.check_own()
        known = [Tool(function) for function in tools]
        self._connection.offers["tools"] = True
        self.call("hello", {"offers": self._connection.offers})
        declared = [tool.declaration for tool in known]
        done = self.call("register_tools", {"tools": declared}, session_id=session_id)
        self._connection.functions.add(done["session_id"], known)

    def register(
        self,
        *,
        models: Named = NONE,
        metrics: Named = NONE,
        rewards: Named = NONE,
        embedders: Named = NONE,
        session_id: str | None = None,
    ) -> None:
        """Let the session's programs call Python functions, by the names under which they are given.

        A function takes parts of the worker's request by the names of its parameters, all of it as `request`. It runs
        on a separate thread, at any time, and may call this client.
        models: run a completion for the model `host/NAME`. Parameters: messages, settings, tools, tool_choice,
        response_format, stream. They return the text, or a map with `text` and optionally `usage`, `finish_reason` and
        `tool_calls`, or an iterator of pieces of the text, which are streamed, and of maps of the rest.
        metrics: score an output, for the metric {"host": NAME}. Parameters: inputs, expected, outputs, trace. They
        return a number, a boolean, or a map with `score` and `feedback`.
        rewards: rate an output, for the reward {"host": NAME}. Parameters: inputs, outputs. They return a number.
        embedders: take `texts` and return a vector for each, as a list or an array.
        Raises TypeError for what cannot be called in this way.
        """
        self._connection.worker.check_own()
        known = functions(models, metrics, rewards, embedders)
        self._connection.offers["tools"] = True
        self.call("hello", {"offers": self._connection.offers})
        self._connection.functions.add(session_id, known)

    def cast(self, command: str, args: Any = None, *, session_id: str | None = None) -> None:
        """Send `command` without waiting for its reply, which is dropped. Raises WorkerCrashed."""
        self._connection.start(self._open(command, None, caller_waits=False), args, session_id, None)

    def stats(self) -> dict[str, Any]:
        """Return the worker's statistics: the result of `get_stats`."""
        result: dict[str, Any] = self.call("get_stats")
        return result

    def stop(self, timeout: float | None = STOP_TIMEOUT) -> int | None:
        """Stop the worker after the grace period for its open calls, and return its exit status.

        Kills it and its children after `timeout` seconds, or at once if the interpreter is ending.
        A connection is closed instead: its worker ends by itself, and the status, which only the
        server knows, is None. Calls after this raise WorkerCrashed.
        """
        self._connection.worker.check_own()
        return self._connection.close("the client was stopped", seconds_of(timeout))

    def kill(self) -> int | None:
        """Kill the worker and its children, and return its exit status. Close a connection at once, and return None."""
        return self.stop(0.0)

    def _open(
        self, command: str, timeout: float | None, *, has_events: bool = False, caller_waits: bool = True
    ) -> OpenCall:
        """Return a new call. Raises RuntimeError in a fork, and while the interpreter is ending."""
        connection = self._connection
        if not connection.worker.is_own:
            connection.worker.check_own()
        if sys.is_finalizing():  # the background thread has stopped
            raise RuntimeError("a Client cannot call its worker while the interpreter is ending")
        return OpenCall(connection, command, seconds_of(timeout), has_events, caller_waits)

    def __enter__(self) -> Client:
        self._connection.worker.check_own()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._connection.worker.is_usable:  # a fork must not stop its parent's worker
            self.stop()

    def __repr__(self) -> str:
        state = self._connection.end_reason or "running"
        if not self._connection.worker.is_usable:
            state = "of another process"
        return f"<Client {self._connection.worker.name} format={self._connection.format.name}: {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Client cannot be pickled: start one in each process")
