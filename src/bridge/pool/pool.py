"""The pool: several workers that look like one client."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from queue import Empty
from time import monotonic
from types import TracebackType
from typing import Any, Literal, NoReturn

from bridge import errors
from bridge.errors import BridgeError
from bridge.host.calls import OnEvent
from bridge.host.client import STOP_TIMEOUT
from bridge.host.functions import NONE, Functions, Named, functions
from bridge.host.launch import check_process
from bridge.host.open_calls import SLACK
from bridge.host.threads import Threads
from bridge.host.timeouts import START_TIMEOUT, seconds_of
from bridge.host.tools import Callables, Tool
from bridge.options import DEFAULT_MAX_FRAME, DEFAULT_MAX_VALUES
from bridge.pool import report
from bridge.pool.calls import PoolCall, PoolStream
from bridge.pool.jobs import Jobs
from bridge.pool.journal import Journal
from bridge.pool.launcher import launcher_for
from bridge.pool.options import Workers, checked
from bridge.pool.providers import Providers
from bridge.pool.recovery import Recovery
from bridge.pool.replaced import follow_up
from bridge.pool.requests import Request
from bridge.pool.routing import Router
from bridge.pool.runner import Runner
from bridge.pool.sessions import Sessions
from bridge.pool.slots import OnTransition, Slots
from bridge.pool.supervisor import Supervisor
from bridge.pool.upkeep import Life, Upkeep


class Pool:
    """Several workers that are called like one `Client`. Usable from any number of threads.

    Each call without a session goes to a worker that has little to do; the calls of a session go to the worker that has
    the session. What calls without a session change (`configure_lm`, programs, tools) is changed in all workers, also
    in those that start later. Workers that end are replaced. A call whose worker ends is made once more in another one
    if its command is idempotent, or if it has not been started; otherwise it raises WorkerCrashed.

    workers: how many, or (at least, at most); default: one for each core. connect: "unix:" and the path of a server of
    workers (`dspex-bridge serve`); by default, the pool has a template of its own: a process that has loaded the
    adapter and forks the workers. template: False starts each worker on its own. affinity: what becomes of a session
    whose worker has ended, unless it is durable: "strict": the next call raises SessionLost, and the one after that
    begins a new session; "hint": the next call begins a new session. isolate: "session" gives each session a worker of
    its own, at most `session_workers` at a time. idle: seconds without a call after which a worker above the least
    number, or that of a session, ends (default 30 and 3600). max_requests, max_age (seconds), max_rss (bytes): when a
    worker is replaced by a new one, the first two ± 10 %. name: of the pool, in events. on_event(event): called with a
    map for each transition of a slot, retry and replacement; it must not wait. The other options are those of
    `Client.start`, for each worker. Raises its errors.
    """

    _recovery: type[Recovery] = Recovery

    def __init__(
        self,
        workers: Workers | None = None,
        *,
        connect: str | None = None,
        template: bool = True,
        affinity: Literal["strict", "hint"] = "strict",
        isolate: Literal["session"] | None = None,
        session_workers: int = 256,
        idle: float | None = None,
        max_requests: int | None = None,
        max_age: float | None = None,
        max_rss: int | None = None,
        name: str = "pool",
        on_event: OnTransition | None = None,
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
    ) -> None:
        bounds, life, isolates = checked(
            *(workers, affinity, isolate, session_workers, idle, max_requests, max_age, max_rss, on_event)
        )
        check_process(adapter, python, flags, env)
        seconds_of(timeout)
        known = [Tool(function) for function in tools]
        process = {"adapter": adapter, "python": python, "flags": flags, "env": env}
        limits = {"max_frame": max_frame, "max_values": max_values}
        connection = {"format": format, **limits, "logs": logs, "timeout": timeout}
        most_processes = 2 * bounds[1] + (session_workers if isolates else 0)
        self._prepare(name, on_event)
        launcher = launcher_for(process, connection, connect, template, most_processes, self._report, self._threads)
        self._supervisor = Supervisor(
            self._slots, launcher, self._functions, self._journal, self._threads, self._report
        )
        strict = affinity == "strict"
        self._begin(
            bounds,
            life,
            lambda: Router(self._slots, self._sessions, self._supervisor, strict, isolates, session_workers),
            timeout,
            known,
        )

    def _prepare(self, name: str, on_event: OnTransition | None) -> None:
        """Make what knows of no worker yet."""
        self.name = name
        self._host_pid = os.getpid()
        self._report = report.events_to(name, on_event)
        self._threads = Threads("bridge-pool")
        self._functions = Functions()
        self._slots = Slots(self._report)
        self._sessions = Sessions(self._session_ended)
        self._journal = Journal(lambda slot: self._supervisor.recycle(slot, "its state differs from the others'"))

    def _begin(
        self,
        bounds: tuple[int, int],
        life: Life,
        router: Callable[[], Router],
        timeout: float | None,
        tools: list[Tool],
    ) -> None:
        """Start the workers, and what sends them calls. Stops them if that fails."""
        try:
            self._supervisor.start(*bounds)
            slot = self._slots.ready[0]
            commands = slot.ask("describe", None, timeout)["commands"]
            mode = slot.ask("ping", None, timeout)["mode"]
            self._default_session = "anonymous" if mode == "pool-worker" else "default"
            self._shared = self._journal.use(commands)
            self._ending = frozenset(each for each, spec in commands.items() if spec["lane"].startswith("end_"))
            runs = frozenset(each for each, spec in commands.items() if spec["lane"] == "run")
            self._providers = Providers(runs, self._report)
            self._unusual = self._shared | self._ending | runs | {"create_session"}
            idempotent = frozenset(each for each, spec in commands.items() if spec["idempotent"])
            recovery = self._recovery(self._slots, idempotent, self._supervisor, self._report)
            self._count_call = recovery.budget.record_call
            self._router = router()
            self._runner = Runner(self._router, recovery, self._providers, self._journal, self._succeeded)
            self._jobs = Jobs(self._threads, self._supervisor.clock)
            Upkeep(self._slots, self._sessions, self._supervisor, life).start()
            if tools:
                self._register(tools, None)
        except BaseException:
            self._supervisor.stop(0.0)
            raise

    def call(
        self,
        command: str,
        args: Any = None,
        *,
        timeout: float | None = 30.0,
        session_id: str | None = None,
        traceparent: str | None = None,
    ) -> Any:
        """Call `command` in one of the workers, and return its result. The options are those of `Client.call`.

        Raises the errors of `Client.call`; SessionLost if the worker that had the session has ended; Overloaded, with
        `retry_after`, if all workers are busy.
        """
        begun = monotonic()
        slot = None
        if command not in self._unusual and (session_id is not None or not _names_session(args)):
            slot = self._router.quick(session_id)
        if slot is None:
            return self._run(self._request(command, args, timeout, session_id, traceparent))
        self._count_call()
        call, was_sent = None, False
        try:
            call = slot.open(command, timeout)
            slot.connection.start(call, args, session_id, traceparent)
            was_sent = True
            result = call.result()
        except BridgeError as error:
            request = self._request(command, args, timeout, session_id, traceparent, begun)
            request.slot, request.call, request.attempts, request.started = slot, call, 1, was_sent
            self._runner.prepare_next(request, error)
            return self._run(request)
        except BaseException:
            if call is None:
                self._check_own()  # in a fork, where the worker's own error would be about a Client
            else:
                call.cancel()
            raise
        slot.served += 1
        return result

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
    ) -> PoolCall:
        """Start `command`, and return a future of its result. The options are those of `Client.submit`.

        Do not change `args` before the call has ended: it may be sent again.
        """
        request = self._request(command, args, timeout, session_id, traceparent)
        request.has_events, request.timing = on_event is not None, timing
        call = PoolCall(request, self._runner, self._jobs, on_event)
        call.start()
        return call

    def stream(
        self,
        command: str,
        args: Any = None,
        *,
        timeout: float | None = None,
        session_id: str | None = None,
        traceparent: str | None = None,
    ) -> PoolStream:
        """Start `command`, and return its events to iterate over. The options are those of `submit`.

        Raises InvalidRequest for a call that has to be made in all workers.
        """
        request = self._request(command, args, timeout, session_id, traceparent)
        if request.is_shared:
            text = f"{command} without a session is called in all workers: use `call` or `submit`"
            raise errors.InvalidRequest(text)
        request.has_events = True
        return PoolStream(request, self._runner)

    def cast(self, command: str, args: Any = None, *, session_id: str | None = None) -> None:
        """Send `command` without waiting for its reply, which is dropped. Raises the errors of `submit`."""
        self.submit(command, args, session_id=session_id)

    def register_tools(self, tools: Callables, *, session_id: str | None = None) -> None:
        """Offer Python functions to the programs of a session, or of all sessions, as `Client.register_tools` does."""
        self._register([Tool(function) for function in tools], session_id)

    def register(
        self,
        *,
        models: Named = NONE,
        metrics: Named = NONE,
        rewards: Named = NONE,
        embedders: Named = NONE,
        session_id: str | None = None,
    ) -> None:
        """Let the programs of a session, or of all sessions, call Python functions, as `Client.register` does."""
        self._check_own()
        self._functions.add(session_id, functions(models, metrics, rewards, embedders))

    def end_session(self, session_id: str) -> dict[str, Any]:
        """End a session, also in the store if it is durable, and return the result of `cleanup_session`."""
        result: dict[str, Any] = self.call("cleanup_session", {"session_id": session_id})
        return result

    def session_info(self, session_id: str) -> dict[str, Any]:
        """Return the result of `get_session`, with the `slot` and the `pid` of the worker that has the session.

        Raises SessionNotFound.
        """
        home = self._sessions.homes.get(session_id)
        has_home = home is not None and home.slot.is_usable
        request = self._request("get_session", {"session_id": session_id}, 30.0, None, None)
        request.session = session_id if has_home else None
        found: dict[str, Any] = self._run(request)
        return {**found, "slot": home.slot.number, "pid": home.slot.pid} if home is not None and has_home else found

    def stats(self) -> dict[str, Any]:
        """Return the statistics of all workers together (`commands`, `process`), each worker's own (`workers`), and the
        pool's `status`."""
        self._check_own()
        return {**report.statistics(self._slots.ready), "pool": self.status()}

    def status(self) -> dict[str, Any]:
        """Return the number of workers in each state, of open calls and of sessions, and one map for each slot."""
        self._check_own()
        return report.status(self.name, self._slots, self._sessions, self._journal)

    def health_check(self, timeout: float = 2.0) -> dict[str, Any]:
        """Ping each worker. Return whether the pool is "healthy", "degraded" or "down", and one map for each slot."""
        self._check_own()
        return report.health(self._slots, timeout)

    def renew(self) -> None:
        """Replace all workers, and the template, by new ones, without a failed call; return when they take the calls.

        Sessions stay where they are for up to a minute. Raises WorkerCrashed if the new template does not start.
        """
        self._check_own()
        self._supervisor.renew("the pool is renewed")

    def drain(self, timeout: float | None = 30.0) -> bool:
        """Take no more calls, wait at most `timeout` seconds until the open ones have ended, and stop the workers.

        Return whether all calls have ended by then.
        """
        self._check_own()
        seconds = seconds_of(timeout)
        until = None if seconds is None else monotonic() + seconds
        self._supervisor.close("the pool is draining")
        while (open_calls := self._slots.open_calls()) and (until is None or monotonic() < until):
            time.sleep(0.01)
        self.stop()
        return not open_calls

    def stop(self, timeout: float | None = STOP_TIMEOUT) -> None:
        """Stop the workers after the grace period for their open calls; kill them after `timeout` seconds.

        Calls after this raise WorkerCrashed.
        """
        self._check_own()
        self._supervisor.stop(seconds_of(timeout))

    def _request(
        self,
        command: str,
        args: Any,
        timeout: float | None,
        session_id: str | None,
        traceparent: str | None,
        begun: float | None = None,
    ) -> Request:
        """Return what `call` was asked for. Raises RuntimeError in a fork, and ValueError for a wrong timeout."""
        self._check_own()
        seconds = seconds_of(timeout)
        begun = monotonic() if begun is None else begun
        session = args["session_id"] if session_id is None and _names_session(args) else session_id
        if not isinstance(session, str) or session == self._default_session:
            session = None
        request = Request(
            command, args, session_id, session, traceparent, seconds, None if seconds is None else begun + seconds
        )
        request.is_shared = session is None and command in self._shared
        return request

    def _run(self, request: Request) -> Any:
        if request.is_shared:
            left = request.left()
            try:  # on another thread, which no signal handler interrupts: workers must not differ
                return self._jobs.result_of(
                    lambda: self._runner.finish(self._runner.broadcast(request)),
                    None if left is None else left + 2 * SLACK,
                )
            except Empty:
                raise request.expired() from None
        return self._runner.run(request)

    def _register(self, tools: list[Tool], session_id: str | None) -> None:
        declared = [tool.declaration for tool in tools]
        done = self.call("register_tools", {"tools": declared}, session_id=session_id)
        self._functions.add(done["session_id"], tools)

    def _succeeded(self, request: Request, result: Any) -> None:
        """Note which sessions a request has ended, and which provider of models it has chosen.

        Make what it has changed without a session in one worker in all others.
        """
        follow = follow_up(request.command, result) if request.session is None else None
        if follow is not None:
            self.call(*follow, timeout=None)
        if request.command == "configure_lm":
            self._providers.configured(request.session, result)
        if request.command not in self._ending:
            return
        if request.session is not None:
            self._sessions.end(request.session)
        elif request.is_shared:
            for session_id in list(self._sessions.homes):
                self._sessions.end(session_id)

    def _session_ended(self, session_id: str) -> None:
        self._functions.drop(session_id)
        self._providers.forget(session_id)

    def _check_own(self) -> None:
        """Raise RuntimeError in a fork of the process that has started the pool."""
        if os.getpid() != self._host_pid:
            raise RuntimeError(
                f"this Pool belongs to process {self._host_pid} and cannot be used in its fork {os.getpid()}; start"
                " another Pool there"
            )
        if sys.is_finalizing():
            raise RuntimeError("a Pool cannot call its workers while the interpreter is ending")

    def __enter__(self) -> Pool:
        self._check_own()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if os.getpid() == self._host_pid and not sys.is_finalizing():  # a fork must not stop its parent's workers
            self.stop()

    def __repr__(self) -> str:
        return f"<Pool {self.name}: {self._supervisor.closed or f'{len(self._slots.ready)} workers'}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Pool cannot be pickled: start one in each process")


def _names_session(args: Any) -> bool:
    return args.__class__ is dict and "session_id" in args
