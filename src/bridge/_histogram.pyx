"""Counters and latencies of calls: C arrays that grow with their use.

Buckets are log-linear: 32 for each octave of nanoseconds, so a percentile is off by at most 1/32. The 36 octaves cover
18 minutes, and longer calls fall into the last bucket. All histograms have these buckets, so any two can be merged. Up
to 256 calls are stored as a list of buckets, two bytes each; after that, as counts for the octaves in use.
"""

cimport cython
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset


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


cdef enum:
    LOG_LEAST = 8     # entries of two bytes
    LOG_MOST = 256
    RING_MOST = 32    # slots; a power of two, larger than LIVE

SLOT_NS = 10_000_000_000
cdef int64_t SLOT = SLOT_NS
cdef int64_t LIVE = 31      # slots that a window may include: 5 minutes and the current slot
cdef int64_t NEVER = -(<int64_t>1 << 62)

cdef double INFINITE = float("inf")


cdef int64_t monotonic() noexcept nogil:
    return bridge_monotonic()


cdef inline uint32_t bucket_of(uint64_t value) noexcept nogil:
    cdef int shift
    cdef uint32_t index
    if value < OCTAVE:
        return <uint32_t>value
    shift = bridge_log2(value) - SUB_BITS
    index = (shift << SUB_BITS) + <uint32_t>(value >> shift)
    return index if index < BUCKETS else BUCKETS - 1


cdef inline uint64_t top_of(int index) noexcept nogil:
    """Return the largest value of a bucket."""
    cdef int shift = (index >> SUB_BITS) - 1
    if shift < 0:
        return index
    return ((<uint64_t>(index - (shift << SUB_BITS)) + 1) << shift) - 1


# Cells: the values of one histogram. Without memory for a bucket, a call is counted but not in a bucket.

cdef bint lengthen(Cells *cells) noexcept nogil:
    """Enlarge the list. Return false if it has its greatest length."""
    cdef uint32_t capacity = cells.log_capacity * 2 if cells.log_capacity else LOG_LEAST
    cdef void *log
    if capacity > LOG_MOST:
        return False
    log = realloc(cells.log, capacity * sizeof(uint16_t))
    if log == NULL:
        return False
    cells.log = <uint16_t *>log
    cells.log_capacity = capacity
    return True


cdef bint cover(Cells *cells, uint32_t bucket) noexcept nogil:
    """Allocate counts for all octaves from the lowest bucket to the highest, including `bucket`."""
    cdef uint32_t low = bucket, high = bucket, i
    cdef uint64_t *counts
    if cells.size:
        low = min(low, <uint32_t>cells.first)
        high = max(high, <uint32_t>cells.first + cells.size - 1)
    for i in range(cells.logged):
        low = min(low, <uint32_t>cells.log[i])
        high = max(high, <uint32_t>cells.log[i])
    low &= ~<uint32_t>(OCTAVE - 1)
    high |= OCTAVE - 1
    counts = <uint64_t *>calloc(high + 1 - low, sizeof(uint64_t))
    if counts == NULL:
        return False
    if cells.size:
        memcpy(counts + (cells.first - low), cells.counts, cells.size * sizeof(uint64_t))
    for i in range(cells.logged):
        counts[cells.log[i] - low] += 1
    free(cells.counts)
    free(cells.log)
    cells.log = NULL
    cells.log_capacity = cells.logged = 0
    cells.counts = counts
    cells.first = low
    cells.size = high + 1 - low
    return True


cdef inline void enter(Cells *cells, uint32_t bucket, uint64_t times) noexcept nogil:
    if cells.counts == NULL and times == 1 and (cells.logged < cells.log_capacity or lengthen(cells)):
        cells.log[cells.logged] = bucket
        cells.logged += 1
    elif bucket - <uint32_t>cells.first < cells.size or cover(cells, bucket):
        cells.counts[bucket - cells.first] += times


cdef inline void book(Cells *cells, uint32_t bucket, uint64_t value, uint64_t bytes_in,
                      uint64_t bytes_out, bint failed) noexcept nogil:
    """Add one call."""
    cells.calls += 1
    cells.errors += failed
    cells.bytes_in += bytes_in
    cells.bytes_out += bytes_out
    cells.nanoseconds += value
    if value > cells.longest:
        cells.longest = value
    enter(cells, bucket, 1)


