"""The path of every frame: decode the request, look up its command, run an inline handler, encode the reply, record.

This module is compiled and contains only what every call needs: the command table here, the call as its handler sees it
in `dispatch/context.pxi`, the way from a frame to its reply in `dispatch/path.pxi`. Everything else (a broken frame, a
failed handler, a call for a thread) is passed to a policy, the dispatcher in `worker/dispatch.py`.
"""

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING
from libc.stdint cimport int64_t, uint64_t

from bridge._framing cimport HEADER, Frame, Outbox, is_multipart
from bridge._histogram cimport Recorder, monotonic
from bridge.wire._fields cimport field_at, offset_of
from bridge.wire._frames cimport FrameCodec, codec_of
from bridge.wire._limits cimport limited
from bridge._watch cimport in_fork

from os import register_at_fork
from threading import Lock
from time import sleep

from msgspec import UNSET

from bridge.wire._frames import codec_for, unknown_format
from bridge.wire.codec import JSON
from bridge.errors import BridgeError, CallEnded, InvalidFrame, NotAllowed, Overloaded, ReplyTooLarge, shown
from bridge._framing import EVENT, HOST_CALL, buffers_of, envelope_beginning, envelope_of
from bridge.wire.messages import Envelope, Event, Failure, Reply, TimedReply


cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <stdio.h>
    #include <time.h>
    #ifdef CLOCK_REALTIME_COARSE
    #define BRIDGE_WALL_CLOCK CLOCK_REALTIME_COARSE  /* ticks of 4 ms, at a fifth of the cost */
    #else
    #define BRIDGE_WALL_CLOCK CLOCK_REALTIME
    #endif
    /* Milliseconds since the epoch. */
    static int64_t bridge_wall(void) {
        struct timespec now;
        clock_gettime(BRIDGE_WALL_CLOCK, &now);
        return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
    }
    static void bridge_iso8601(int64_t milliseconds, char *text) {
        time_t seconds = milliseconds / 1000;
        struct tm parts;
        gmtime_r(&seconds, &parts);
        size_t length = strftime(text, 25, "%Y-%m-%dT%H:%M:%S", &parts);
        snprintf(text + length, 8, ".%03dZ", (int)(milliseconds % 1000));
    }
    """
    int64_t bridge_wall() nogil
    void bridge_iso8601(int64_t milliseconds, char *text) nogil


cdef int64_t stamped = -1
cdef str stamp = ""


cpdef str timestamp():
    """Return the current time as ISO 8601 in UTC, accurate to a tick of the coarse clock (4 ms on Linux)."""
    global stamped, stamp
    cdef int64_t now = bridge_wall()
    cdef char text[40]
    if now != stamped:
        bridge_iso8601(now, text)
        stamp = text.decode("ascii")
        stamped = now
    return stamp


cdef int64_t started = monotonic()  # the start of the process: this module is loaded early


def _start_again():
    global started
    started = monotonic()


register_at_fork(after_in_child=_start_again)  # a worker that is forked has an age of its own


cdef inline int refuse_in_fork() except -1:
    """Raise CallEnded in a child of the worker."""
    if in_fork():
        raise CallEnded("this is a child of the worker")
    return 0


cdef object observer = None


def observe(begin):
    """Call begin(context) when a call begins, from now on. None: stop doing that.

    What it returns is called on the same thread when the call ends, with its Failure or None. Neither may raise.
    """
    global observer
    observer = begin


cdef object call_log = None


def log_calls(log):
    """Call log(context, nanoseconds, Failure or None) when a call is answered, from now on. None: stop doing that.

    It must not raise.
    """
    global call_log
    call_log = log


@cython.final
cdef class Command:
    """Represents a row of the command table.

    run(args, context): the handler. decode(format, raw, buffers): returns its args; None: they are not decoded.
    inline: whether it runs on the thread that reads the frames. spec: its declaration, which only the policy uses.
    """

    cdef readonly str name
    cdef readonly object run
    cdef readonly object decode
    cdef readonly bint inline
    cdef readonly object spec
    cdef readonly Recorder recorder

    def __init__(self, str name, run, decode, bint inline, spec):
        self.name = name
        self.run = run
        self.decode = decode
        self.inline = inline
        self.spec = spec
        self.recorder = Recorder()


include "dispatch/context.pxi"
include "dispatch/path.pxi"
