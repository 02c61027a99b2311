"""Adapters that notice how often and where a template prepares them."""

from __future__ import annotations

import atexit
import os
import random
import signal
import sys
import threading
import time
from typing import Any

import numpy.random

from bridge import Adapter

_warm_ups: list[int] = []
_rehearsals: list[int] = []


def _declared(adapter: Adapter) -> Adapter:
    @adapter.command("rehearse")
    def rehearse(args: Any, context: Any) -> dict[str, Any]:
        """Count how often this is called."""
        _rehearsals.append(os.getpid())
        return {}

    @adapter.command("warmth")
    def warmth(args: Any, context: Any) -> dict[str, Any]:
        """Return how often the adapter was prepared."""
        return {"warm_ups": len(_warm_ups), "warmed_in": _warm_ups[0], "rehearsals": len(_rehearsals)}

    @adapter.command("random_numbers")
    def random_numbers(args: Any, context: Any) -> dict[str, Any]:
        """Return a number of each global generator."""
        return {"python": random.random(), "numpy": numpy.random.random()}

    return adapter


def _leave_a_mark() -> None:
    if path := os.environ.get("EXIT_HOOK"):
        with open(path, "w") as file:
            file.write(str(os.getpid()))


atexit.register(_leave_a_mark)

adapter = _declared(
    Adapter("warmed", warm_up=lambda: _warm_ups.append(os.getpid()), rehearse=lambda call: call("rehearse"))
)

broken = Adapter("broken", rehearse=lambda call: call("fail"))


@broken.command("fail")
def fail(args: Any, context: Any) -> dict[str, Any]:
    """Raise."""
    raise ValueError("no")


def _raise() -> None:
    raise ValueError("there is no key")


raising = Adapter("raising", warm_up=_raise)
exiting = Adapter("exiting", rehearse=lambda call: sys.exit(3))
signalled = Adapter(
    "signalled",
    warm_up=lambda: os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM)),
)
slow = Adapter("slow", warm_up=lambda: time.sleep(600))


def _leave_a_thread() -> None:
    threading.Thread(target=time.sleep, args=(600,), name="left-behind", daemon=True).start()


threaded = Adapter("threaded", warm_up=_leave_a_thread)