cdef void absorb(Cells *cells, const Cells *other) noexcept nogil:
    """Add all calls of `other`."""
    cdef uint32_t i
    cells.calls += other.calls
    cells.errors += other.errors
    cells.bytes_in += other.bytes_in
    cells.bytes_out += other.bytes_out
    cells.nanoseconds += other.nanoseconds
    cells.longest = max(cells.longest, other.longest)
    for i in range(other.logged):
        enter(cells, other.log[i], 1)
    for i in range(other.size):
        if other.counts[i]:
            enter(cells, other.first + i, other.counts[i])


cdef void spread(const Cells *cells, uint64_t *counts) noexcept nogil:
    """Write the count of each bucket to `counts`."""
    cdef uint32_t i
    memset(counts, 0, BUCKETS * sizeof(uint64_t))
    for i in range(cells.logged):
        counts[cells.log[i]] += 1
    if cells.size:
        memcpy(counts + cells.first, cells.counts, cells.size * sizeof(uint64_t))


cdef uint64_t rank(const Cells *cells, const uint64_t *counts, double fraction) noexcept nogil:
    """Return the value that `fraction` of the calls did not exceed."""
    cdef uint64_t seen = 0
    cdef uint64_t wanted = <uint64_t>(fraction * cells.calls + 0.999999)
    cdef int index
    if wanted < 1:
        wanted = 1
    for index in range(BUCKETS - 1):
        seen += counts[index]
        if seen >= wanted:
            return min(top_of(index), cells.longest)
    return cells.longest


cdef void empty(Cells *cells) noexcept nogil:
    free(cells.log)
    free(cells.counts)
    memset(cells, 0, sizeof(Cells))


