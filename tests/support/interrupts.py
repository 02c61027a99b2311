"""Exceptions as a signal handler raises them, at each moment of a function."""

import sys
import threading

from peer import DEADLINE


class Interrupt(BaseException):
    """Raised in place of KeyboardInterrupt, which pytest understands as the user's."""


def interrupted(moment, function):
    """Call a function, raise Interrupt at one of the moments when a signal handler may run in it, and return whether
    there are so many: at the beginning of functions written in Python, and after others."""
    seen = 0

    def count(frame, event, arg):
        nonlocal seen
        seen += event in ("call", "c_return")
        if seen > moment:
            raise Interrupt

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        kept = function()  # noqa: F841  # whose destructor is not to be interrupted
    except BaseException as error:
        # What an interrupted wait raises is of Python's own making if it cannot take its lock again.
        if not isinstance(error, Interrupt | RuntimeError):
            raise
        return True
    finally:
        sys.setprofile(before)
    return False


def elsewhere(function):
    """Return what a function returns on another thread. Fails if it waits for something that this one has locked."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()
    thread.join(DEADLINE)
    assert results, "it is still waiting"
    return results[0]
