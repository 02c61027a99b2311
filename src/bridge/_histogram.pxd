from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

cdef enum:
    SUB_BITS = 5
    OCTAVE = 1 << SUB_BITS  # buckets in one octave
    OCTAVES = 40
    BUCKETS = (OCTAVES - SUB_BITS + 1) << SUB_BITS


cdef struct Cells:
    uint64_t calls
    uint64_t errors
    uint64_t bytes_in
    uint64_t bytes_out
    uint64_t nanoseconds  # of all calls together
    uint64_t longest
    uint16_t *log         # the buckets of the first calls; none once there are counts
    uint64_t *counts      # of `size` buckets from `first` on
    uint16_t log_capacity # entries
    uint16_t logged
    uint16_t first
    uint16_t size


cdef struct Slot:
    int64_t number        # its time divided by SLOT_NS
    Cells cells


cdef class Histogram:
    cdef Cells cells


cdef class Recorder:
    cdef Cells cells
    cdef int64_t slot_ends
    cdef Slot *slot       # the current one
    cdef Slot *slots
    cdef uint32_t capacity
    cdef dict by_category
    cdef dict by_name

    cdef void add(self, int64_t now, int64_t nanoseconds, uint64_t bytes_in, uint64_t bytes_out,
                  str category) noexcept
    cdef void turn(self, int64_t now) noexcept
    cdef bint widen(self) noexcept
    cdef void forget(self) noexcept
    cdef int add_to(self, str name, amount) except -1


cdef int64_t monotonic() noexcept nogil