@cython.final
@cython.no_gc
cdef class Histogram:
    """Represents the number of calls and errors, the bytes and the latencies at the time when it was made."""

    def __dealloc__(self):
        empty(&self.cells)

    @staticmethod
    def from_dict(data):
        """Return the histogram of which `to_dict` has made `data`. Raises ValueError."""
        cdef Histogram made = Histogram()
        cdef Cells *cells = &made.cells
        cdef uint64_t times
        try:
            cells.calls, cells.errors = data["calls"], data["errors"]
            cells.bytes_in, cells.bytes_out = data["bytes_in"], data["bytes_out"]
            cells.nanoseconds, cells.longest = data["sum_ns"], data["max_ns"]
            for index, times in data["buckets"]:
                if not 0 <= index < BUCKETS:
                    raise ValueError(f"there is no bucket {index}")
                enter(cells, index, times)
        except (KeyError, TypeError, OverflowError, ValueError) as error:
            raise ValueError(f"not a histogram: {type(error).__name__}: {error}") from None
        return made

    @staticmethod
    def tops():
        """Return the longest duration in ns of each bucket: a memoryview of uint64, like `counts`."""
        cdef uint64_t tops[BUCKETS]
        cdef int index
        for index in range(BUCKETS):
            tops[index] = top_of(index)
        return memoryview((<char *>tops)[:sizeof(tops)]).cast("Q")

    @property
    def calls(self):
        return self.cells.calls

    @property
    def errors(self):
        return self.cells.errors

    @property
    def bytes_in(self):
        return self.cells.bytes_in

    @property
    def bytes_out(self):
        return self.cells.bytes_out

    @property
    def sum_ns(self):
        """Return the total duration of all calls, in ns."""
        return self.cells.nanoseconds

    @property
    def counts(self):
        """Return the number of calls in each bucket: a memoryview of 1152 uint64, for `numpy.asarray`."""
        cdef uint64_t counts[BUCKETS]
        spread(&self.cells, counts)
        return memoryview((<char *>counts)[:sizeof(counts)]).cast("Q")

    def merge(self, Histogram other not None):
        """Add the calls of `other` to this histogram."""
        cdef Cells copy
        memset(&copy, 0, sizeof(Cells))
        if other is self:
            absorb(&copy, &other.cells)
            absorb(&self.cells, &copy)
            empty(&copy)
        else:
            absorb(&self.cells, &other.cells)

    def percentile(self, double fraction):
        """Return the nanoseconds that `fraction` (0 to 1) of the calls did not exceed; 0 without calls."""
        cdef uint64_t counts[BUCKETS]
        spread(&self.cells, counts)
        return rank(&self.cells, counts, fraction)

    def calls_within(self, uint64_t nanoseconds):
        """Return how many calls took at most `nanoseconds`; exact for a value of `tops`."""
        cdef uint64_t counts[BUCKETS]
        cdef uint64_t seen = 0
        cdef int index
        spread(&self.cells, counts)
        for index in range(BUCKETS):
            if top_of(index) > nanoseconds:
                break
            seen += counts[index]
        return seen

    def summary(self):
        """Return a dict of calls, errors, bytes_in, bytes_out, latency_us {p50, p90, p99, p99.9, max}."""
        cdef uint64_t counts[BUCKETS]
        cdef Cells *cells = &self.cells
        spread(cells, counts)
        return {
            "calls": cells.calls,
            "errors": cells.errors,
            "bytes_in": cells.bytes_in,
            "bytes_out": cells.bytes_out,
            "latency_us": {
                "p50": rank(cells, counts, 0.5) / 1000,
                "p90": rank(cells, counts, 0.9) / 1000,
                "p99": rank(cells, counts, 0.99) / 1000,
                "p99.9": rank(cells, counts, 0.999) / 1000,
                "max": cells.longest / 1000,
            },
        }

    def to_dict(self):
        """Return a dict of calls, errors, bytes_in, bytes_out, sum_ns, max_ns, and buckets: [index, calls] of each that
        is not empty, lowest first."""
        cdef uint64_t counts[BUCKETS]
        cdef int index
        spread(&self.cells, counts)
        return {
            "calls": self.cells.calls,
            "errors": self.cells.errors,
            "bytes_in": self.cells.bytes_in,
            "bytes_out": self.cells.bytes_out,
            "sum_ns": self.cells.nanoseconds,
            "max_ns": self.cells.longest,
            "buckets": [[index, counts[index]] for index in range(BUCKETS) if counts[index]],
        }


