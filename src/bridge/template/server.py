"""A template at work: it gives a worker to each connection until it is stopped."""

from __future__ import annotations

import errno
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

from bridge import errors
from bridge.adapter import Adapter
from bridge.options import Options
from bridge.template import warming, workers
from bridge.template.control import Control
from bridge.template.listener import Listener, is_trusted
from bridge.template.ready import announce
from bridge.template.waiting import Waiting, prepare_to_refuse, refuse
from bridge.worker import process

ACCEPTED_AT_ONCE = 64  # connections that are accepted before anything else is looked at
PAUSE_SECONDS = 0.1  # before another attempt, if the system has no descriptor left
WARN_EVERY = 60.0  # seconds between warnings of the same kind
TAKEN_AGAIN = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_log = logging.getLogger("bridge.template")


@dataclass(frozen=True)
class Settings:
    """What a template is started with.

    adapter: its name on the command line. options: of the workers. path: of the socket. drain: seconds for which
    workers may go on after SIGTERM. preload: modules to import before the first worker is forked. replace: take the
    place of another template at `path` once this one is ready. control: the format of the frames on stdin and stdout;
    None: they are not used.
    """

    adapter: str
    options: Options
    path: str
    max_workers: int
    drain: float
    preload: tuple[str, ...]
    replace: bool
    control: str | None


