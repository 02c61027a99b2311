"""The functions that capi/bridge.c calls: they pass a request in memory to a dispatcher and its messages back to C.

This module handles only bytes and callables; `embed.py` makes, starts and closes the dispatcher.
"""

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_GET_BUFFER
from cpython.pycapsule cimport PyCapsule_New
from cpython.ref cimport Py_INCREF, PyObject
from libc.stdint cimport uint64_t
from libc.stdlib cimport malloc
from libc.string cimport memcpy

from bridge._framing cimport HEADER, Frame, Outbox, frame_over

from bridge.errors import FrameTooLarge


cdef extern from "embed.h":
    ctypedef struct bridge_request:
        const void *data
        size_t size
        void (*release)(void *) noexcept nogil
        void *context

    ctypedef struct bridge_bytes:
        const void *data
        size_t size
        void *owner

    ctypedef enum bridge_kind:
        BRIDGE_REPLY
        BRIDGE_EVENT
        BRIDGE_HOST_CALL

    enum:
        BRIDGE_LATER
        BRIDGE_REPLIED
        BRIDGE_ENDED

    ctypedef void (*bridge_callback)(void *, bridge_kind, bridge_bytes *) noexcept nogil

    ctypedef void (*bridge_run)(void *, bridge_callback, void *, bridge_kind,
                                bridge_bytes *) noexcept

    ctypedef struct bridge_embed:
        int (*attach)(PyObject *, bridge_run, void *) except -1
        int (*answer)(PyObject *, const bridge_request *, uint64_t, bridge_callback, void *, int,
                      bridge_bytes *) except -1
        int (*listen)(PyObject *, bridge_callback, void *) except -1

    const char *BRIDGE_EMBED_CAPSULE


cdef extern from "pythread.h":
    unsigned long PyThread_get_thread_ident() nogil


cdef extern from "Python.h":
    void Py_XDECREF(PyObject *)


cdef enum:
    COPIED = 64 * 1024  # bytes: shorter replies are copied, which frees them without the GIL


@cython.final
cdef class Endpoint:
    """Represents a dispatcher for callers in C.

    answer(frame, outbox, deliver): answers a request as `FastPath.answer` does, and returns whether the request asked
    the worker to end. refuse(error, outbox, beginning): answers a request that cannot be read, as `FastPath.refuse`
    does. arrival: the lock that orders requests; no message is delivered while it is held. cancel(number): cancels a
    call. ended: whether requests are no longer answered, including those that wait for the lock.
    """

    cdef object answer
    cdef object refuse
    cdef object arrival
    cdef object cancel
    cdef uint64_t max_frame
    cdef unsigned long arriving  # the thread that holds the lock
    cdef list postponed          # messages made on that thread in the meantime, to be delivered without the lock
    cdef readonly dict pending   # number of a submitted call that has not arrived yet -> whether it is cancelled
    cdef public bint ended
    cdef bridge_run run
    cdef void *handle
    cdef bridge_callback listener
    cdef void *context

    def __init__(self, answer, refuse, arrival, cancel, uint64_t max_frame):
        self.cancel = cancel
        self.answer = answer
        self.refuse = refuse
        self.arrival = arrival
        self.max_frame = max_frame
        self.postponed = []
        self.pending = {}


@cython.final
cdef class Call:
    """Delivers the messages of a call, one after the other. number: the number of the call in C.

    A callback may block: no lock is held while it is called. It delays later messages, but not the threads that make
    them.
    """

    cdef Endpoint endpoint
    cdef readonly uint64_t number
    cdef bridge_run run
    cdef void *handle
    cdef bridge_callback callback  # NULL after the reply
    cdef void *context
    cdef bint streams
    cdef list queue
    cdef bint is_delivering

    def __init__(self):
        raise TypeError("a Call is made by its endpoint")

    def __call__(self, Outbox outbox not None):
        if self.endpoint.arriving == PyThread_get_thread_ident():
            self.endpoint.postponed.append((self, outbox))
            return None
        self.queue.append(outbox)
        return self.deliver_all

    def deliver_all(self):
        """Deliver the messages in the queue, unless another thread does so already."""
        if self.is_delivering:
            return
        self.is_delivering = True
        try:
            while self.queue:  # the GIL is not released between the last check and the end
                self.deliver(self.queue.pop(0))
        finally:
            self.is_delivering = False

    cdef int deliver(self, Outbox outbox) except -1:
        cdef bridge_callback callback = self.callback
        cdef void *context = self.context
        cdef bridge_bytes bytes
        cdef bridge_kind kind = <bridge_kind>outbox.kind
        if kind != BRIDGE_REPLY and (callback is NULL or not self.streams):
            callback = self.endpoint.listener
            context = self.endpoint.context
        if callback is NULL:
            return 0
        hand_over(outbox, &bytes)
        if kind == BRIDGE_REPLY:
            self.callback = NULL
        self.run(self.handle, callback, context, kind, &bytes)
        Py_XDECREF(<PyObject *>bytes.owner)
        return 0

    def __dealloc__(self):
        cdef bridge_bytes none
        if self.callback is not NULL:  # nothing can reply any more
            none.data = none.owner = NULL
            none.size = 0
            self.run(self.handle, self.callback, self.context, BRIDGE_REPLY, &none)


