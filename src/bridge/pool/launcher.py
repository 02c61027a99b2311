"""How a pool gets its workers: forked by a template, from a server that runs already, or started one by one."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from bridge import errors
from bridge.addresses import unix_path
from bridge.host.client import Client
from bridge.host.connect import PAUSE, Attempt
from bridge.host.connection import Settings
from bridge.host.functions import Functions
from bridge.host.launch import not_started
from bridge.host.template import Template
from bridge.host.threads import Job, Threads
from bridge.host.worker import end_in_words
from bridge.pool.slots import OnTransition

_log = logging.getLogger("bridge.pool")

EXIT_SECONDS = 0.5  # until a template reports how a worker has ended
FORK_SECONDS = 5.0  # in which a template that is ready has to provide a worker


class Launcher(Protocol):
    """Gets workers for a pool."""

    def launch(self) -> Client:
        """Return the client of a new worker. Raises WorkerCrashed (category initialization), Overloaded and others."""

    def renew(self) -> None:
        """Get the workers to come from a new template, if they come from one. Raises WorkerCrashed if it fails."""

    def stop(self, timeout: float | None) -> None:
        """Start no more workers. All have been stopped."""


class Starter:
    """Starts or connects each worker by a call of `start`."""

    def __init__(self, start: Callable[[], Client]) -> None:
        self.launch = start

    def renew(self) -> None:
        """Do nothing: each worker is new."""

    def stop(self, timeout: float | None) -> None:
        """Do nothing."""


class Forks:
    """Connects workers that a template of the pool forks. A template that ends or does not answer is replaced.

    start(ended): starts a template, which calls `ended` when it ends. start_alone: starts a worker where there can be
    no template, as without a folder for its socket. settings: of the connections. timeout: seconds for the start of a
    template. report(event): called with events of templates. run: runs a job on a thread.
    """

    def __init__(
        self,
        start: Callable[[Callable[[], None]], Template],
        start_alone: Callable[[], Client],
        settings: Settings,
        timeout: float | None,
        report: OnTransition,
        run: Callable[[Job], object],
    ) -> None:
        self._start = start
        self._start_alone = start_alone
        self._settings = settings
        self._timeout = timeout
        self._report = report
        self._run = run
        self._lock = threading.RLock()  # reentrant, because signal handlers may stop the pool
        self._template: Template | None = None
        self._is_stopped = False

    def launch(self) -> Client:
        """Return the client of a new worker. A template that cannot provide it is replaced once."""
        try:
            template = self._ready()
        except OSError as error:
            _log.warning("there can be no template, so each worker starts on its own: %s", error)
            return self._start_alone()
        known = template.exits_noted
        try:
            return self._connect(template)
        except errors.WorkerCrashed as error:
            if template.is_alive and not isinstance(error.__cause__, errors.DeadlineExceeded | OSError):
                exit = template.next_exit(known, EXIT_SECONDS)
                if exit is None or exit.status is None:
                    raise
                raise not_started(
                    "worker", end_in_words(exit.status), exit_status=exit.status, stderr=exit.stderr
                ) from error
            self._replace(template, errors.text_of(error))
            return self._connect(self._ready())

    def renew(self) -> None:
        """Start another template for the workers to come. The present one ends with its last worker."""
        template = self._new()
        try:
            template.wait_ready(self._timeout)
            with self._lock:
                self._check_running()
                before, self._template = self._template, template
        except BaseException:
            template.kill()
            raise
        if before is not None:
            before.drain()

    def stop(self, timeout: float | None) -> None:
        """End the template."""
        with self._lock:
            self._is_stopped = True
            template, self._template = self._template, None
        if template is not None:
            template.stop(timeout)

    def _ready(self) -> Template:
        """Return a template to which clients can connect. Raises WorkerCrashed (category initialization)."""
        with self._lock:
            if self._template is None or not self._template.is_alive:
                self._template = self._new()
            template = self._template
        template.wait_ready(self._timeout)
        return template

    def _check_running(self) -> None:
        if self._is_stopped:
            raise errors.WorkerCrashed("the pool was stopped")

    def _new(self) -> Template:
        self._check_running()
        template = self._start(self._note_end)
        self._report({"event": "template", "state": "starting", "pid": template.pid})
        return template

    def _connect(self, template: Template) -> Client:
        seconds = FORK_SECONDS if self._timeout is None else min(self._timeout, FORK_SECONDS)
        attempt = Attempt(template.address, seconds, template.on_exit)
        while (worker := attempt.connect()) is None:
            time.sleep(PAUSE)
        return Client._of(worker, self._settings, (), attempt.seconds_left)

    def _replace(self, template: Template, reason: str) -> None:
        self._report({"event": "template", "state": "gone", "pid": template.pid, "reason": reason})
        with self._lock:
            if self._template is template:
                self._template = None
        template.kill()

    def _note_end(self) -> None:
        """Start another template at once, in the background, if the present one has ended."""
        if not self._is_stopped:
            with contextlib.suppress(RuntimeError):
                self._run(self._start_again)

    def _start_again(self) -> None:
        template = self._template
        if template is None or template.is_alive or self._is_stopped:
            return
        self._report({"event": "template", "state": "gone", "pid": template.pid, "reason": "it has ended"})
        try:
            self._ready()
        except errors.BridgeError as error:
            if not self._is_stopped:
                _log.warning("%s", error)


def with_functions(launch: Callable[[], Client], functions: Functions) -> Client:
    """Return the client of a new worker, which calls the functions of the pool."""
    client = launch()
    connection = client._connection
    connection.functions = functions
    connection.offers["tools"] = True
    try:
        client.call("hello", {"offers": connection.offers})
    except BaseException:
        client.kill()
        raise
    return client


def launcher_for(
    options: dict[str, Any],
    connection: dict[str, Any],
    connect: str | None,
    has_template: bool,
    most: int,
    report: OnTransition,
    threads: Threads,
) -> Launcher:
    """Return what gets the workers of a pool.

    options: of `Client.start` about the worker's process. connection: its other options. connect: the address of a
    server of workers. most: workers at the same time. Raises TypeError and ValueError for invalid options.
    """
    if connect is not None:
        unix_path(connect)
        given = [name for name, value in options.items() if value != WORKER_OPTIONS[name]]
        if given:
            raise ValueError(f"{', '.join(given)}: the server of the workers has its own, so not with connect=")
        return Starter(lambda: Client.connect(connect, **connection))

    def start_alone() -> Client:
        return Client.start(**options, **connection)

    if not has_template:
        return Starter(start_alone)
    limits = {name: connection[name] for name in ("max_frame", "max_values")}
    settings = Settings.checked(format=connection["format"], logs=connection["logs"], **limits)
    flags = options["flags"] if isinstance(options["flags"], str) else ["--max-workers", str(most), *options["flags"]]

    def start(ended: Callable[[], None]) -> Template:
        return Template.start(**{**options, **limits, "flags": flags}, ended=ended)

    return Forks(start, start_alone, settings, connection["timeout"], report, threads.run)


WORKER_OPTIONS = {"adapter": "dspy", "python": sys.executable, "flags": (), "env": None}