class Template:
    """A process that listens, and forks a worker for each connection that sends something.

    It has one thread, and waits for nothing but events: of the listener, of connections without a worker, of the stderr
    of the workers, of the control pipe, and of signals.
    """

    def __init__(
        self,
        settings: Settings,
        adapter: Adapter,
        listener: Listener,
        control: Control | None,
        companion_fd: int | None,
    ) -> None:
        self._settings = settings
        self._adapter = adapter
        self._listener = listener
        self._control = control
        self._companion_fd = companion_fd
        self._children: dict[int, workers.Child] = {}
        self._exited: list[workers.Child] = []  # whose last output has not been read yet
        self._waiting: dict[int, Waiting] = {}
        self._selector = selectors.DefaultSelector()
        self._is_draining = False
        self._is_ended = False
        self._terminate_at = inf
        self._accept_again_at = inf
        self._next_warnings: dict[str, float] = {}

    def serve(self) -> None:
        """Serve until the template is stopped and its workers have ended."""
        prepare_to_refuse()
        self._watch_signals()
        self._watch(self._listener, self._accept)
        if self._control is not None:
            self._watch(self._control.read_fd, self._obey)
        forks = warming.may_fork() and not warming.other_threads()
        announce(self._control, self._listener.path, self._adapter.name, forks)
        while not self._is_ended and not (self._is_draining and not self._children):
            for key, _ in self._selector.select(self._pause()):
                key.data()
            self._do_what_is_due()
        if not self._is_ended:
            _log.info("the template ends: its last worker has ended")

    # Events.

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection = self._listener.accept()
            except OSError as error:
                if error.errno not in TAKEN_AGAIN:
                    raise
                self._warn("accept", f"no connection can be accepted: {error.strerror}")
                self._selector.unregister(self._listener)
                self._accept_again_at = time.monotonic() + PAUSE_SECONDS
                return
            if connection is None:
                return
            waiting = Waiting(connection)
            self._waiting[connection.fileno()] = waiting
            self._watch(connection, partial(self._begin, waiting))

    def _begin(self, waiting: Waiting) -> None:
        """Give a worker to a connection that has sent something, or refuse it."""
        connection = self._forget(waiting)
        if not waiting.has_spoken():
            connection.close()
            return
        if not is_trusted(connection):
            self._warn("uid", "a process of another user has connected")
            refuse(connection, errors.NotAllowed("this user may not connect"))
            return
        if len(self._children) >= self._settings.max_workers:
            reason = f"there are {self._settings.max_workers} workers already (--max-workers)"
            self._warn("workers", f"a connection was refused: {reason}")
            refuse(connection, errors.Overloaded.refused(reason))
            return
        connection.setblocking(True)
        try:
            child = self._start(connection)
        except OSError as error:
            self._warn("start", f"a worker cannot be started: {error}")
            connection.setblocking(False)
            refuse(connection, errors.Overloaded.refused(f"a worker cannot be started: {error.strerror}"))
            return
        connection.close()
        self._children[child.pid] = child
        self._watch(child.stderr, lambda: self._pass_on(child))
        self._tell({"type": "worker_started", "pid": child.pid})
        _log.info("worker %d has started; %d run", child.pid, len(self._children))

    def _start(self, connection: socket.socket) -> workers.Child:
        threads = warming.other_threads()
        if not threads and warming.may_fork():
            return workers.fork(self._adapter, self._settings.options, connection, self._release)
        if threads:
            names = ", ".join(threads)
            self._warn("threads", f"workers are spawned, not forked, because of the threads of the template: {names}")
        return workers.spawn(self._settings.adapter, self._settings.options, connection)

    def _pass_on(self, child: workers.Child) -> None:
        if not child.pass_on_stderr():
            self._selector.unregister(child.stderr)
            os.close(child.stderr)
            child.stderr = -1
            if child.status is not None:
                self._report(child)

    def _reap(self) -> None:
        for child in list(workers.reap(self._children)):
            del self._children[child.pid]
            if child.stderr < 0:
                self._report(child)
            else:
                self._exited.append(child)

    def _report(self, child: workers.Child) -> None:
        """Tell the host how a worker has ended, once what it has written to stderr has been read."""
        if child in self._exited:
            self._exited.remove(child)
        if child.stderr >= 0:
            self._selector.unregister(child.stderr)
            os.close(child.stderr)
            child.stderr = -1
        report = child.report()
        self._tell(report)
        if report["exit_status"] == process.OK:
            _log.info("worker %d has ended", child.pid)
        else:
            how = report["signal"] or f"status {report['exit_status']}"
            _log.warning("worker %d has ended with %s", child.pid, how)

    def _obey(self) -> None:
        assert self._control is not None
        try:
            messages = self._control.receive()
        except ValueError as error:
            _log.error("the template ends: %s", error)
            messages = None
        if messages is None:
            self._is_ended = True
            return
        for message in messages:
            if message.get("type") == "stop":
                self._stop_listening("the host has asked for it")
            else:
                _log.warning("an unknown message on the control pipe: %.100r", message.get("type"))

    def _signalled(self) -> None:
        for number in os.read(self._wake_fd, 4096):
            if number == signal.SIGCHLD:
                self._reap()
            elif number in (signal.SIGTERM, signal.SIGINT):
                self._terminate(signal.Signals(number).name)

    def _terminate(self, reason: str) -> None:
        """Drain; the second time, end the workers at once."""
        if self._is_draining:
            self._terminate_at = time.monotonic()
        else:
            self._terminate_at = time.monotonic() + self._settings.drain
            self._stop_listening(reason)

    def _stop_listening(self, reason: str) -> None:
        if self._is_draining:
            return
        self._is_draining = True
        _log.info("the template accepts no more connections: %s; %d workers run", reason, len(self._children))
        if self._accept_again_at == inf:
            self._selector.unregister(self._listener)
        self._accept_again_at = inf
        self._listener.close()
        for waiting in list(self._waiting.values()):
            self._forget(waiting).close()

    # What does not begin with an event.

    def _do_what_is_due(self) -> None:
        now = time.monotonic()
        if now >= self._accept_again_at:
            self._accept_again_at = inf
            self._watch(self._listener, self._accept)
        for child in [each for each in self._exited if each.report_at <= now]:
            self._report(child)
        for waiting in [each for each in self._waiting.values() if each.ends_at <= now]:
            self._forget(waiting).close()
        if now >= self._terminate_at:
            self._terminate_at = inf
            for pid in self._children:
                os.kill(pid, signal.SIGTERM)

    def _pause(self) -> float | None:
        due = [self._accept_again_at, self._terminate_at]
        due += [child.report_at for child in self._exited]
        if self._waiting:
            due.append(next(iter(self._waiting.values())).ends_at)  # the oldest one
        if self._control is not None and self._control.is_pending:
            self._control.flush()
            due.append(time.monotonic() + PAUSE_SECONDS)
        first = min(due)
        return None if first == inf else max(0.0, first - time.monotonic())

    def _watch_signals(self) -> None:
        self._wake_fd, wake_write = os.pipe()
        os.set_blocking(self._wake_fd, False)
        os.set_blocking(wake_write, False)
        self._wake_write = wake_write
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        self._watch(self._wake_fd, self._signalled)

    def _release(self) -> None:
        """Close what belongs to the template, in the child of a fork."""
        self._selector.close()
        self._listener.forget()
        for waiting in self._waiting.values():
            waiting.connection.close()
        for child in (*self._children.values(), *self._exited):
            if child.stderr >= 0:
                os.close(child.stderr)
        os.close(self._wake_fd)
        os.close(self._wake_write)
        if self._control is not None:
            self._control.close()
        if self._companion_fd is not None:
            os.close(self._companion_fd)

    def _forget(self, waiting: Waiting) -> socket.socket:
        connection = waiting.connection
        self._selector.unregister(connection)
        del self._waiting[connection.fileno()]
        return connection

    def _watch(self, source: Any, react: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, react)

    def _tell(self, message: dict[str, Any]) -> None:
        if self._control is not None:
            self._control.send(message)

    def _warn(self, kind: str, message: str) -> None:
        """Log a warning, at most one of each kind every `WARN_EVERY` seconds."""
        now = time.monotonic()
        if now >= self._next_warnings.get(kind, 0.0):
            self._next_warnings[kind] = now + WARN_EVERY
            _log.warning("%s", message)
