"""Counters and a latency histogram beside the hot path: C arrays, no allocation to record.

Log-linear: 32 buckets an octave of nanoseconds, so a percentile is off by at most 1/32; 36 octaves
reach 18 minutes, longer calls fall into the last bucket. `longest` is exact.
"""

cimport cython
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset


cdef extern from *:
    """
    #include <stdint.h>
    #include <time.h>
    static int64_t bridge_monotonic(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    }
    static int bridge_log2(uint64_t value) { return 63 - __builtin_clzll(value); }
    """
    int64_t bridge_monotonic() nogil
    int bridge_log2(uint64_t value) nogil


cdef int64_t monotonic() noexcept nogil:
    return bridge_monotonic()


cdef inline int bucket_of(uint64_t value) noexcept nogil:
    cdef int shift, index
    if value < (1 << SUB_BITS):
        return <int>value
    shift = bridge_log2(value) - SUB_BITS
    index = (shift << SUB_BITS) + <int>(value >> shift)
    return index if index < BUCKETS else BUCKETS - 1


cdef inline uint64_t top_of(int index) noexcept nogil:
    """The largest value of a bucket."""
    cdef int shift = (index >> SUB_BITS) - 1
    if shift < 0:
        return index
    return ((<uint64_t>(index - (shift << SUB_BITS)) + 1) << shift) - 1


@cython.final
cdef class Recorder:
    """Calls, errors, bytes and latencies of one command. Used under the GIL."""

    def __cinit__(self):
        self.reset()

    cdef void add(self, int64_t nanoseconds, uint64_t bytes_in, uint64_t bytes_out,
                  bint failed) noexcept:
        cdef uint64_t value = <uint64_t>nanoseconds if nanoseconds > 0 else 0
        self.calls += 1
        self.errors += failed
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out
        self.counts[bucket_of(value)] += 1
        if value > self.longest:
            self.longest = value

    def record(self, int64_t nanoseconds, uint64_t bytes_in, uint64_t bytes_out, bint failed):
        """Record one call that took `nanoseconds`."""
        self.add(nanoseconds, bytes_in, bytes_out, failed)

    def reset(self):
        """Back to nothing recorded."""
        self.calls = self.errors = self.bytes_in = self.bytes_out = self.longest = 0
        memset(self.counts, 0, sizeof(self.counts))

    def percentile(self, double fraction):
        """Nanoseconds that `fraction` (0 to 1) of the calls did not exceed; 0 without calls."""
        cdef uint64_t seen = 0
        cdef uint64_t wanted = <uint64_t>(fraction * self.calls + 0.999999)
        cdef int index
        if wanted < 1:
            wanted = 1
        for index in range(BUCKETS - 1):
            seen += self.counts[index]
            if seen >= wanted:
                return min(top_of(index), self.longest)
        return self.longest

    def summary(self):
        """calls, errors, bytes_in, bytes_out, latency_us {p50, p90, p99, max}: a plain dict."""
        return {
            "calls": self.calls,
            "errors": self.errors,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "latency_us": {
                "p50": self.percentile(0.5) / 1000,
                "p90": self.percentile(0.9) / 1000,
                "p99": self.percentile(0.99) / 1000,
                "max": self.longest / 1000,
            },
        }


def now_ns():
    """CLOCK_MONOTONIC in nanoseconds: the clock of all latencies."""
    return bridge_monotonic()
