"""The background thread of a synchronous client: an event loop that also reads while no caller does."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import select
import threading
import time
from collections.abc import Callable
from typing import Any

from bridge.host._inbox import Inbox

PAUSE = 0.01  # seconds without a reading caller, after which the thread reads

Callback = Callable[[], Any]


class Background:
    """An event loop with the methods of asyncio's that `Transport` needs, in a thread of its own.

    It watches the worker's stdout only while the inbox lets it read. Writers may be added from any thread.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._readers: dict[int, Callback] = {}
        self._writers: dict[int, Callback] = {}
        self._timers: list[tuple[float, int, Callback]] = []
        self._numbers = itertools.count()

    def start(self, inbox: Inbox, output_fd: int) -> None:
        """Start the thread, which runs until no reader is left. Raises RuntimeError if there is no thread."""
        self._epoll.unregister(output_fd)
        thread = threading.Thread(target=self._run, args=(inbox, output_fd), name="bridge-background", daemon=True)
        thread.start()

    def add_reader(self, fd: int, callback: Callback) -> None:
        """Call `callback` whenever `fd` is readable."""
        self._readers[fd] = callback
        self._epoll.register(fd, select.EPOLLIN)

    def remove_reader(self, fd: int) -> None:
        """Do not watch `fd` anymore. Has no effect if it is not watched."""
        if self._readers.pop(fd, None) is not None:
            self._unregister(fd)

    def add_writer(self, fd: int, callback: Callback) -> None:
        """Call `callback` whenever `fd` accepts bytes. Has no effect if it is watched already."""
        self._writers[fd] = callback
        with contextlib.suppress(FileExistsError):
            self._epoll.register(fd, select.EPOLLOUT)

    def remove_writer(self, fd: int) -> None:
        """Do not watch `fd` anymore. Has no effect if it is not watched."""
        if self._writers.pop(fd, None) is not None:
            self._unregister(fd)

    def call_later(self, delay: float, callback: Callback) -> None:
        """Call `callback` after `delay` seconds. To be called in the loop's thread only."""
        heapq.heappush(self._timers, (time.monotonic() + delay, next(self._numbers), callback))

    def _run(self, inbox: Inbox, output_fd: int) -> None:
        leads, is_reading = -1, False
        while self._readers:
            # A caller that has read is likely to read again soon; if it reads for long, it wakes this thread.
            is_idle, leads = leads == inbox.leads, inbox.leads
            reads = inbox.take_over(is_idle) and output_fd in self._readers
            if reads != is_reading:
                is_reading = reads
                if reads:
                    self._epoll.register(output_fd, select.EPOLLIN)
                else:
                    self._unregister(output_fd)
            self._run_once(None if is_idle or reads else PAUSE)
            inbox.give_up()
        self._epoll.close()

    def _run_once(self, timeout: float | None) -> None:
        """Wait for a descriptor or a timer, at most `timeout` seconds, and run the callbacks."""
        if self._timers:
            left = max(0.0, self._timers[0][0] - time.monotonic())
            timeout = left if timeout is None else min(left, timeout)
        for fd, events in self._epoll.poll(timeout):
            callbacks = self._writers if events & select.EPOLLOUT else self._readers
            callback = callbacks.get(fd) or self._writers.get(fd)  # an error is reported without EPOLLOUT
            if callback is not None:
                callback()
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()

    def _unregister(self, fd: int) -> None:
        with contextlib.suppress(FileNotFoundError, ValueError):  # stdout is not always registered
            self._epoll.unregister(fd)
