"""A condition variable for threads that signal handlers interrupt."""

from __future__ import annotations

import threading
from operator import attrgetter


class Condition(threading.Condition):
    """A `threading.Condition` that an exception of a signal handler, as KeyboardInterrupt, never leaves locked.

    `with` calls the methods of the lock itself. Those of `threading.Condition` are Python functions: interrupted after
    they have taken the lock, or before they release it, they leave it locked, and other threads wait for ever.
    """

    __enter__ = property(attrgetter("_lock.__enter__"))
    __exit__ = property(attrgetter("_lock.__exit__"))
