from libc.stdint cimport int64_t, uint64_t


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_rwlock_t:
        pass


cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len


cdef extern from *:
    """
    typedef struct bridge_slab bridge_slab;  /* defined in _framing.pyx */
    """
    ctypedef struct bridge_slab:
        size_t size
        size_t capacity
        unsigned char *data


cdef enum:
    HEADER = 4  # bytes

# What a reader has found: a frame, or why there is none.
cdef enum:
    FRAME, EMPTY, TOO_LARGE, UNTRUSTED, PENDING, END, TRUNCATED, INTERRUPTED, FAILED, NO_MEMORY


cdef class Frame:
    cdef bridge_slab *slab
    cdef const unsigned char *data
    cdef Py_ssize_t length

    cdef Frame part(self, Py_ssize_t start, Py_ssize_t length)


cpdef bint is_multipart(Frame frame) except -1
cdef Frame frame_over(const void *data, Py_ssize_t length, void (*release)(void *) noexcept nogil,
                      void *context)


cdef class Outbox:
    cdef bytearray data
    cdef Py_ssize_t used    # bytes of `data`
    cdef readonly Py_ssize_t external  # bytes of `buffers`, which are not in `data`
    cdef readonly Py_ssize_t sent    # bytes that `write_to` has written
    cdef list buffers       # None, or for each the offset in `data` before which it is sent, and a view of it
    cdef public int kind    # REPLY, EVENT or HOST_CALL, because embedding hosts get them in different ways

    cdef Py_ssize_t add(self, object encode_into, object message, Py_ssize_t limit) except -1
    cdef Py_ssize_t add_multipart(self, object encode_into, object message, list buffers,
                                  Py_ssize_t limit) except -1
    cdef Py_ssize_t add_payload(self, bytearray payload, Py_ssize_t limit) except -1
    cdef int put(self, bytearray encoded) except -1
    cdef int refer_to(self, object view, Py_ssize_t size) except -1
    cdef int reserve(self, Py_ssize_t size) except -1
    cdef void clear(self)
    cdef int write_parts(self, int fd) except -1
    cdef int undo(self, Py_ssize_t used) except -1
    cdef int add_empty(self) except -1


cdef class Reader:
    cdef readonly int fd
    cdef readonly uint64_t max_frame
    cdef bridge_slab *slab
    cdef bridge_slab *spare    # NULL, or the slab of the last long frame
    cdef int64_t spare_until   # ms, monotonic
    cdef bint never_waits      # `fill` returns at once; whoever calls it waits, and releases the spare slab
    cdef bint had_long         # a frame of the slab would not have fitted into SLAB bytes
    cdef size_t start
    cdef size_t end
    cdef uint64_t skipping
    cdef uint64_t announced
    cdef int error
    cdef public object unread  # the beginning of a frame for which there was no memory

    cdef int parse(self) noexcept nogil
    cdef int fill(self) noexcept nogil
    cdef int reserve(self, size_t need) noexcept nogil
    cdef bridge_slab *fresh(self, size_t need) noexcept nogil
    cdef void retire(self, bridge_slab *slab) noexcept nogil
    cdef int await_with_spare(self) noexcept nogil
    cdef bint release_spare(self) noexcept nogil
    cdef bint has_short_slab(self) noexcept nogil
    cdef bint has_long_slab(self) noexcept nogil
    cdef bint release_memory(self) noexcept nogil
    cdef int wait(self, Writer heartbeats) noexcept nogil
    cdef Frame take(self)
    cdef Frame beginning(self)
    cdef void skip(self) noexcept
    cdef object fault(self, int status)


cdef class Writer:
    cdef readonly int fd
    cdef size_t shared_up_to
    cdef pthread_rwlock_t lock

    cdef int put(self, iovec *parts, int count, size_t size) noexcept nogil
    cdef int put_all(self, parts, bint as_frame) except -1
    cdef int beat(self) noexcept nogil
