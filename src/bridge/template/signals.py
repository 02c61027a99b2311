"""Signals as events: a descriptor that can be read when a signal has arrived."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator


class Signals:
    """Receives the signals `numbers` from now on; others that have a handler are received, too."""

    def __init__(self, *numbers: signal.Signals) -> None:
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)
        signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, lambda *_: None)

    def fileno(self) -> int:
        """Return the descriptor that can be read when `read` has something to return."""
        return self._read_fd

    def read(self) -> bytes:
        """Return the numbers of the signals that have arrived."""
        return os.read(self._read_fd, 4096)

    def forget(self) -> None:
        """Close the descriptors: for the child of a fork, which sets its own handlers."""
        os.close(self._read_fd)
        os.close(self._write_fd)


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Block all signals inside the `with` statement: they arrive after it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
