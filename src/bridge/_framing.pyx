"""Frames on a descriptor: 4-byte big-endian length, then the payload.

Bytes and descriptors only: what a frame means is decided by whoever is handed it. A `Reader` fills
write-once slabs straight from the descriptor and hands out frames that are views of them; a
`Writer` sends whole frames under a native lock; `serve` joins both around an answering callable.
`framing.py` states the same wire in plain Python.
"""

cimport cython
from cpython.buffer cimport (PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release,
                             PyObject_GetBuffer)
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE, PyByteArray_Resize
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, ECONNRESET, EINTR, ENOMEM, EPIPE, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove, memset


from bridge.errors import FrameTooLarge, InvalidFrame


cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <limits.h>
    #include <poll.h>
    #include <pthread.h>
    #include <stdlib.h>
    #include <sys/mman.h>
    #include <sys/stat.h>
    #include <sys/uio.h>
    #include <time.h>
    #include <unistd.h>

    enum { BRIDGE_ALIGNMENT = 64, BRIDGE_HEADER = 4 };
    enum { BRIDGE_MAPPED_FROM = 1 << 20, BRIDGE_HUGE_PAGE = 1 << 21 }; /* bytes */

    /* The payload of a frame that begins a slab is aligned. `room` bytes can be used, `size` are:
       a slab that is used again may be a little longer than its frame. */
    struct bridge_slab {
        int references;
        size_t size, room;
        void (*release)(void *);  /* of bytes that are somebody else's, instead of `data` */
        void *context;
        unsigned char padding[BRIDGE_ALIGNMENT - BRIDGE_HEADER - 5 * sizeof(size_t)];
        unsigned char data[];
    };

    /* Zeroing fresh memory page by page takes longer than filling it from a pipe. Only whole huge
       pages, so that no more than the slab becomes resident. */
    static void *bridge_map(size_t size) {
        void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED) return NULL;
    #ifdef MADV_HUGEPAGE
        uintptr_t mask = BRIDGE_HUGE_PAGE - 1;
        uintptr_t begin = ((uintptr_t)at + mask) & ~mask, end = ((uintptr_t)at + size) & ~mask;
        if (begin < end) madvise((void *)begin, end - begin, MADV_HUGEPAGE);
    #endif
        return at;
    }
    static bridge_slab *slab_new(size_t room) {
        void *at;
        size_t size = sizeof(bridge_slab) + room;
        if (size < room) return NULL;
        if (room >= BRIDGE_MAPPED_FROM) at = bridge_map(size);
        else if (posix_memalign(&at, BRIDGE_ALIGNMENT, size)) at = NULL;
        if (at) *(bridge_slab *)at = (bridge_slab){.references = 1, .size = room, .room = room};
        return at;
    }
    static void slab_free(bridge_slab *slab) {
        if (slab->release) slab->release(slab->context);
        if (slab->room >= BRIDGE_MAPPED_FROM) munmap(slab, sizeof(bridge_slab) + slab->room);
        else free(slab);
    }
    static void slab_hold(bridge_slab *slab) {
        __atomic_add_fetch(&slab->references, 1, __ATOMIC_RELAXED);
    }
    static void slab_release(bridge_slab *slab) {
        if (slab && __atomic_sub_fetch(&slab->references, 1, __ATOMIC_ACQ_REL) == 0)
            slab_free(slab);
    }
    static void slab_entrust(bridge_slab *slab, void (*release)(void *), void *context) {
        slab->release = release;
        slab->context = context;
    }
    static int slab_is_sole(bridge_slab *slab) {
        return __atomic_load_n(&slab->references, __ATOMIC_ACQUIRE) == 1;
    }

    static uint32_t bridge_load_be32(const unsigned char *p) {
        return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
    }
    static void bridge_store_be32(unsigned char *p, uint32_t value) {
        p[0] = value >> 24; p[1] = value >> 16; p[2] = value >> 8; p[3] = value;
    }

    /* A host may have set O_NONBLOCK on the descriptor it shares with us. 0 when `ms` are over. */
    static int bridge_await(int fd, short events, int ms) {
        struct pollfd entry = {fd, events, 0};
        return poll(&entry, 1, ms);
    }

    static int64_t bridge_now_ms(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
    }

    /* 0, or the errno. Consumes `parts`: short writes move them along. */
    static int bridge_writev_all(int fd, struct iovec *parts, int count) {
        while (count > 0) {
            ssize_t sent = writev(fd, parts, count < IOV_MAX ? count : IOV_MAX);
            if (sent < 0) {
                if (errno == EINTR) continue;
                if (errno != EAGAIN && errno != EWOULDBLOCK) return errno;
                bridge_await(fd, POLLOUT, -1);
                continue;
            }
            while (count > 0 && (size_t)sent >= parts->iov_len) {
                sent -= parts->iov_len; parts++; count--;
            }
            if (count > 0) {
                parts->iov_base = (char *)parts->iov_base + sent; parts->iov_len -= sent;
            }
        }
        return 0;
    }

    static int bridge_is_pipe(int fd) {
        struct stat status;
        return fstat(fd, &status) == 0 && S_ISFIFO(status.st_mode);
    }

    /* Long writes would wait forever for a moment without a short one. */
    static int bridge_init_lock(pthread_rwlock_t *lock) {
        pthread_rwlockattr_t attributes;
        pthread_rwlockattr_init(&attributes);
    #ifdef __GLIBC__
        pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    #endif
        int error = pthread_rwlock_init(lock, &attributes);
        pthread_rwlockattr_destroy(&attributes);
        return error;
    }

    static int bridge_set_pipe_size(int fd, int bytes) {
    #ifdef F_SETPIPE_SZ
        return fcntl(fd, F_SETPIPE_SZ, bytes);
    #else
        return -1;
    #endif
    }
    """
    bridge_slab *slab_new(size_t size) nogil
    void slab_hold(bridge_slab *slab) nogil
    void slab_release(bridge_slab *slab) nogil
    void slab_entrust(bridge_slab *slab, void (*release)(void *) noexcept nogil, void *context) nogil
    bint slab_is_sole(bridge_slab *slab) nogil
    uint32_t bridge_load_be32(const unsigned char *p) nogil
    void bridge_store_be32(unsigned char *p, uint32_t value) nogil
    int bridge_await(int fd, short events, int ms) nogil
    int64_t bridge_now_ms() nogil
    int bridge_writev_all(int fd, iovec *parts, int count) nogil
    bint bridge_is_pipe(int fd) nogil
    int bridge_init_lock(pthread_rwlock_t *lock) nogil
    int bridge_set_pipe_size(int fd, int bytes) nogil


cdef extern from "<limits.h>":
    enum: PIPE_BUF


cdef extern from "<unistd.h>" nogil:
    ssize_t read(int fd, void *buffer, size_t size)


cdef extern from "<poll.h>" nogil:
    enum: POLLIN


cdef extern from "<pthread.h>" nogil:
    int pthread_rwlock_rdlock(pthread_rwlock_t *lock)
    int pthread_rwlock_wrlock(pthread_rwlock_t *lock)
    int pthread_rwlock_unlock(pthread_rwlock_t *lock)
    int pthread_rwlock_destroy(pthread_rwlock_t *lock)


cdef enum:
    SLAB = 64 * 1024              # bytes; measured best on a pipe of 64 KiB and of 1 MiB
    KEPT_MS = 1000                # that a long frame's memory is kept for one of about that length
    FEW = 64                      # buffers that a write has room for on the stack
    MAPPED = 128 * 1024           # bytes: from here on malloc asks the system for pages
    FLUSH_AT = 64 * 1024          # bytes of replies kept back while a read's frames are answered
    MULTIPART = 0xC1              # begins a multipart frame; then: the version, two zeros,
    VERSION = 1
    PREFIX = 12                   # bytes: and the number of buffers, the envelope's length,
    ENTRY = 4                     # and the length of each buffer
    ALIGNMENT = 64                # bytes, of each buffer, from the start of the payload

# Of a frame, so that what stands for them is small beside the longest frame.
MOST_BUFFERS = 65_536
cdef Py_ssize_t most_buffers = MOST_BUFFERS

# Announced lengths up to here are skipped; beyond it the stream is not one of ours.
cdef uint64_t TRUSTED = 1 << 30   # bytes
# Of each pipe; unprivileged users share a total of 64 MiB.
PIPE_SIZE = 1 << 20               # bytes
DEFAULT_MAX_FRAME = 64 << 20      # bytes

# What is in an outbox.
REPLY, EVENT, HOST_CALL = 0, 1, 2

cdef enum:
    FRAME, EMPTY, TOO_LARGE, UNTRUSTED, PENDING, END, TRUNCATED, INTERRUPTED, FAILED


@cython.final
@cython.freelist(256)
cdef class Frame:
    """One payload: a read-only buffer over the slab it arrived in, kept alive by this object.

    The bytes never move and are never overwritten while a frame or a view of it is held.
    """

    def __cinit__(self):
        self.slab = NULL

    def __dealloc__(self):
        slab_release(self.slab)

    def __len__(self):
        return self.length

    cdef Frame part(self, Py_ssize_t start, Py_ssize_t length):
        """A view of some of it."""
        cdef Frame part = Frame.__new__(Frame)
        slab_hold(self.slab)
        part.slab = self.slab
        part.data = self.data + start
        part.length = length
        return part

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, <void *>self.data, self.length, 1, flags)

    @staticmethod
    def of(data):
        """A frame that holds a copy of `data` (any buffer), for callers that have no pipe."""
        cdef Py_buffer view
        cdef Frame frame = Frame.__new__(Frame)
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            frame.slab = slab_new(HEADER + view.len)
            if frame.slab is NULL:
                raise MemoryError()
            frame.data = frame.slab.data + HEADER
            memcpy(<void *>frame.data, view.buf, view.len)
            frame.length = view.len
        finally:
            PyBuffer_Release(&view)
        return frame


cdef Frame frame_over(const void *data, Py_ssize_t length, void (*release)(void *) noexcept nogil,
                      void *context):
    """A frame of bytes that stay where they are until release(context) is called, once, by whoever
    drops the last view of them; of a copy, where there is no release."""
    cdef Frame frame = Frame.__new__(Frame)
    frame.slab = slab_new(HEADER if release is not NULL else HEADER + length)
    if frame.slab is NULL:
        raise MemoryError()
    frame.length = length
    if release is not NULL:
        slab_entrust(frame.slab, release, context)
        frame.data = <const unsigned char *>data
    else:
        frame.data = frame.slab.data + HEADER
        if length > SLAB:
            with nogil:
                memcpy(<void *>frame.data, data, length)
        else:
            memcpy(<void *>frame.data, data, length)
    return frame


cpdef bint is_multipart(Frame frame) except -1:
    """Whether it is an envelope with buffers behind it."""
    return frame.length > 0 and frame.data[0] == MULTIPART


def envelope_of(Frame frame not None):
    """The envelope of a multipart frame, as a frame. Raises InvalidFrame."""
    cdef Py_ssize_t start
    cdef uint64_t count, length
    if frame.length < PREFIX or frame.data[1] != VERSION or frame.data[2] or frame.data[3]:
        raise InvalidFrame("a multipart frame begins with C1 01 00 00, a count and a length")
    count = bridge_load_be32(frame.data + 4)
    length = bridge_load_be32(frame.data + 8)
    if count > <uint64_t>most_buffers:
        raise InvalidFrame(f"{count} buffers are more than {MOST_BUFFERS}")
    if PREFIX + ENTRY * count + length > <uint64_t>frame.length:
        raise InvalidFrame(f"{count} buffers and an envelope of {length} bytes are more than a"
                           f" frame of {frame.length} bytes")
    start = PREFIX + ENTRY * count
    return frame.part(start, length)


def buffers_of(Frame frame not None):
    """The buffers of a multipart frame, a tuple of frames. Raises InvalidFrame."""
    cdef Frame envelope = envelope_of(frame)
    cdef Py_ssize_t end = envelope.data - frame.data + envelope.length
    cdef uint64_t start, length
    cdef Py_ssize_t index, count = bridge_load_be32(frame.data + 4)
    cdef list buffers = []
    for index in range(count):
        start = aligned(end)
        length = bridge_load_be32(frame.data + PREFIX + ENTRY * index)
        if start + length > <uint64_t>frame.length:
            raise InvalidFrame(f"buffer {index} of {length} bytes ends behind its frame")
        buffers.append(frame.part(start, length))
        end = start + length
    if end != frame.length:
        raise InvalidFrame(f"{frame.length - end} bytes behind the last buffer")
    return tuple(buffers)


cdef object raw(object buffer):
    """A view of a buffer, which keeps it from changing its size; of a copy where its bytes do not
    lie side by side."""
    view = memoryview(buffer)
    return view if view.c_contiguous else memoryview(view.tobytes())


cdef inline Py_ssize_t aligned(Py_ssize_t offset) noexcept:
    return (offset + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


@cython.final
cdef class Outbox:
    """Frames to be sent, one behind the other in one buffer; buffers of multipart frames stay
    where they are, and are sent from there.

    The bytearray is not emptied between uses: msgspec takes its length as room to write in, and
    shrinking it would give the memory back each time.
    """

    def __cinit__(self):
        self.data = bytearray(512)
        self.used = 0
        self.apart = 0
        self.buffers = None

    def __len__(self):
        return self.used + self.apart

    cdef Py_ssize_t add(self, object encode_into, object message, Py_ssize_t limit) except -1:
        """Append `message` as a frame; bytes of its payload, or 0 if longer than `limit`."""
        cdef Py_ssize_t size = self.encode(encode_into, message)
        return self.close(size) if size <= limit else 0

    cdef Py_ssize_t encode(self, object encode_into, object message) except -1:
        """Write `message` behind the room for a header; its bytes."""
        cdef Py_ssize_t room = PyByteArray_GET_SIZE(self.data)
        encode_into(message, self.data, self.used + HEADER)
        if room >= MAPPED and PyByteArray_GET_SIZE(self.data) < MAPPED:
            # What is cut down from pages of its own stays such pages, and the system would resize
            # them with each later message: 8 us.
            self.data = bytearray(self.data)
        return PyByteArray_GET_SIZE(self.data) - self.used - HEADER

    cdef Py_ssize_t add_multipart(self, object encode_into, object message, list buffers,
                                  Py_ssize_t limit) except -1:
        """The same of a message whose encoding adds to `buffers` what stands apart; where there is
        nothing in it in the end, the frame is a usual one."""
        cdef Py_ssize_t start = self.used + HEADER, size, prefix, end, length, index
        cdef unsigned char *at
        cdef uint64_t total
        size = self.encode(encode_into, message)
        if not buffers:
            return self.close(size) if size <= limit else 0
        prefix = PREFIX + ENTRY * len(buffers)
        end = prefix + size
        total = end
        parts = [raw(buffer) for buffer in buffers]
        for part in parts:
            length = part.nbytes
            total = aligned(total) + <uint64_t>length
            if total > <uint64_t>limit:
                return 0
        PyByteArray_Resize(self.data, start + prefix + size + ALIGNMENT * len(parts))
        at = <unsigned char *>PyByteArray_AS_STRING(self.data) + start
        memmove(at + prefix, at, size)
        memcpy(at, b"\xc1\x01\0\0", 4)
        bridge_store_be32(at + 4, <uint32_t>len(parts))
        bridge_store_be32(at + 8, <uint32_t>size)
        bridge_store_be32(at - HEADER, <uint32_t>total)
        if self.buffers is None:
            self.buffers = []
        self.used = start + end
        total = end
        for index, part in enumerate(parts):
            length = part.nbytes
            bridge_store_be32(at + PREFIX + ENTRY * index, <uint32_t>length)
            memset(at + (self.used - start), 0, aligned(total) - total)
            self.used += aligned(total) - total
            total = aligned(total) + length
            if length:
                self.buffers.append((self.used, part))
                self.apart += length
        return total

    cdef Py_ssize_t close(self, Py_ssize_t size):
        bridge_store_be32(<unsigned char *>PyByteArray_AS_STRING(self.data) + self.used,
                          <uint32_t>size)
        self.used += HEADER + size
        return size

    cdef int undo(self, Py_ssize_t used) except -1:
        """Back to so many bytes."""
        self.used = used
        while self.buffers and self.buffers[len(self.buffers) - 1][0] > used:
            self.apart -= self.buffers.pop()[1].nbytes
        return 0

    cdef int add_empty(self) except -1:
        if PyByteArray_GET_SIZE(self.data) < self.used + HEADER:
            PyByteArray_Resize(self.data, self.used + HEADER)
        bridge_store_be32(<unsigned char *>PyByteArray_AS_STRING(self.data) + self.used, 0)
        self.used += HEADER
        return 0

    def append(self, encode_into, message):
        """Append what `encode_into(message, bytearray, offset)` writes, as one frame."""
        self.add(encode_into, message, 0xFFFFFFFF)

    def append_multipart(self, encode_into, message, list buffers not None):
        """Append it as a multipart frame with what is in `buffers`, and what encoding adds there;
        a usual frame where that is nothing in the end."""
        if not self.add_multipart(encode_into, message, buffers, 0xFFFFFFFF):
            raise OverflowError("a frame holds at most 4294967295 bytes")

    def payload(self):
        """The payload of the only frame in here, as bytes."""
        return b"".join(self.parts())[HEADER:]

    def parts(self):
        """All there is to be sent, as a list of buffers."""
        cdef Py_ssize_t done = 0
        cdef list parts = []
        whole = memoryview(self.data)
        for place, part in self.buffers or ():
            parts += (whole[done:place], part)
            done = place
        parts.append(whole[done:self.used])
        return parts

    cdef void clear(self):
        self.used = self.apart = 0
        self.buffers = None


@cython.final
cdef class Reader:
    """Frames from the descriptor `fd`, which stays its owner's to close.

    max_frame: bytes; a longer announcement is refused before anything is allocated for it.
    """

    def __cinit__(self, int fd, uint64_t max_frame=DEFAULT_MAX_FRAME):
        self.fd = fd
        self.max_frame = max_frame
        self.slab = slab_new(SLAB)
        if self.slab is NULL:
            raise MemoryError()

    def __dealloc__(self):
        slab_release(self.slab)
        slab_release(self.spare)

    cdef int parse(self) noexcept nogil:
        """What the bytes at hand begin with. Does no I/O."""
        cdef size_t have
        if self.skipping:
            have = min(<uint64_t>(self.end - self.start), self.skipping)
            self.start += have
            self.skipping -= have
            if self.skipping:
                return PENDING
        have = self.end - self.start
        if have < HEADER:
            return PENDING
        self.announced = bridge_load_be32(self.slab.data + self.start)
        if self.announced > self.max_frame:
            return TOO_LARGE if self.announced <= TRUSTED else UNTRUSTED
        if have < HEADER + self.announced:
            return PENDING
        return FRAME if self.announced else EMPTY

    cdef int reserve(self, size_t need) noexcept nogil:
        """Room for `need` bytes from `start` on, and for one more byte; 0, or -1 without memory."""
        cdef size_t have = self.end - self.start
        cdef bridge_slab *fresh
        if self.start + need <= self.slab.size and self.end < self.slab.size:
            if have or not slab_is_sole(self.slab) or self.slab.size > SLAB:
                return 0
        if slab_is_sole(self.slab) and need <= self.slab.size <= SLAB:
            memmove(self.slab.data, self.slab.data + self.start, have)
        else:
            fresh = self.fresh(need)
            if fresh is NULL:
                return -1
            memcpy(fresh.data, self.slab.data + self.start, have)
            self.put_aside(self.slab)
            self.slab = fresh
        self.start = 0
        self.end = have
        return 0

    cdef bridge_slab *fresh(self, size_t need) noexcept nogil:
        """A slab for `need` bytes, the spare one if it is about as long; NULL without memory."""
        cdef bridge_slab *spare = self.spare
        if need <= SLAB:
            return slab_new(SLAB)
        self.spare = NULL
        if (spare is not NULL and slab_is_sole(spare)
                and need <= spare.room <= need + need // 8):
            spare.size = need
            return spare
        slab_release(spare)
        return slab_new(need)

    cdef void put_aside(self, bridge_slab *slab) noexcept nogil:
        """Let go of a slab; a long one is kept for a moment, because the kernel takes as long to
        find fresh memory as a pipe to fill it."""
        if slab.size > SLAB:
            slab_release(self.spare)
            self.spare = slab
            self.spare_until = bridge_now_ms() + KEPT_MS
        else:
            slab_release(slab)

    cdef int await_with_spare(self) noexcept nogil:
        """Wait for bytes; gives the spare slab back when they do not come in time. As poll(2)."""
        cdef int64_t left = self.spare_until - bridge_now_ms()
        cdef int ready = bridge_await(self.fd, POLLIN, <int>left) if left > 0 else 0
        if ready == 0:
            slab_release(self.spare)
            self.spare = NULL
        return ready

    cdef int fill(self) noexcept nogil:
        """One read(2), behind `parse` has said PENDING: PENDING, or why there is no more."""
        cdef ssize_t got
        cdef size_t have = self.end - self.start
        cdef size_t need = HEADER
        if have >= HEADER and not self.skipping:
            need = HEADER + self.announced
        if self.reserve(need) < 0:
            self.error = ENOMEM
            return FAILED
        if self.spare is not NULL and have == 0 and self.await_with_spare() < 0:
            return INTERRUPTED
        got = read(self.fd, self.slab.data + self.end, self.slab.size - self.end)
        if got > 0:
            self.end += got
            return PENDING
        if got == 0:
            return TRUNCATED if have or self.skipping else END
        self.error = errno
        if self.error == EINTR:
            return INTERRUPTED
        if self.error == ECONNRESET:
            return END
        if self.error != EAGAIN:
            return FAILED
        return INTERRUPTED if bridge_await(self.fd, POLLIN, -1) < 0 else PENDING

    cdef int wait(self, Writer heartbeats) noexcept nogil:
        """Read until there is something for Python; answers empty frames if given a writer."""
        cdef int status
        while True:
            status = self.parse()
            if status == EMPTY and heartbeats is not None:
                self.start += HEADER
                if heartbeats.beat() == EPIPE:
                    return END
            elif status == PENDING:
                status = self.fill()
                if status != PENDING:
                    return status
            else:
                return status

    cdef Frame take(self):
        """The frame that `parse` has found."""
        cdef Frame frame = Frame.__new__(Frame)
        slab_hold(self.slab)
        frame.slab = self.slab
        frame.data = self.slab.data + self.start + HEADER
        frame.length = self.announced
        self.start += HEADER + self.announced
        return frame

    cdef void skip(self) noexcept:
        self.start += HEADER
        self.skipping = self.announced

    def read(self):
        """The next frame (an empty one is a heartbeat), or None at the end of the stream.

        Raises FrameTooLarge (the next call goes on behind it, unless it announced more than
        1 GiB), InvalidFrame if the stream ends inside a frame, OSError.
        """
        cdef int status
        while True:
            with nogil:
                status = self.wait(None)
            if status == FRAME or status == EMPTY:
                return self.take()
            if status == END:
                return None
            if status == INTERRUPTED:
                PyErr_CheckSignals()
                continue
            raise self.fault(status)

    cdef object fault(self, int status):
        if status == TOO_LARGE or status == UNTRUSTED:
            error = FrameTooLarge.announced(self.announced, self.max_frame)
            if status == TOO_LARGE:
                self.skip()
            return error
        if status == TRUNCATED:
            return InvalidFrame(f"stream ended inside a frame, behind {self.end - self.start} bytes")
        return OSError(self.error, f"read from descriptor {self.fd} failed")


@cython.final
cdef class Writer:
    """Whole frames to the descriptor `fd`, from any thread.

    The lock is taken and released only without the GIL, so that a heartbeat never waits for
    Python. A pipe keeps up to PIPE_BUF bytes of one write together, so such writes share the lock:
    none waits for a thread that lost its core inside another. A longer one has it for itself. A
    write that a signal interrupts goes on; the signal's handler runs behind it.
    """

    def __cinit__(self, int fd):
        self.fd = fd
        self.shared_up_to = PIPE_BUF if bridge_is_pipe(fd) else 0
        if bridge_init_lock(&self.lock):
            raise MemoryError()

    def __dealloc__(self):
        pthread_rwlock_destroy(&self.lock)

    cdef int put(self, iovec *parts, int count, size_t size) noexcept nogil:
        """0, or the errno. Consumes `parts`, which are `size` bytes together."""
        cdef int error
        if size <= self.shared_up_to:
            pthread_rwlock_rdlock(&self.lock)
        else:
            pthread_rwlock_wrlock(&self.lock)
        error = bridge_writev_all(self.fd, parts, count)
        pthread_rwlock_unlock(&self.lock)
        return error

    cdef int beat(self) noexcept nogil:
        """Send an empty frame; 0, or the errno."""
        cdef unsigned char header[HEADER]
        cdef iovec part
        bridge_store_be32(header, 0)
        part.iov_base = header
        part.iov_len = HEADER
        return self.put(&part, 1, HEADER)

    def flush(self, Outbox outbox not None):
        """Send all frames of `outbox` and empty it. Raises OSError (BrokenPipeError)."""
        cdef iovec part
        cdef size_t size = outbox.used
        cdef int error
        if outbox.buffers is not None:
            parts = outbox.parts()
            outbox.clear()
            self.put_all(parts, False)
            return
        part.iov_base = PyByteArray_AS_STRING(outbox.data)
        part.iov_len = size
        outbox.used = 0
        if size:
            with nogil:
                error = self.put(&part, 1, size)
            if error:
                raise OSError(error, f"write to descriptor {self.fd} failed")

    def send(self, *parts):
        """Send the buffers `parts` as one frame, in one writev. Raises OSError, ValueError."""
        self.put_all(parts, True)

    cdef int put_all(self, parts, bint as_frame) except -1:
        """Send buffers one behind the other, in one writev; as_frame: behind their length. Raises
        OSError, and ValueError where a frame cannot be that long."""
        cdef Py_buffer few_views[FEW]
        cdef iovec few_parts[FEW + 1]
        cdef Py_buffer *views = few_views
        cdef iovec *vector = few_parts
        cdef unsigned char header[HEADER]
        cdef Py_ssize_t count = len(parts), held = 0
        cdef uint64_t size = 0
        cdef int error = 0
        if count > FEW:
            views = <Py_buffer *>malloc(count * sizeof(Py_buffer))
            vector = <iovec *>malloc((count + 1) * sizeof(iovec))
        try:
            if views is NULL or vector is NULL:
                raise MemoryError()
            for part in parts:
                PyObject_GetBuffer(part, &views[held], PyBUF_SIMPLE)
                vector[held + 1].iov_base = views[held].buf
                vector[held + 1].iov_len = views[held].len
                size += views[held].len
                held += 1
            vector[0].iov_base = header
            vector[0].iov_len = HEADER if as_frame else 0
            if as_frame and size > 0xFFFFFFFF:
                raise ValueError(f"a frame holds at most 4294967295 bytes, not {size}")
            bridge_store_be32(header, <uint32_t>size)
            with nogil:
                error = self.put(vector, <int>count + 1, size + vector[0].iov_len)
        finally:
            while held:
                held -= 1
                PyBuffer_Release(&views[held])
            if count > FEW:
                free(views)
                free(vector)
        if error:
            raise OSError(error, f"write to descriptor {self.fd} failed")
        return 0


def set_pipe_size(int fd, int size=PIPE_SIZE):
    """Ask for a pipe of `size` bytes; what it got, or -1 where `fd` is no pipe or may not grow."""
    return bridge_set_pipe_size(fd, size)


def serve(Reader reader not None, Writer writer not None, answer, deliver, refuse, *,
          stopping, warm_up):
    """Answer frames until the stream ends; returns None at its end, else what broke it.

    answer(frame, outbox, deliver) -> whether to end behind this frame: appends the reply to
    `outbox`, or keeps `deliver` and calls it later, from another thread, with an outbox of its
    own. refuse(error, outbox): the same for a frame that was not read. stopping() -> whether to
    end: asked after each signal. warm_up(): called once, behind the first replies.
    The replies to all frames of one read leave in one write. Empty frames are answered with empty
    frames, without the GIL as long as no frame before them waits for Python.
    """
    cdef Outbox outbox = Outbox()
    cdef int status
    cdef bint ending = False
    while not ending:
        with nogil:
            status = reader.wait(writer)
        while (status == FRAME or status == EMPTY) and not ending:
            if status == FRAME:
                ending = answer(reader.take(), outbox, deliver)
            else:
                reader.start += HEADER
                outbox.add_empty()
            # What stands apart is sent before the next handler can change it.
            if outbox.used > FLUSH_AT or outbox.apart:
                writer.flush(outbox)
            status = reader.parse()
        if status == INTERRUPTED:
            PyErr_CheckSignals()
            ending = stopping()
        elif status == TOO_LARGE and not ending:
            refuse(reader.fault(status), outbox)
        elif status == END:
            return None
        elif status != PENDING and not ending:
            error = reader.fault(status)
            refuse(error, outbox)
            writer.flush(outbox)
            return error
        writer.flush(outbox)
        if warm_up is not None:
            warm_up()
            warm_up = None
    return None
