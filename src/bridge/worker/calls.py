"""The calls that threads have: found by id, ended before their handlers are done."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable

from bridge import errors
from bridge._dispatch import Context
from bridge._framing import Outbox
from bridge._histogram import now_ns
from bridge.wire.messages import Id

# Sends what is in an outbox. What it returns, if anything, is called when no lock is held: a host's callback may block.
Deliver = Callable[[Outbox], Callable[[], None] | None]

MILLISECOND = 1_000_000  # ns
LONGEST_TIMEOUT_MS = 86_400_000.0  # a day; longer ones count as this


class Calls:
    """The open calls by id, and the clock that ends them.

    bytes: of the frames that brought them. end(context, error): answers a call in place of its
    handler.
    """

    def __init__(self, end: Callable[[Context, errors.BridgeError], bool]) -> None:
        self.open: dict[Id, Context] = {}
        self.bytes = 0
        self._counting = threading.Lock()
        self._end = end
        self._changed = threading.Condition()
        # (deadline, a number that no other has, [the call, or None once it is over])
        self._deadlines: list[tuple[int, int, list[Context | None]]] = []
        self._numbers = itertools.count()
        self._clock: threading.Thread | None = None
        self._stopped = False

    def add(self, context: Context) -> None:
        """Take `context` in, with its deadline if it has one."""
        with self._counting:
            self.open[context.id] = context
            self.bytes += context.frame_bytes
        timeout = context.request.timeout_ms
        if timeout is not None:
            # NaN is not above 0 either.
            timeout = min(timeout, LONGEST_TIMEOUT_MS) if timeout > 0 else 0.0
            context.deadline_ns = context.received_ns + int(timeout * MILLISECOND)
            self._watch(context)

    def remove(self, context: Context) -> None:
        """Forget a call that is over. To be called before its reply leaves: its
        reader may use the id again at once."""
        with self._counting:
            if self.open.get(context.id) is context:
                del self.open[context.id]
                self.bytes -= context.frame_bytes
        if context.slot is not None:
            context.slot[0] = None  # so that the clock keeps nothing alive until the deadline

    def end_if_late(self, context: Context) -> None:
        """End the call if its deadline has passed."""
        if context.deadline_ns and now_ns() >= context.deadline_ns:
            timeout = context.request.timeout_ms
            self._end(
                context,
                errors.DeadlineExceeded(f"no result within {timeout:g} ms", timeout_ms=timeout),
            )

    def cancel(self, call_id: Id) -> bool:
        """End an open call; whether there was one that had no reply yet."""
        context = self.open.get(call_id)
        if context is None:
            return False
        return self._end(context, errors.Cancelled("the caller cancelled the call"))

    def stop_all(self) -> None:
        """Tell all handlers to stop at their next step; what they answer still counts."""
        for context in list(self.open.values()):
            context.ended = errors.Cancelled("the host is gone")
            wake(context)

    def stop(self, timeout: float) -> bool:
        """End the clock; whether it has ended within `timeout` seconds."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
            clock = self._clock
        if clock is None:
            return True
        clock.join(timeout)
        return not clock.is_alive()

    def _watch(self, context: Context) -> None:
        context.slot = [context]
        with self._changed:
            entry = (context.deadline_ns, next(self._numbers), context.slot)
            heapq.heappush(self._deadlines, entry)
            if self._clock is None:
                self._clock = threading.Thread(target=self._run_clock, name="bridge-clock", daemon=True)
                self._clock.start()
            elif self._deadlines[0] is entry:
                self._changed.notify()

    def _run_clock(self) -> None:
        while True:
            with self._changed:
                while not self._deadlines or self._deadlines[0][0] > now_ns():
                    if self._stopped:
                        return
                    self._changed.wait(self._until_next())
                if self._stopped:
                    return
                _, _, slot = heapq.heappop(self._deadlines)
            context = slot[0]
            if context is not None:
                self.end_if_late(context)

    def _until_next(self) -> float | None:
        if not self._deadlines:
            return None
        return max(0.0, (self._deadlines[0][0] - now_ns()) / 1e9)


def pause(context: Context) -> None:
    """Hold back the call's events from now on."""
    if context.paused is None or context.paused.is_set():
        context.paused = threading.Event()
        if context.answered:  # `wake` came before there was something to wake
            context.paused.set()


def resume(context: Context) -> None:
    """Let them go again."""
    if context.paused is not None:
        context.paused.set()


def wake(context: Context) -> None:
    """Let a handler that waits inside the worker see that its call is over."""
    resume(context)
    waiting = context.waiting
    if waiting is not None:
        waiting.event.set()
