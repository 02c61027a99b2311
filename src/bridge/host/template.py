"""A template that this process starts: it listens on a socket of its own, and reports how its workers have ended."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from bridge import errors
from bridge._framing import Outbox
from bridge.host._inbox import RECEIVE
from bridge.host.background import Background
from bridge.host.client import STOP_TIMEOUT, Client
from bridge.host.condition import Condition
from bridge.host.connect import Attempt, Exit
from bridge.host.connection import Settings
from bridge.host.launch import WorkerProcess, launch
from bridge.host.timeouts import START_TIMEOUT, seconds_of
from bridge.host.tools import Callables
from bridge.host.transport import Transport
from bridge.host.worker import number_of
from bridge.options import DEFAULT_MAX_FRAME, DEFAULT_MAX_VALUES
from bridge.wire.codec import MSGPACK

MAX_FRAME = 1 << 20  # bytes of a control frame
MOST_EXITS = 1024  # ends of workers that are remembered
LONG_FOLDER = 64  # bytes in the name of a folder for temporary files that may be too long for a socket's path

NoteExit = Callable[[Exit | None], None]


class Message(msgspec.Struct):
    """Represents a message of a template: that it is ready, or the start or the end of the worker `pid`."""

    type: str
    pid: int = 0
    exit_status: int | None = None
    signal: str | None = None
    stderr: str | None = None

    @property
    def exit(self) -> Exit:
        """Return how the worker ended."""
        return Exit(self.exit_status if self.signal is None else -number_of(self.signal), self.stderr or "")


class Template:
    """A process that forks a worker for each connection to `address`. Usable from any number of threads.

    ended(): called once, on a background thread, when the template has ended, which does not end its workers. The
    template ends with this process. `on_exit` is for the clients that connect. exits_noted: how many of its workers
    have ended.
    """

    def __init__(self, process: WorkerProcess, path: str, ended: Callable[[], None] | None = None) -> None:
        self.address = f"unix:{path}"
        self._process = process
        self._ended = ended
        self._lock = threading.RLock()
        self._changed = Condition(self._lock)
        self._is_ready = False
        self._is_lost = False
        self.exits_noted = 0
        self._exits: dict[int, Exit] = {}
        self._waiting: dict[int, list[NoteExit]] = {}
        self._remove_folder = weakref.finalize(self, _remove, os.path.dirname(path), os.getpid())
        loop = Background()
        self._transport = Transport(process, MAX_FRAME, loop, self._serve, lambda: None, self._lose, threading.RLock())
        self._transport.watch()
        loop.start(self._transport.inbox, process.output_fd)

    @classmethod
    def start(
        cls,
        *,
        adapter: str = "dspy",
        python: str = sys.executable,
        flags: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        max_frame: int = DEFAULT_MAX_FRAME,
        max_values: int = DEFAULT_MAX_VALUES,
        ended: Callable[[], None] | None = None,
    ) -> Template:
        """Start a template, and do not wait until it listens. The parameters are those of `Client.start`.

        flags: of `python -m bridge serve`, which has those of `worker` too. Raises WorkerCrashed (category
        initialization) if the program cannot be started.
        """
        folder = tempfile.mkdtemp(prefix="bridge-", dir=_folder())
        try:
            path = os.path.join(folder, "socket")
            command = ("serve", "--listen", f"unix:{path}", "--control", MSGPACK.name)
            process = launch(adapter, python, flags, env, max_frame, max_values, command, "template")
            try:
                return cls(process, path, ended)
            except BaseException:
                process.discard()
                raise
        except BaseException:
            _remove(folder, os.getpid())
            raise

    @property
    def pid(self) -> int:
        """Return the process id of the template."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Return whether the template has not ended, as far as is known."""
        return not self._is_lost

    def wait_ready(self, timeout: float | None = START_TIMEOUT) -> None:
        """Wait until clients can connect, at most `timeout` seconds.

        Raises WorkerCrashed (category initialization), with the template's last output, if it has ended or is not ready
        in time; then it goes on.
        """
        seconds = seconds_of(timeout)
        with self._changed:
            if not self._changed.wait_for(lambda: self._is_ready or self._is_lost, seconds):
                self._process.fail_start(errors.DeadlineExceeded(f"the template was not ready within {seconds:g} s"))
            if self._is_lost:
                self._process.fail_start(errors.WorkerCrashed(self._transport.end_reason or ""))

    def connect(
        self,
        *,
        format: str = "msgpack",
        max_frame: int = DEFAULT_MAX_FRAME,
        max_values: int = DEFAULT_MAX_VALUES,
        tools: Callables = (),
        logs: Literal["stderr", "logging"] = "stderr",
        timeout: float | None = START_TIMEOUT,
    ) -> Client:
        """Return a client with a worker of its own. The parameters and errors are those of `Client.connect`.

        The client knows how its worker ends: errors have its status and its last output, and `kill` kills it.
        """
        settings = Settings.checked(format, max_frame, max_values, logs)
        return Client._connected(Attempt(self.address, seconds_of(timeout), self.on_exit), settings, tools)

    def on_exit(self, pid: int, note: NoteExit) -> None:
        """Call `note` once with the end of the worker with this process id; with None if that will not be known.

        It is called at once if the worker has ended before, otherwise on a background thread.
        """
        with self._lock:
            known = self._exits.get(pid)
            if known is None and not self._is_lost:
                self._waiting.setdefault(pid, []).append(note)
                return
        note(known)

    def exit_of(self, pid: int) -> Exit | None:
        """Return how a worker has ended; None if it has not, or if that is not known."""
        return self._exits.get(pid)

    def next_exit(self, known: int, timeout: float) -> Exit | None:
        """Return how the worker ended that has ended last, if more than `known` have; wait at most `timeout` seconds.

        A worker that ends before it has answered cannot be recognized by its process id.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.exits_noted > known or self._is_lost, timeout)
            return next(reversed(self._exits.values()), None) if self.exits_noted > known else None

    def stop(self, timeout: float | None = STOP_TIMEOUT) -> None:
        """Accept no more connections, and wait until all workers have ended; after `timeout` seconds, do not wait.

        The template has ended then, and workers that still run end with their connections.
        """
        self._process.check_own()
        seconds = seconds_of(timeout)
        deadline = None if seconds is None else time.monotonic() + seconds
        if sys.is_finalizing():
            self._process.end_without_threads()
            return
        self.drain()
        with self._changed:
            self._changed.wait_for(lambda: self._is_lost, seconds)
        self._transport.close("the template was stopped")
        with self._changed:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self._changed.wait_for(lambda: self._is_lost, left):
                self._process.kill()
                self._changed.wait_for(lambda: self._is_lost)

    def drain(self) -> None:
        """Accept no more connections; the template ends when its last worker has. Has no effect if it has ended."""
        self._process.check_own()
        outbox = Outbox()
        outbox.append(MSGPACK.encode_into, {"type": "stop"})
        with contextlib.suppress(ConnectionError):
            self._transport.write(outbox)

    def kill(self) -> None:
        """End the template at once. Its workers go on until their connections end."""
        self.stop(0.0)

    def __repr__(self) -> str:
        state = "ended" if self._is_lost else "ready" if self._is_ready else "starting"
        return f"<Template pid={self.pid} {self.address}: {state}>"

    def _serve(self, kind: int, subject: Any) -> None:
        """Do a job of the inbox. Raises InvalidFrame for a frame that is not a message of a template."""
        if kind != RECEIVE:
            return
        message: Message | None = MSGPACK.decode_or_none(subject, Message)
        if message is None:
            raise errors.InvalidFrame("it is not a message of a template")
        if message.type == "ready":
            with self._changed:
                self._is_ready = True
                self._changed.notify_all()
        elif message.type == "worker_started":
            self._exits.pop(message.pid, None)  # of an earlier process with the same id
        elif message.type == "worker_exited":
            self._note_exit(message.pid, message.exit)

    def _note_exit(self, pid: int, exit: Exit) -> None:
        with self._changed:
            self._exits[pid] = exit
            self.exits_noted += 1
            self._changed.notify_all()
            if len(self._exits) > MOST_EXITS:
                del self._exits[next(iter(self._exits))]
            waiting = self._waiting.pop(pid, [])
        for note in waiting:
            note(exit)

    def _lose(self) -> None:
        self._remove_folder()
        with self._changed:
            self._is_lost = True
            waiting = [note for notes in self._waiting.values() for note in notes]
            self._waiting.clear()
            self._changed.notify_all()
        for note in waiting:
            note(None)
        if self._ended is not None:
            self._ended()


def _folder() -> str | None:
    """Return where to make the folder of the socket; None for the default."""
    return None if len(os.fsencode(tempfile.gettempdir())) <= LONG_FOLDER else "/tmp"


def _remove(folder: str, pid: int) -> None:
    if os.getpid() == pid:  # a fork that ends must not remove it
        shutil.rmtree(folder, ignore_errors=True)
