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
from functools import partial
from itertools import takewhile
from math import inf
from typing import Any

from bridge import errors
from bridge.adapter import Adapter
from bridge.template import warming, workers
from bridge.template.control import Control
from bridge.template.listener import Listener, is_trusted
from bridge.template.ready import announce
from bridge.template.settings import Settings
from bridge.template.signals import Signals
from bridge.template.waiting import Waiting, prepare_to_refuse, refuse
from bridge.worker import process

ACCEPTED_AT_ONCE = 64  # connections that are accepted before anything else is looked at
PAUSE_SECONDS = 0.1  # before another attempt, if the system has no descriptor left
WARN_EVERY = 60.0  # seconds between warnings of the same kind
SILENCE_SECONDS = 10.0  # how long a connection without a worker may send nothing, not even a heartbeat
SHORT_SILENCE_SECONDS = 1.0  # the same while the template drains, or the system has no descriptor left
KILL_AFTER = 1.0  # seconds after SIGTERM and --grace, within which a worker ends itself unless it cannot
TAKEN_AGAIN = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_log = logging.getLogger("bridge.template")


class Template:
    """A process that listens, answers heartbeats, and forks a worker for each connection that sends anything else.

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
        self._waiting: dict[int, Waiting] = {}  # the one that ends first is the first
        self._selector = selectors.DefaultSelector()
        self._is_draining = False
        self._is_ended = False
        self._was_signalled = False
        self._terminate_at = inf
        self._kill_at = inf
        self._accept_again_at = inf
        self._next_warnings: dict[str, float] = {}

    def serve(self) -> None:
        """Serve until the template is stopped and its workers have ended."""
        prepare_to_refuse()
        self._signals = Signals(signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)
        self._watch(self._signals, self._signalled)
        self._watch(self._listener, self._accept)
        if self._control is not None:
            self._watch(self._control.read_fd, self._obey)
        forks = warming.may_fork() and not warming.other_threads()
        announce(self._control, self._listener.path, self._adapter.name, forks)
        while not self._is_ended and not (self._is_draining and self._is_idle):
            for key, _ in self._selector.select(self._pause()):
                key.data()
            self._do_what_is_due()
        if not self._is_ended:
            _log.info("the template ends: its last worker has ended")

    @property
    def _is_idle(self) -> bool:
        """Return whether no worker runs, no connection may still get one, and the end of each has been reported."""
        return not (self._is_listening or self._waiting or self._children or self._exited)

    @property
    def _is_listening(self) -> bool:
        return self._listener.fileno() >= 0

    # Events. One that is handled must not close what another one of the same `select` refers to.

    def _accept(self) -> None:
        """Accept the connections that wait; when none is left and the template drains, stop listening."""
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection = self._listener.accept()
            except OSError as error:
                if error.errno not in TAKEN_AGAIN:
                    raise
                self._warn("accept", f"no connection can be accepted: {error.strerror}")
                self._selector.unregister(self._listener)
                self._accept_again_at = time.monotonic() + PAUSE_SECONDS
                self._shorten_silence()
                return
            if connection is None:
                if self._is_draining:
                    self._stop_listening()
                return
            waiting = Waiting(connection, SHORT_SILENCE_SECONDS if self._is_draining else SILENCE_SECONDS)
            self._waiting[connection.fileno()] = waiting
            self._watch(connection, partial(self._hear, waiting))

    def _hear(self, waiting: Waiting) -> None:
        """Answer the heartbeats of a connection. Give it a worker, or refuse it, when it sends anything else."""
        trusted = is_trusted(waiting.connection)
        try:
            if trusted and waiting.answer_heartbeats():
                self._keep(waiting)
                return
        except OSError:
            self._forget(waiting).close()
            return
        self._begin(self._forget(waiting), trusted)

    def _begin(self, connection: socket.socket, trusted: bool) -> None:
        if not trusted:
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
            child.close_stderr()
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
            child.close_stderr()
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
                self._drain("the host has asked for it")
            else:
                _log.warning("an unknown message on the control pipe: %.100r", message.get("type"))

    def _signalled(self) -> None:
        for number in self._signals.read():
            if number == signal.SIGCHLD:
                self._reap()
            elif number in (signal.SIGTERM, signal.SIGINT):
                self._drain(signal.Signals(number).name)
                self._terminate_at = time.monotonic() + (0 if self._was_signalled else self._settings.drain)
                self._was_signalled = True

    def _drain(self, reason: str) -> None:
        """Serve the connections that have been made, and no others."""
        if self._is_draining:
            return
        self._is_draining = True
        _log.info("the template accepts no more connections: %s; %d workers run", reason, len(self._children))
        self._listener.hide()
        self._shorten_silence()

    # What does not begin with an event.

    def _do_what_is_due(self) -> None:
        now = time.monotonic()
        if now >= self._accept_again_at:
            self._accept_again_at = inf
            self._watch(self._listener, self._accept)
        if self._is_draining and self._is_listening and self._accept_again_at == inf:
            self._accept()
        for child in [each for each in self._exited if each.report_at <= now]:
            self._report(child)
        for waiting in list(takewhile(lambda each: each.ends_at <= now, self._waiting.values())):
            self._forget(waiting).close()
        if now >= self._terminate_at:
            self._terminate_at = inf
            self._kill_at = min(self._kill_at, now + self._settings.options.grace + KILL_AFTER)
            self._terminate()
        if now >= self._kill_at:
            self._kill_at = inf
            self._signal_workers(signal.SIGKILL)

    def _terminate(self) -> None:
        """End all workers, and do not start others."""
        if self._is_listening:
            self._stop_listening()
        for waiting in list(self._waiting.values()):
            self._forget(waiting).close()
        self._signal_workers(signal.SIGTERM)

    def _signal_workers(self, number: signal.Signals) -> None:
        if self._children:
            _log.warning("%d workers still run and get %s", len(self._children), number.name)
        for pid in self._children:
            os.kill(pid, number)

    def _stop_listening(self) -> None:
        if self._accept_again_at == inf:
            self._selector.unregister(self._listener)
        self._accept_again_at = inf
        self._listener.close()

    def _pause(self) -> float | None:
        due = [self._accept_again_at, self._terminate_at, self._kill_at]
        due += [child.report_at for child in self._exited]
        if self._waiting:
            due.append(next(iter(self._waiting.values())).ends_at)  # the oldest one
        if self._control is not None and self._control.is_pending:
            self._control.flush()
            due.append(time.monotonic() + PAUSE_SECONDS)
        first = min(due)
        return None if first == inf else max(0.0, first - time.monotonic())

    def _release(self) -> None:
        """Close what belongs to the template, in the child of a fork."""
        self._selector.close()
        self._listener.forget()
        for waiting in self._waiting.values():
            waiting.connection.close()
        for child in (*self._children.values(), *self._exited):
            if child.stderr >= 0:
                os.close(child.stderr)
        self._signals.forget()
        if self._control is not None:
            self._control.close()
        if self._companion_fd is not None:
            os.close(self._companion_fd)

    def _shorten_silence(self) -> None:
        """Close the connections without a worker that send nothing soon."""
        end = time.monotonic() + SHORT_SILENCE_SECONDS
        for waiting in self._waiting.values():
            waiting.ends_at = min(waiting.ends_at, end)

    def _keep(self, waiting: Waiting) -> None:
        """Let a connection be silent for some time again, unless the template drains."""
        if not self._is_draining:
            waiting.keep(SILENCE_SECONDS)
            self._waiting[waiting.connection.fileno()] = self._waiting.pop(waiting.connection.fileno())  # as the last

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
