"""Frames on a descriptor: 4-byte big-endian length, then the payload.

This module handles only bytes and descriptors, not the meaning of a frame. A `Reader` reads from the descriptor into
write-once slabs and returns frames that are views of them. A `Writer` sends whole frames under a native lock. `serve`
connects both with a callable that answers frames. `tests/support/framing_spec.py` is the same wire in plain Python.
"""

cimport cython
from cpython.buffer cimport (PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release,
                             PyObject_GetBuffer)
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE, PyByteArray_Resize
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, ECONNRESET, EINTR, EPIPE, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove, memset


from bridge.errors import FrameTooLarge, InvalidFrame, Overloaded
from bridge.options import DEFAULT_MAX_FRAME


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
    #include <sys/socket.h>
    #include <sys/stat.h>
    #include <sys/uio.h>
    #include <time.h>
    #include <unistd.h>

    enum { BRIDGE_ALIGNMENT = 64, BRIDGE_HEADER = 4 };
    enum { BRIDGE_MAPPED_FROM = 1 << 20, BRIDGE_HUGE_PAGE = 1 << 21 }; /* bytes */

    /* The payload of a frame at the start of a slab is aligned. `size` of `capacity` bytes are used: a reused slab may
       be a little longer than its frame. */
    struct bridge_slab {
        int references;
        size_t size, capacity;
        void (*release)(void *);  /* called for bytes that belong to a caller; `data` is then unused */
        void *context;
        unsigned char padding[BRIDGE_ALIGNMENT - BRIDGE_HEADER - 5 * sizeof(size_t)];
        unsigned char data[];
    };

    /* Zeroing new memory page by page takes longer than filling it by a pipe, so huge pages are used, whole ones
       only, so that no memory beyond the slab becomes resident. */
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
    static bridge_slab *slab_new(size_t capacity) {
        void *at;
        size_t size = sizeof(bridge_slab) + capacity;
        if (size < capacity) return NULL;
        if (capacity >= BRIDGE_MAPPED_FROM) at = bridge_map(size);
        else if (posix_memalign(&at, BRIDGE_ALIGNMENT, size)) at = NULL;
        if (at) *(bridge_slab *)at = (bridge_slab){.references = 1, .size = capacity, .capacity = capacity};
        return at;
    }
    static void slab_free(bridge_slab *slab) {
        if (slab->release) slab->release(slab->context);
        if (slab->capacity >= BRIDGE_MAPPED_FROM) munmap(slab, sizeof(bridge_slab) + slab->capacity);
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

    /* Wait for a descriptor on which the host may have set O_NONBLOCK. Return 0 when `ms` have passed. */
    static int bridge_await(int fd, short events, int ms) {
        struct pollfd entry = {fd, events, 0};
        return poll(&entry, 1, ms);
    }

    static int64_t bridge_now_ms(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
    }

    /* Return 0 or the errno. Consumes `parts`: a short write advances them. */
    static int bridge_writev_all(int fd, struct iovec *parts, int count) {
        while (count > 0) {
            ssize_t sent = count == 1 ? write(fd, parts->iov_base, parts->iov_len) /* takes less time */
                                      : writev(fd, parts, count < IOV_MAX ? count : IOV_MAX);
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

    /* Return the number of bytes that a non-blocking descriptor has accepted, or -1 with errno. */
    static ssize_t bridge_writev_some(int fd, const struct iovec *parts, int count) {
        ssize_t sent;
        do {
            sent = writev(fd, parts, count);
        } while (sent < 0 && errno == EINTR);
        return sent;
    }

    static int bridge_is_pipe(int fd) {
        struct stat status;
        return fstat(fd, &status) == 0 && S_ISFIFO(status.st_mode);
    }

    /* Prefer writers of the lock: long writes would otherwise wait as long as short ones keep coming. */
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

    static void bridge_set_buffer_size(int fd, int pipe_size, int socket_size) {
    #ifdef F_SETPIPE_SZ
        if (fcntl(fd, F_SETPIPE_SZ, pipe_size) >= 0) return;
    #endif
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &socket_size, sizeof socket_size);
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
    ssize_t bridge_writev_some(int fd, const iovec *parts, int count) nogil
    bint bridge_is_pipe(int fd) nogil
    int bridge_init_lock(pthread_rwlock_t *lock) nogil
    void bridge_set_buffer_size(int fd, int pipe_size, int socket_size) nogil


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
    LONG_SLAB = 4 * SLAB          # bytes
    SPARE_MS = 1000               # for which the memory of a long frame is retained for a next one of similar length
    PAUSE_MS = 10                 # until memory is requested again
    FEW = 64                      # buffers of one write that are described on the stack
    SCRATCH = 512                 # bytes that outboxes begin with
    COPIED = 16 * 1024            # bytes; a longer message is sent from the memory into which it was encoded
    FLUSH_AT = 64 * 1024          # bytes of replies that are held back while the frames of one read are answered
    MULTIPART = 0xC1              # begins a multipart frame; then: the version, two zeros,
    VERSION = 1
    PREFIX = 12                   # bytes: and the number of buffers, the envelope's length,
    ENTRY = 4                     # and the length of each buffer
    ALIGNMENT = 64                # bytes, of each buffer, from the start of the payload

# Of a frame, so that their Python objects are small compared with the longest frame.
MOST_BUFFERS = 65_536
cdef Py_ssize_t most_buffers = MOST_BUFFERS

# Frames that are too long are skipped up to this length; a longer one means that the stream is not one of frames.
cdef uint64_t TRUSTED = 1 << 30   # bytes
# Of each pipe; unprivileged users share a total of 64 MiB. Of what is sent by a socket, twice that much with the
# kernel's own data: a larger buffer saves no more time.
PIPE_SIZE = 1 << 20               # bytes
SOCKET_SIZE = 1 << 18             # bytes

# The kind of the frames in an outbox.
REPLY, EVENT, HOST_CALL = 0, 1, 2

include "framing/frames.pxi"
include "framing/outbox.pxi"
include "framing/reader.pxi"
include "framing/writer.pxi"


def set_buffer_size(int fd):
    """Let a pipe, or a socket to send to, hold as many bytes as has been measured to be best, if the system allows."""
    bridge_set_buffer_size(fd, PIPE_SIZE, SOCKET_SIZE)


def serve(Reader reader not None, Writer writer not None, answer, deliver, refuse, *,
          stopping, warm_up):
    """Answer frames until the stream ends or the worker is to stop. Return the error that broke the stream, or None.

    answer(frame, outbox, deliver): appends the reply to `outbox`, or calls `deliver` later from another thread with
    a new outbox; returns whether to end after this frame. refuse(error, outbox, beginning): answers a frame that
    could not be read; beginning: the first bytes of the frame if they have been read, otherwise None. stopping():
    returns whether to end; called after each signal. warm_up(): called once, after the first replies.
    The replies to all frames of one read are sent in one write. Empty frames are answered with empty frames, without
    the GIL unless an earlier frame waits for Python.
    """
    cdef Outbox outbox = Outbox()
    cdef int status
    cdef bint ending = False
    while not ending:
        status = send_and_wait(writer, outbox, reader)
        while (status == FRAME or status == EMPTY) and not ending:
            if status == FRAME:
                ending = answer(reader.take(), outbox, deliver)
            else:
                reader.start += HEADER
                outbox.add_empty()
            # Out-of-band buffers are sent before the next handler can change them.
            if outbox.used > FLUSH_AT or outbox.external:
                writer.flush(outbox)
            status = reader.parse()
        if status == INTERRUPTED:
            PyErr_CheckSignals()
            ending = stopping()
        elif status == TOO_LARGE and not ending:
            refuse(reader.fault(status), outbox, None)
        elif status == NO_MEMORY and not ending:
            error = reader.fault(status)
            refuse(error, outbox, reader.unread)
            reader.unread = None
        elif status == END:
            return None
        elif status != PENDING and not ending:
            error = reader.fault(status)
            refuse(error, outbox, None)
            writer.flush(outbox)
            return error
        if warm_up is not None:
            writer.flush(outbox)
            warm_up()
            warm_up = None
    writer.flush(outbox)
    return None


cdef int send_and_wait(Writer writer, Outbox outbox, Reader reader) except -1:
    """Send the replies, then wait for the next frame, both without the GIL. Return what `Reader.wait` returns."""
    cdef int status, error = 0
    cdef iovec part
    if outbox.buffers is not None:
        writer.flush(outbox)
    part.iov_base = PyByteArray_AS_STRING(outbox.data)
    part.iov_len = outbox.used
    outbox.used = 0
    with nogil:
        if part.iov_len:
            error = writer.put(&part, 1, part.iov_len)
        if error == 0:
            status = reader.wait(writer)
    if error:
        raise OSError(error, f"write to descriptor {writer.fd} failed")
    return status
