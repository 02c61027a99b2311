"""The life of a template: it listens, prepares itself, and gives a worker to each connection until it is stopped."""

from __future__ import annotations

import errno
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any, NoReturn

from bridge import errors
from bridge.adapter import Adapter, AdapterFailed
from bridge.options import Options
from bridge.security.redaction import redact
from bridge.telemetry import logs
from bridge.template import warming, workers
from bridge.template.control import Control
from bridge.template.listener import Listener, ListenFailed, is_trusted
from bridge.template.waiting import Waiting, prepare_to_refuse, refuse
from bridge.version import __version__
from bridge.wire.codec import by_name
from bridge.worker import _companion, process

ACCEPTED_AT_ONCE = 64  # connections that are accepted before anything else is looked at
PAUSE_SECONDS = 0.1  # before another attempt, if the system has no descriptor left
WARN_EVERY = 60.0  # seconds between warnings of the same kind
TAKEN_AGAIN = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_log = logging.getLogger("bridge.template")


def run(
    adapter_name: str,
    load_adapter: Callable[[], Adapter],
    options: Options,
    path: str,
    *,
    max_workers: int,
    drain: float,
    replace: bool,
    control_format: str | None,
) -> NoReturn:
    """Serve until SIGTERM or the host's `stop`, and end the process.

    path: of the socket. drain: seconds for which workers may go on after SIGTERM. replace: take the
    place of another template at `path` once this one is ready. control_format: the format of the
    frames on stdin and stdout; None: they are not used.
    """
    read_fd, write_fd = process.take_descriptors(0, 1)
    companion_fd = process.start_template_companion()
    process.set_environment()
    control = None
    format = by_name(control_format) if control_format is not None else None
    if format is None:
        os.close(read_fd)
        os.close(write_fd)
    else:
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        control = Control(read_fd, write_fd, format)
    try:
        logs.log_to_stderr(options.log_level)
        listener = None if replace else Listener(path)
        try:
            adapter = load_adapter()
            _check_store(options)
            warming.warm(adapter, options)
            if listener is None:
                listener = Listener(path, replace=True)
            Template(adapter_name, adapter, options, listener, control, max_workers, drain, companion_fd).serve()
        finally:
            if listener is not None:
                listener.close()
    except (AdapterFailed, ListenFailed, errors.StoreFailed) as error:
        line = " ".join(redact(str(error)).splitlines())
        print(f"dspex-bridge serve: error: {line}", file=sys.stderr)
        _end(process.USAGE)
    except BaseException as error:
        _log.critical("the template failed", exc_info=error)
        _end(process.INTERNAL_ERROR)
    _end(process.OK)


def _check_store(options: Options) -> None:
    """Raise StoreFailed if the store cannot be opened. Each worker opens it for itself."""
    if options.store is not None:
        from bridge.worker.stores import open_store

        open_store(options.store).close()


def _end(status: int) -> NoReturn:
    sys.stderr.flush()
    _companion.finish()
    os._exit(status)


class Template:
    """A process that listens, and forks a worker for each connection that sends something.

    It has one thread, and waits for nothing but events: of the listener, of connections without a worker, of the stderr
    of the workers, of the control pipe, and of signals.
    """

    def __init__(
        self,
        adapter_name: str,
        adapter: Adapter,
        options: Options,
        listener: Listener,
        control: Control | None,
        max_workers: int,
        drain: float,
        companion_fd: int | None,
    ) -> None:
        self._companion_fd = companion_fd
        self._adapter_name = adapter_name
        self._adapter = adapter
        self._options = options
        self._listener = listener
        self._control = control
        self._max_workers = max_workers
        self._drain = drain
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
        self._announce()
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
        if len(self._children) >= self._max_workers:
            reason = f"there are {self._max_workers} workers already (--max-workers)"
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
            return workers.fork(self._adapter, self._options, connection, self._release)
        if threads:
            names = ", ".join(threads)
            self._warn("threads", f"workers are spawned, not forked, because of the threads of the template: {names}")
        return workers.spawn(self._adapter_name, self._options, connection)

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
            self._terminate_at = time.monotonic() + self._drain
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

    def _announce(self) -> None:
        forks = warming.may_fork() and not warming.other_threads()
        address = f"unix:{self._listener.path}"
        if self._control is not None:
            self._tell(
                {
                    "type": "ready",
                    "listen": address,
                    "pid": os.getpid(),
                    "version": __version__,
                    "adapter": self._adapter.name,
                    "forks": forks,
                }
            )
            return
        _notify_systemd()
        how = "forked" if forks else "spawned"
        print(
            f"dspex-bridge: listening on {address} with the adapter {self._adapter.name};"
            f" process {os.getpid()}, workers are {how}",
            file=sys.stderr,
            flush=True,
        )

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


def _notify_systemd() -> None:
    """Report the readiness of a service with Type=notify, see sd_notify(3)."""
    address = os.environ.pop("NOTIFY_SOCKET", None)
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
            notified.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)
