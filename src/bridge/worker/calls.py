"""The calls that are not inline, from their arrival to their one reply."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

from bridge import errors
from bridge._dispatch import Context, Deferred, FastPath
from bridge._framing import Outbox
from bridge._histogram import now_ns
from bridge._watch import in_fork
from bridge.adapter import Handler, Lane
from bridge.telemetry.logs import debug, logging_call, shown, warn
from bridge.wire.messages import Id
from bridge.worker import failures, limits
from bridge.worker.host_calls import HostCalls
from bridge.worker.order import Turn
from bridge.worker.session import in_transaction
from bridge.worker.sessions import Sessions
from bridge.worker.shedding import Shedding
from bridge.worker.threads import Job, Threads
from bridge.worker.timers import Timer, Timers

# Sends what is in an outbox. What it returns, if anything, is called when no lock is held: a host's callback may block.
Deliver = Callable[[Outbox], Callable[[], None] | None]

MILLISECOND = 1_000_000  # ns
LONGEST_TIMEOUT_MS = 86_400_000.0  # a day; longer ones count as this


class Call(Deferred):
    """Represents a call that is not inline. Its handler gets it as the `Context`.

    turn: when it comes, `job` is submitted to the threads. lane: of the command. timer: of the deadline; None: no
    deadline. changes_shared: whether the call changes what all sessions share, and no session.
    """

    __slots__ = ("_host", "_threads", "_waits_for", "changes_shared", "job", "lane", "timer", "turn")

    job: Job
    turn: Turn

    def __init__(self, threads: Threads, host: HostCalls, arrived: Context) -> None:
        super().__init__(arrived)
        self.lane: Lane = self.command.spec.lane
        self.changes_shared = False
        self.timer: Timer | None = None
        self._threads = threads
        self._host = host
        self._waits_for: list[threading.Event] = []  # what its handler waits for, perhaps on several threads

    @property
    def has_turn(self) -> bool:
        """Return whether none of the later calls of its sessions has started, and this is not a child of the worker."""
        return self.turn.has_come and not in_fork()

    def wait(self, seconds: float) -> None:
        """Wait that many seconds. Raise CallEnded as soon as the call is over."""
        self._wait_for(threading.Event(), seconds)

    def call_host(self, command: str, args: dict[str, Any]) -> Any:
        """Send `command` to the host, and return its answer: see `Context.call_host`."""
        with self._host.ask() as question:
            self.check()
            self.send_host_call(question.id, command, args)
            self._wait_for_host(question.arrived)
            return question.result()

    def stream_host(self, command: str, args: dict[str, Any]) -> Generator[tuple[str, Any], None, Any]:
        """Send `command` to the host, yield its events, and return its answer: see `Context.stream_host`."""
        with self._host.ask(streamed=True) as question:
            self.check()
            self.send_host_call(question.id, command, args)
            yield from question.events(self._wait_for_host)
            return question.result()

    def run_together(self, run: Callable[[], None], threads: int) -> None:
        """Call run() on several threads at once: see `Context.run_together`."""
        self._threads.run_together(run, threads, self._interrupt)

    def release(self) -> None:
        """Commit what the handler has changed in its session, then end the turn."""
        if self.lane.changes and self.has_turn and not self.changes_shared:
            self.session.commit()
        self.turn.end()

    def take_turn(self) -> None:
        """Wait for the session's turn again after `release`: see `Context.take_turn`."""
        if self.has_turn or self.changes_shared:
            return
        come = threading.Event()
        self.turn = Turn([session.order for session in self.sessions], come.set)
        self.turn.enter()
        self._wait_for_host(come)  # without a thread, which earlier calls of the session may need
        if self.session.has_ended and self.session.failure is None:
            raise errors.SessionNotFound(
                f"the session {self.session.id!r} has ended meanwhile", session_id=self.session.id
            )
        self.session.load()

    def pause(self) -> None:
        """Make the handler wait before its next event."""
        if self.resumed is None or self.resumed.is_set():
            self.resumed = threading.Event()
            if self.answered:  # `wake` was called before this event existed
                self.resumed.set()

    def resume(self) -> None:
        """End a pause."""
        if self.resumed is not None:
            self.resumed.set()

    def await_resume(self) -> None:
        """Wait until the host ends the pause, or the call is over."""
        if self.resumed is not None:
            with self._threads.waiting_for_host(self.job):
                self.resumed.wait()

    def wake(self) -> None:
        """Wake the handler if it waits in a method of its context, so that it notices that the call is over."""
        self.resume()
        for event in list(self._waits_for):
            event.set()

    def _interrupt(self) -> None:
        """Make all threads of the handler stop at their next step."""
        if self.ended is None:
            self.ended = errors.Cancelled("another thread of the call has failed")
        self.wake()

    def _wait_for_host(self, event: threading.Event) -> None:
        """Wait for `event` without occupying a thread. The deadline ends the call, and with it the wait."""
        with self._threads.waiting_for_host(self.job):
            self._wait_for(event, None)

    def _wait_for(self, event: threading.Event, seconds: float | None) -> None:
        """Wait for `event`. Raise CallEnded as soon as the call is over."""
        self._waits_for.append(event)
        try:
            self.check()
            event.wait(seconds)
            self.check()
        finally:
            self._waits_for.remove(event)


