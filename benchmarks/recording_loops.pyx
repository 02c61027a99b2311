# cython: language_level=3, boundscheck=False, wraparound=False
"""Loops in C that `recording.py` times: they record a call as `_dispatch` does."""

from libc.stdint cimport int64_t, uint64_t

from bridge._histogram cimport Recorder, monotonic

from bridge.wire.messages import Failure


def nothing(int64_t[::1] times, list messages, list sessions, Recorder command):
    """Run the loop alone. Summing the numbers keeps the compiler from removing it."""
    cdef Py_ssize_t i, count = times.shape[0]
    cdef int64_t total = 0
    cdef object message, session
    for i in range(count):
        message = messages[i & 1]
        session = sessions[i % len(sessions)]
        total += times[i]
    return total


def clocks(int64_t[::1] times, list messages, list sessions, Recorder command):
    """Read the clock twice in each iteration."""
    cdef Py_ssize_t i, count = times.shape[0]
    cdef int64_t total = 0, arrived
    cdef object message, session
    for i in range(count):
        arrived = monotonic()
        message = messages[i & 1]
        session = sessions[i % len(sessions)]
        total += monotonic() - arrived + times[i]
    return total


def everything(int64_t[::1] times, list messages, list sessions, Recorder command):
    """Read the clock at the arrival, then do what `_dispatch` does: the clock, the command, the session."""
    cdef Py_ssize_t i, count = times.shape[0]
    cdef int64_t arrived, now, took
    cdef str category
    cdef object message, session
    for i in range(count):
        arrived = monotonic()
        message = messages[i & 1]
        session = sessions[i % len(sessions)]
        now = monotonic()
        took = now - arrived + times[i]
        category = message.category if type(message) is Failure else None
        command.add(now, took, 100, 200, category)
        (<Recorder?>session.recorder).add(now, took, 100, 200, category)