@cython.final
@cython.no_gc
cdef class Recorder:
    """Records the calls of one command, or of one session. It is used under the GIL.

    Besides the total it has slots of 10 s, aligned to the monotonic clock, as far back as a window reaches. A slot uses
    memory only if a call ended in it.
    """

    def __dealloc__(self):
        self.forget()

    @property
    def calls(self):
        return self.cells.calls

    @property
    def errors(self):
        return self.cells.errors

    @property
    def errors_by_category(self):
        """Return the number of errors by category, as a copy."""
        return dict(self.by_category or ())

    @property
    def counters(self):
        """Return the counters of `count` by name, as a copy."""
        return dict(self.by_name or ())

    def __sizeof__(self):
        """Return the size in bytes, including memory allocated in C."""
        cdef size_t size = sizeof_cells(&self.cells) + self.capacity * sizeof(Slot)
        cdef uint32_t i
        for i in range(self.capacity):
            size += sizeof_cells(&self.slots[i].cells)
        return object.__sizeof__(self) + size

    cdef void add(self, int64_t now, int64_t nanoseconds, uint64_t bytes_in, uint64_t bytes_out,
                  str category) noexcept:
        cdef uint64_t value = <uint64_t>nanoseconds if nanoseconds > 0 else 0
        cdef uint32_t bucket = bucket_of(value)
        cdef bint failed = category is not None
        if now >= self.slot_ends:
            self.turn(now)
        book(&self.cells, bucket, value, bytes_in, bytes_out, failed)
        if self.slot != NULL:
            book(&self.slot.cells, bucket, value, bytes_in, bytes_out, failed)
        if failed:
            if self.by_category is None:
                self.by_category = {}
            self.by_category[category] = self.by_category.get(category, 0) + 1

    cdef void turn(self, int64_t now) noexcept:
        """Make the slot of the time `now` the current one; there is none if there is no memory."""
        cdef int64_t number = now // SLOT
        cdef Slot *slot
        self.slot = NULL
        self.slot_ends = (number + 1) * SLOT
        while self.slot == NULL:
            if self.capacity:
                slot = &self.slots[number & (self.capacity - 1)]
                if slot.number <= number - LIVE:
                    empty(&slot.cells)
                    slot.number = number
                if slot.number == number:
                    self.slot = slot
                    return
            if not self.widen():
                return

    cdef bint widen(self) noexcept:
        """Double the number of slots. The index of a slot depends on its number, so no two collide."""
        cdef uint32_t capacity = self.capacity * 2 or 1, i
        cdef Slot *slots
        if capacity > RING_MOST:
            return False
        slots = <Slot *>calloc(capacity, sizeof(Slot))
        if slots == NULL:
            return False
        for i in range(capacity):
            slots[i].number = NEVER
        for i in range(self.capacity):
            if self.slots[i].number != NEVER:
                slots[self.slots[i].number & (capacity - 1)] = self.slots[i]
        free(self.slots)
        self.slots = slots
        self.capacity = capacity
        return True

    cdef int add_to(self, str name, amount) except -1:
        if self.by_name is None:
            self.by_name = {}
        known = self.by_name.get(name)
        if known is None:
            if not (name.isidentifier() and name.isascii()) or name.endswith("_total"):
                raise ValueError(f"{name!r}: not a valid name of a counter (_total is added to it)")
            known = 0
        if known + amount < INFINITE:  # JSON cannot represent an infinite sum
            self.by_name[name] = known + amount
        return 0

    def record(self, int64_t nanoseconds, uint64_t bytes_in=0, uint64_t bytes_out=0,
               str category=None, now=None):
        """Record one call that took `nanoseconds`. category: that of its error, if it failed.

        now: when it ended, by `now_ns`; default: now.
        """
        self.add(bridge_monotonic() if now is None else now, nanoseconds, bytes_in, bytes_out,
                 category)

    def count(self, str name not None, amount=1):
        """Add `amount` to the counter `name`. Raises TypeError and ValueError unless the amount is a finite number ≥ 0
        and the name consists of letters, digits and underscores."""
        if not isinstance(amount, (int, float)):
            raise TypeError(f"counter {name}: the amount must be a number, not {type(amount).__name__}")
        if not 0 <= amount < INFINITE:
            raise ValueError(f"counter {name}: the amount must be finite and ≥ 0, not {amount}")
        self.add_to(name, int(amount) if isinstance(amount, int) else float(amount))

    def reset(self):
        """Remove all that has been recorded."""
        self.forget()
        self.by_category = self.by_name = None

    def total(self):
        """Return a Histogram of all calls."""
        cdef Histogram made = Histogram()
        absorb(&made.cells, &self.cells)
        return made

    def window(self, int64_t seconds, now=None):
        """Return a Histogram of the calls that ended in the last `seconds` (at most 300), and up to 10 s before: it has
        whole slots, so that no call of that time is missing. now: as in `record`."""
        cdef Histogram made = Histogram()
        cdef int64_t current = (bridge_monotonic() if now is None else now) // SLOT
        cdef int64_t oldest = current - min(-(-seconds * 1_000_000_000 // SLOT), LIVE - 1)
        cdef uint32_t i
        for i in range(self.capacity):
            if oldest <= self.slots[i].number <= current:
                absorb(&made.cells, &self.slots[i].cells)
        return made

    cdef void forget(self) noexcept:
        """Free all memory of counts."""
        cdef uint32_t i
        empty(&self.cells)
        for i in range(self.capacity):
            empty(&self.slots[i].cells)
        free(self.slots)
        self.slots = self.slot = NULL
        self.capacity = 0
        self.slot_ends = 0


cdef size_t sizeof_cells(const Cells *cells) noexcept nogil:
    return cells.log_capacity * sizeof(uint16_t) + cells.size * sizeof(uint64_t)


def now_ns():
    """Return CLOCK_MONOTONIC in nanoseconds, the clock of all latencies."""
    return bridge_monotonic()
