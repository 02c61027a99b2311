from bridge._framing cimport Frame, Outbox


cdef class FrameCodec:
    cdef readonly object format
    cdef object decode        # an Envelope from bytes
    cdef object encode_into
    cdef bint carries_nan
    cdef Py_ssize_t longest_binary

    cdef Py_ssize_t add(self, Outbox outbox, object message, object value, str name, Py_ssize_t limit,
                        bint uses_buffers, tuple passed) except -1
    cdef Py_ssize_t add_checked(self, Outbox outbox, object message, int found, Py_ssize_t limit,
                                bint uses_buffers, tuple passed) except -1
    cdef object add_failure(self, Outbox outbox, object failure, Py_ssize_t limit)
    cpdef Outbox encoded(self, object message, object value, str name, str what, Py_ssize_t limit,
                         bint uses_buffers, tuple passed=*)


cdef FrameCodec codec_of(Frame frame)