class Calls:
    """Runs open calls and ensures that each gets one reply.

    open: the calls without a reply, by id. bytes: the length of their requests. queue_target: in ms; 0: calls are not
    refused after they have been queued. path: runs handlers and encodes replies; set by the dispatcher.
    """

    path: FastPath

    def __init__(self, threads: Threads, sessions: Sessions, queue_target: float = 0.0) -> None:
        self.open: dict[Id, Call] = {}
        self.bytes = 0
        self._threads = threads
        self._sessions = sessions
        self._timers = Timers()
        self._counting = threading.Lock()
        self._shedding: Shedding[Call] | None = None
        if queue_target:
            self._shedding = Shedding(queue_target, lambda: threads.is_full, self._timers, self.end)

    @property
    def shed(self) -> int:
        """Return how many calls were refused after they had waited too long for a thread."""
        return 0 if self._shedding is None else self._shedding.shed

    def add(self, call: Call) -> None:
        """Open `call`, with its deadline if it has one."""
        with self._counting:
            self.open[call.id] = call
            self.bytes += call.frame_bytes
        if self._shedding is not None:
            self._shedding.enter(call)
        timeout = call.request.timeout_ms
        if timeout is not None:
            # NaN is not above 0 either.
            timeout = min(timeout, LONGEST_TIMEOUT_MS) if timeout > 0 else 0.0
            call.deadline_ns = call.received_ns + int(timeout * MILLISECOND)
            call.timer = Timer(call.deadline_ns, partial(self._end_if_late, call))
            self._timers.add(call.timer)

    def run(self, call: Call) -> None:
        """Run the handler and send the reply: on a thread, once the call has its turn."""
        try:
            outbox = Outbox()
            self._end_if_late(call)
            if self._shedding is None or self._shedding.admits(call):
                self._perform(call, outbox)
        except BaseException as error:  # the caller gets a reply even if the worker itself fails
            with limits.lifted():  # perhaps for want of memory
                outbox = Outbox()
                self.path.finish(call, outbox, failures.of_worker(error))
                with logging_call(call):
                    warn("a call broke the dispatcher", error=error)
                self._finish(call, outbox, has_returned=True)
        else:
            self._finish(call, outbox, has_returned=True)

    def _perform(self, call: Call, outbox: Outbox) -> None:
        self._load(call)
        if not call.answered:
            call.running = True
            with logging_call(call):
                self.path.run(call, outbox)

    def end(self, call: Call, error: errors.BridgeError) -> bool:
        """Answer `call` with `error` before its handler has returned. The handler stops at its next step.

        Return whether the call had no reply yet.
        """
        if not call.claim(error):
            return False
        try:
            self._answer(call, error)
        except MemoryError:
            with limits.lifted():
                self._answer(call, error)
        return True

    def _answer(self, call: Call, error: errors.BridgeError) -> None:
        call.wake()
        never_starts = call.job.drop()
        if self._threads.write_off(call.job):
            lost = self._threads.lost
            debug("%s %r is over, but its handler still runs; %d such threads", call.command.name, shown(call.id), lost)
        outbox = Outbox()
        self.path.finish(call, outbox, error)
        self._finish(call, outbox, has_returned=never_starts)

    def cancel(self, call_id: Id) -> bool:
        """End the open call of that id. Return whether there was one without a reply."""
        call = self.open.get(call_id)
        return call is not None and self.end(call, errors.Cancelled("the caller cancelled the call"))

    def pause(self, call_id: Id) -> bool:
        """Pause the events of the open call of that id. Return whether there is one."""
        call = self.open.get(call_id)
        if call is not None:
            call.pause()
        return call is not None

    def resume(self, call_id: Id) -> bool:
        """Resume the events of the open call of that id. Return whether there is one."""
        call = self.open.get(call_id)
        if call is not None:
            call.resume()
        return call is not None

    def stop_all(self) -> None:
        """Make all handlers stop at their next step. Results that they return are still sent."""
        for call in list(self.open.values()):
            call.ended = errors.Cancelled("the host is gone")
            call.wake()

    def stop(self, timeout: float) -> bool:
        """End the clock of the deadlines. Return whether it has ended within `timeout` seconds."""
        return self._timers.stop(timeout)

    def remove(self, call: Call) -> None:
        """Remove `call` from the open calls. Call this before its reply is sent: the host may then reuse the id."""
        with self._counting:
            if self.open.get(call.id) is call:
                del self.open[call.id]
                self.bytes -= call.frame_bytes
        if call.timer is not None:
            call.timer.cancel()
        if self._shedding is not None:
            self._shedding.leave(call)

    def _end_if_late(self, call: Call) -> None:
        if call.deadline_ns and now_ns() >= call.deadline_ns:
            timeout = call.request.timeout_ms
            self.end(call, errors.DeadlineExceeded(f"no result within {timeout:g} ms", timeout_ms=timeout))

    def _load(self, call: Call) -> None:
        """Load the call's session from the store if it is not loaded yet. End the call if that fails."""
        if not call.lane.loads:
            return
        if not call.answered and not call.changes_shared:
            try:
                self._sessions.load(call.session, check=not call.lane.optimistic)
            except errors.BridgeError as error:
                self.end(call, error)
        if not call.lane.changes:  # later calls of the session need not wait for this one
            call.turn.end()

    def _finish(self, call: Call, outbox: Outbox, *, has_returned: bool) -> None:
        """Send the reply, if `outbox` holds it, and end the turn. has_returned: whether the handler has returned.

        Only this method decides which comes first. The turn ends first, so that later calls do not wait until the host
        reads the reply, unless the next call could change what is still needed: the arrays that the reply is sent from,
        or the changes that a handler has made to a stored session without having returned.
        """
        if has_returned:
            sends_first = outbox.external and call.lane.changes
        else:
            is_stored = self._sessions.store is not None and call.lane.loads and not call.changes_shared
            sends_first = is_stored and call.has_turn
        try:
            if not sends_first:
                call.turn.end()
        finally:
            if len(outbox):
                self._reply(call, outbox)
            if has_returned:
                call.turn.end()

    def _reply(self, call: Call, outbox: Outbox) -> None:
        if call.sessions:  # first: a session with open calls does not expire
            call.session.touch()
        self.remove(call)
        with contextlib.suppress(OSError):  # the host is gone
            rest = call.deliver(outbox)
            if rest is not None:
                rest()


def change_shared(sessions: Sessions, handler: Handler, args: Any, call: Call) -> Any:
    """Run a handler that changes its session or, if the call names none, what all sessions share.

    The handler gets a copy of the shared dict, which replaces the dict if it returns before the call is over.
    """
    if not call.changes_shared:
        return in_transaction(handler, args, call)
    call.shared = dict(sessions.shared)
    result = handler(args, call)
    with call.gate:
        if not call.answered:
            sessions.shared = call.shared
    return result