cdef int hand_over(Outbox outbox, bridge_bytes *bytes) except -1:
    """Return the payload of the only frame in `outbox`, with a reference to the object that holds it."""
    cdef object owner
    if outbox.buffers is None:
        owner = outbox.data
        bytes.data = PyByteArray_AS_STRING(owner) + HEADER
        bytes.size = outbox.used - HEADER
    elif outbox.used == HEADER:  # only a long message, which is in memory of its own
        owner = outbox.buffers[0][1]
        bytes.data = <char *>PyMemoryView_GET_BUFFER(owner).buf
        bytes.size = outbox.external
    else:
        owner = b"".join(outbox.parts())
        bytes.data = PyBytes_AS_STRING(owner) + HEADER
        bytes.size = PyBytes_GET_SIZE(owner) - HEADER
    Py_INCREF(owner)
    bytes.owner = <void *>owner
    return 0


cdef int answer(PyObject *endpoint_, const bridge_request *request, uint64_t number,
                bridge_callback callback, void *context, int streams,
                bridge_bytes *reply) except -1:
    cdef Endpoint endpoint = <Endpoint>endpoint_
    cdef Outbox outbox = Outbox()
    cdef Frame frame
    cdef Call call
    cdef void *copy
    if request.size > endpoint.max_frame:
        if request.release is not NULL:
            request.release(request.context)
        endpoint.refuse(FrameTooLarge.announced(request.size, endpoint.max_frame), outbox, None)
    else:
        try:
            frame = frame_over(request.data, request.size, request.release, request.context)
        except BaseException:
            if request.release is not NULL:
                request.release(request.context)
            raise
        call = Call.__new__(Call)
        call.endpoint = endpoint
        call.run = endpoint.run
        call.handle = endpoint.handle
        call.number = number
        call.context = context
        call.streams = streams
        call.queue = []
        if not streams:  # the caller does not know the number, so it cannot cancel the call
            if not arrive(endpoint, frame, outbox, call, callback):
                return BRIDGE_ENDED
        else:
            endpoint.pending[number] = False
            try:
                if not arrive(endpoint, frame, outbox, call, callback):
                    return BRIDGE_ENDED
            finally:
                is_cancelled = endpoint.pending.pop(number)
            if is_cancelled:
                endpoint.cancel(number)
    if not len(outbox):
        return BRIDGE_LATER
    reply.owner = NULL
    reply.size = outbox.used - HEADER
    if outbox.buffers is None and reply.size <= COPIED:
        copy = malloc(reply.size)
        if copy is NULL:
            raise MemoryError()
        memcpy(copy, PyByteArray_AS_STRING(outbox.data) + HEADER, reply.size)
        reply.data = copy
    else:
        hand_over(outbox, reply)
    return BRIDGE_REPLIED


cdef int arrive(Endpoint endpoint, Frame frame, Outbox outbox, Call call,
                bridge_callback callback) except -1:
    """Answer the request, now or later through `call`. Return false if the endpoint no longer answers requests."""
    cdef list postponed = None
    with endpoint.arrival:
        if endpoint.ended:
            return 0
        endpoint.arriving = PyThread_get_thread_ident()
        call.callback = callback  # from here on the call must get a reply
        try:
            if endpoint.answer(frame, outbox, call):
                endpoint.ended = True
        except BaseException:
            call.callback = NULL
            raise
        finally:
            endpoint.arriving = 0
            if endpoint.postponed:
                postponed, endpoint.postponed = endpoint.postponed, []
    try:
        if postponed is not None:
            for other, message in postponed:
                (<Call>other).queue.append(message)
                (<Call>other).deliver_all()
    finally:
        if len(outbox):  # the caller of this function has the reply
            call.callback = NULL
    return 1


cdef int attach(PyObject *endpoint_, bridge_run run, void *handle) except -1:
    cdef Endpoint endpoint = <Endpoint>endpoint_
    endpoint.run = run
    endpoint.handle = handle
    return 0


cdef int listen(PyObject *endpoint_, bridge_callback callback, void *context) except -1:
    cdef Endpoint endpoint = <Endpoint>endpoint_
    endpoint.listener = callback
    endpoint.context = context
    return BRIDGE_ENDED if endpoint.ended else 0


cdef bridge_embed _interface
_interface.attach = attach
_interface.answer = answer
_interface.listen = listen
interface_1 = PyCapsule_New(&_interface, BRIDGE_EMBED_CAPSULE, NULL)
