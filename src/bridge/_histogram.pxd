from libc.stdint cimport int64_t, uint64_t

cdef enum:
    SUB_BITS = 5
    OCTAVES = 40
    BUCKETS = (OCTAVES - SUB_BITS + 1) << SUB_BITS


cdef class Recorder:
    cdef readonly uint64_t calls
    cdef readonly uint64_t errors
    cdef readonly uint64_t bytes_in
    cdef readonly uint64_t bytes_out
    cdef uint64_t longest
    cdef uint64_t counts[BUCKETS]

    cdef void add(self, int64_t nanoseconds, uint64_t bytes_in, uint64_t bytes_out,
                  bint failed) noexcept


cdef int64_t monotonic() noexcept nogil
