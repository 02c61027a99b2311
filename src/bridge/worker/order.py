"""The order of the calls in a session: one after another, each from its turn on."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

_ordering = threading.Lock()  # one for all, because there are many orders; held only for a moment


class Order:
    """Represents a queue of calls, each of which starts when the one before it has left."""

    __slots__ = ("_ended", "_is_passing_on", "_is_taken", "_waiting")

    def __init__(self) -> None:
        self._is_taken = False
        self._waiting: OrderedDict[Callable[[], None], None] | None = None
        self._ended = 0  # turns that are over, and after which the next call has not been started yet
        self._is_passing_on = False

    @property
    def is_taken(self) -> bool:
        """Return whether a call has its turn or waits for it."""
        return self._is_taken

    def enter(self, start: Callable[[], None]) -> None:
        """Call `start`, which must not wait here already, when its turn comes, perhaps immediately. `leave` ends that
        turn."""
        with _ordering:
            if self._is_taken:
                if self._waiting is None:
                    self._waiting = OrderedDict()
                self._waiting[start] = None
                return
            self._is_taken = True
        start()

    def withdraw(self, start: Callable[[], None]) -> None:
        """Remove `start`, which was passed to `enter`, if its turn has not come yet."""
        with _ordering:
            if self._waiting is not None:
                self._waiting.pop(start, None)

    def leave(self) -> None:
        """End the turn of the call that has it and start the next one.

        A call that is started here and leaves immediately does not start its successor itself, because that would nest
        thousands of calls.
        """
        with _ordering:
            self._ended += 1
            if self._is_passing_on:
                return
            self._is_passing_on = True
        while (start := self._next()) is not None:
            start()

    def _next(self) -> Callable[[], None] | None:
        with _ordering:
            while self._ended:
                self._ended -= 1
                if self._waiting:
                    return self._waiting.popitem(last=False)[0]
                self._is_taken = False
            self._is_passing_on = False
            return None


class Turn:
    """Represents the turn of one call, which comes when it is the call's turn in several orders.

    held: orders in which later calls wait until this turn ends. passed: orders in which the call waits for earlier
    calls and lets later ones pass. on_pass(): called each time it has passed one of those. start(): called when its
    turn has come in all of them.
    """

    __slots__ = ("_arrivals", "_held", "_is_over", "_missing", "_on_pass", "_start", "has_come")

    def __init__(
        self,
        held: Sequence[Order],
        start: Callable[[], None],
        passed: Sequence[Order] = (),
        on_pass: Callable[[], None] | None = None,
    ) -> None:
        self._arrivals = [
            *((order, partial(self._arrived, order, True)) for order in held),
            *((order, partial(self._arrived, order, False)) for order in passed),
        ]
        self._missing = len(self._arrivals)
        self._start = start
        self._on_pass = on_pass
        self._held: list[Order] = []
        self._is_over = False
        self.has_come = False

    def enter(self) -> None:
        """Enter the orders and return. `start` is called when the turn has come."""
        arrivals = self._arrivals
        for order, arrive in arrivals:
            order.enter(arrive)
        if not arrivals:
            self._start()

    def end(self) -> None:
        """End the turn, or the wait for it, after which `start` is not called. May be called more than once."""
        with _ordering:
            self._is_over = True
            self.has_come = False
            held, self._held = self._held, []
            arrivals, self._arrivals = self._arrivals, []
            waits = self._missing
        if waits:  # a call that is over must not stay in memory until the calls before it are
            for order, arrive in arrivals:
                order.withdraw(arrive)
        for order in held:
            order.leave()

    def _arrived(self, order: Order, holds: bool) -> None:
        if not holds and self._on_pass is not None:
            self._on_pass()
        with _ordering:
            is_over = self._is_over
            if not is_over:
                if holds:
                    self._held.append(order)
                self._missing -= 1
                self.has_come = not self._missing
            starts = self.has_come
        if is_over or not holds:
            order.leave()
        if starts and not is_over:
            self._start()
