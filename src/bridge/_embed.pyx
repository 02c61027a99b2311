"""What capi/bridge.c calls: a request from memory to the path and what comes of it back to C.

Bytes and callables only; which dispatcher that is, and how it begins and ends, stands in
`embed.py`.
"""

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
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
cdef class Door:
    """One dispatcher for callers in C.

    answer(frame, outbox, deliver) -> whether it was told to end: as `Path.answer`. refuse(error,
    outbox, beginning): as `Path.refuse`. arrival: the lock that orders requests; nothing is
    delivered while it is held. cancel(number): ends a call. ended: whether it answers no more; who waits for the lock is not answered either.
    """

    cdef object answer
    cdef object refuse
    cdef object arrival
    cdef object cancel
    cdef uint64_t max_frame
    cdef unsigned long arriving  # the thread that has the lock
    cdef list kept_back          # what came on that thread meanwhile
    cdef readonly dict coming    # whether each submitted call that has not arrived is cancelled
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
        self.kept_back = []
        self.coming = {}


@cython.final
cdef class Call:
    """Where what comes of a request is delivered, one after the other. number: the caller's for it.

    A callback may block: it is called when no lock is held, and holds up what comes behind it, but
    not who brings that.
    """

    cdef Door door
    cdef readonly uint64_t number
    cdef bridge_run run
    cdef void *handle
    cdef bridge_callback callback  # NULL behind the reply
    cdef void *context
    cdef bint streams
    cdef list queue
    cdef bint is_delivering

    def __init__(self):
        raise TypeError("a Call is made by its door")

    def __call__(self, Outbox outbox not None):
        if self.door.arriving == PyThread_get_thread_ident():
            self.door.kept_back.append((self, outbox))
            return None
        self.queue.append(outbox)
        return self.deliver_all

    def deliver_all(self):
        """Deliver what is in the queue, unless another thread is at it."""
        if self.is_delivering:
            return
        self.is_delivering = True
        try:
            while self.queue:  # nobody else has the GIL between this and the end
                self.deliver(self.queue.pop(0))
        finally:
            self.is_delivering = False

    cdef int deliver(self, Outbox outbox) except -1:
        cdef bridge_callback callback = self.callback
        cdef void *context = self.context
        cdef bridge_bytes bytes
        cdef bridge_kind kind = <bridge_kind>outbox.kind
        if kind != BRIDGE_REPLY and (callback is NULL or not self.streams):
            callback = self.door.listener
            context = self.door.context
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
        if self.callback is not NULL:  # nobody is left who could reply
            none.data = none.owner = NULL
            none.size = 0
            self.run(self.handle, self.callback, self.context, BRIDGE_REPLY, &none)


cdef int hand_over(Outbox outbox, bridge_bytes *bytes) except -1:
    """The payload of the only frame in it, with a reference to what holds it."""
    cdef object owner
    if outbox.buffers is None:
        owner = outbox.data
        bytes.data = PyByteArray_AS_STRING(owner) + HEADER
        bytes.size = outbox.used - HEADER
    else:
        owner = b"".join(outbox.parts())
        bytes.data = PyBytes_AS_STRING(owner) + HEADER
        bytes.size = PyBytes_GET_SIZE(owner) - HEADER
    Py_INCREF(owner)
    bytes.owner = <void *>owner
    return 0


cdef int answer(PyObject *door_, const bridge_request *request, uint64_t number,
                bridge_callback callback, void *context, int streams,
                bridge_bytes *reply) except -1:
    cdef Door door = <Door>door_
    cdef Outbox outbox = Outbox()
    cdef Frame frame
    cdef Call call
    cdef void *copy
    if request.size > door.max_frame:
        if request.release is not NULL:
            request.release(request.context)
        door.refuse(FrameTooLarge.announced(request.size, door.max_frame), outbox, None)
    else:
        try:
            frame = frame_over(request.data, request.size, request.release, request.context)
        except BaseException:
            if request.release is not NULL:
                request.release(request.context)
            raise
        call = Call.__new__(Call)
        call.door = door
        call.run = door.run
        call.handle = door.handle
        call.number = number
        call.context = context
        call.streams = streams
        call.queue = []
        if not streams:  # nobody has its number
            if not arrive(door, frame, outbox, call, callback):
                return BRIDGE_ENDED
        else:
            door.coming[number] = False
            try:
                if not arrive(door, frame, outbox, call, callback):
                    return BRIDGE_ENDED
            finally:
                is_cancelled = door.coming.pop(number)
            if is_cancelled:
                door.cancel(number)
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


cdef int arrive(Door door, Frame frame, Outbox outbox, Call call,
                bridge_callback callback) except -1:
    """Whether the door still answers; then it has, or will."""
    cdef list kept_back = None
    with door.arrival:
        if door.ended:
            return 0
        door.arriving = PyThread_get_thread_ident()
        call.callback = callback  # from here on it owes its reply
        try:
            if door.answer(frame, outbox, call):
                door.ended = True
        except BaseException:
            call.callback = NULL
            raise
        finally:
            door.arriving = 0
            if door.kept_back:
                kept_back, door.kept_back = door.kept_back, []
    try:
        if kept_back is not None:
            for other, message in kept_back:
                (<Call>other).queue.append(message)
                (<Call>other).deliver_all()
    finally:
        if len(outbox):  # the caller of this has the reply
            call.callback = NULL
    return 1


cdef int attach(PyObject *door_, bridge_run run, void *handle) except -1:
    cdef Door door = <Door>door_
    door.run = run
    door.handle = handle
    return 0


cdef int listen(PyObject *door_, bridge_callback callback, void *context) except -1:
    cdef Door door = <Door>door_
    door.listener = callback
    door.context = context
    return BRIDGE_ENDED if door.ended else 0


cdef bridge_embed _interface
_interface.attach = attach
_interface.answer = answer
_interface.listen = listen
interface_1 = PyCapsule_New(&_interface, BRIDGE_EMBED_CAPSULE, NULL)
