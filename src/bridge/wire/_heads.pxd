from libc.stdint cimport int64_t

from bridge._framing cimport Frame


cdef enum Head:
    REPLY_HEAD, EVENT_HEAD, LOG_HEAD, OTHER_HEAD


cdef Head head_of(Frame frame, int64_t *id) noexcept
