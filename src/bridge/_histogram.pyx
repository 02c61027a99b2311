"""Counters and latencies beside the hot path: C arrays, whose memory follows their use.

Log-linear: 32 buckets an octave of nanoseconds, so a percentile is off by at most 1/32; 36 octaves
reach 18 minutes, longer calls fall into the last bucket. All histograms have these buckets, so any
two can be merged. The first 256 calls are a list of buckets, two bytes each; from then on there
are counts, of the octaves in use.
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
    RING_MOST = 32    # slots; a power of two, and more than are read

SLOT_NS = 10_000_000_000
cdef int64_t SLOT = SLOT_NS
cdef int64_t LIVE = 31      # slots that a window may reach back to: 5 minutes and the current one
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
    """The largest value of a bucket."""
    cdef int shift = (index >> SUB_BITS) - 1
    if shift < 0:
        return index
    return ((<uint64_t>(index - (shift << SUB_BITS)) + 1) << shift) - 1


# Cells: what one histogram holds. Where there is no memory, a call is counted but in no bucket.

cdef bint lengthen(Cells *cells) noexcept nogil:
    """More room for the list; false where it is as long as it gets."""
    cdef uint32_t room = cells.room * 2 if cells.room else LOG_LEAST
    cdef void *log
    if room > LOG_MOST:
        return False
    log = realloc(cells.log, room * sizeof(uint16_t))
    if log == NULL:
        return False
    cells.log = <uint16_t *>log
    cells.room = room
    return True


cdef bint cover(Cells *cells, uint32_t bucket) noexcept nogil:
    """Counts for the octaves from the lowest bucket to the highest, this one among them."""
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
    cells.room = cells.logged = 0
    cells.counts = counts
    cells.first = low
    cells.size = high + 1 - low
    return True


cdef inline void enter(Cells *cells, uint32_t bucket, uint64_t times) noexcept nogil:
    if cells.counts == NULL and times == 1 and (cells.logged < cells.room or lengthen(cells)):
        cells.log[cells.logged] = bucket
        cells.logged += 1
    elif bucket - <uint32_t>cells.first < cells.size or cover(cells, bucket):
        cells.counts[bucket - cells.first] += times


cdef inline void book(Cells *cells, uint32_t bucket, uint64_t value, uint64_t bytes_in,
                      uint64_t bytes_out, bint failed) noexcept nogil:
    """One call."""
    cells.calls += 1
    cells.errors += failed
    cells.bytes_in += bytes_in
    cells.bytes_out += bytes_out
    cells.nanoseconds += value
    if value > cells.longest:
        cells.longest = value
    enter(cells, bucket, 1)


cdef void absorb(Cells *cells, const Cells *other) noexcept nogil:
    """All calls of `other` besides."""
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
    """The count of every bucket."""
    cdef uint32_t i
    memset(counts, 0, BUCKETS * sizeof(uint64_t))
    for i in range(cells.logged):
        counts[cells.log[i]] += 1
    if cells.size:
        memcpy(counts + cells.first, cells.counts, cells.size * sizeof(uint64_t))


cdef uint64_t rank(const Cells *cells, const uint64_t *counts, double fraction) noexcept nogil:
    """The value that `fraction` of the calls did not exceed."""
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
    """Calls, errors, bytes and latencies, as they were when it was made."""

    def __dealloc__(self):
        empty(&self.cells)

    @staticmethod
    def from_dict(data):
        """What `to_dict` made, here or elsewhere. Raises ValueError."""
        cdef Histogram made = Histogram()
        cdef Cells *cells = &made.cells
        cdef uint64_t times
        try:
            cells.calls, cells.errors = data["calls"], data["errors"]
            cells.bytes_in, cells.bytes_out = data["bytes_in"], data["bytes_out"]
            cells.nanoseconds, cells.longest = data["sum_ns"], data["max_ns"]
            for index, times in data["buckets"]:
                if not 0 <= index < BUCKETS:
                    raise ValueError(f"no bucket {index}")
                enter(cells, index, times)
        except (KeyError, TypeError, OverflowError, ValueError) as error:
            raise ValueError(f"not a histogram: {type(error).__name__}: {error}") from None
        return made

    @staticmethod
    def tops():
        """The longest duration in ns of each bucket: a memoryview of uint64, as `counts`."""
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
        """Of all calls together."""
        return self.cells.nanoseconds

    @property
    def counts(self):
        """The calls in each bucket: a memoryview of 1152 uint64, for `numpy.asarray`."""
        cdef uint64_t counts[BUCKETS]
        spread(&self.cells, counts)
        return memoryview((<char *>counts)[:sizeof(counts)]).cast("Q")

    def merge(self, Histogram other not None):
        """Add the calls of `other`. As if all had been recorded in one."""
        cdef Cells copy
        memset(&copy, 0, sizeof(Cells))
        if other is self:
            absorb(&copy, &other.cells)
            absorb(&self.cells, &copy)
            empty(&copy)
        else:
            absorb(&self.cells, &other.cells)

    def percentile(self, double fraction):
        """Nanoseconds that `fraction` (0 to 1) of the calls did not exceed; 0 without calls."""
        cdef uint64_t counts[BUCKETS]
        spread(&self.cells, counts)
        return rank(&self.cells, counts, fraction)

    def calls_within(self, uint64_t nanoseconds):
        """How many calls took at most that long; exact for one of `tops`."""
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
        """calls, errors, bytes_in, bytes_out, latency_us {p50, p90, p99, p99.9, max}."""
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
        """calls, errors, bytes_in, bytes_out, sum_ns, max_ns, and buckets: [index, calls] of each
        that is not empty, lowest first."""
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
    """What is counted of one command, or of one session. Used under the GIL.

    Beside the total it keeps slots of 10 s, each from a multiple of that on the monotonic clock,
    for as long as a window reaches back. A slot takes memory when there was a call in it.
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
        """A copy."""
        return dict(self.by_category or ())

    @property
    def counters(self):
        """What `count` has counted: a copy."""
        return dict(self.by_name or ())

    def __sizeof__(self):
        """Bytes, what C keeps for it included."""
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
        """The slot of that time becomes the current one; none where there is no memory."""
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
        """Twice as many slots. Each stands where its number says, so none meets another."""
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
                raise ValueError(f"{name!r}: not the name of a counter (_total comes by itself)")
            known = 0
        if known + amount < INFINITE:  # a sum that is no number could not be told
            self.by_name[name] = known + amount
        return 0

    def record(self, int64_t nanoseconds, uint64_t bytes_in=0, uint64_t bytes_out=0,
               str category=None, now=None):
        """Record one call that took `nanoseconds`; category: of its error, if it failed.

        now: when it ended, by `now_ns`; default: now.
        """
        self.add(bridge_monotonic() if now is None else now, nanoseconds, bytes_in, bytes_out,
                 category)

    def count(self, str name not None, amount=1):
        """Add `amount` to the counter `name`. Raises TypeError and ValueError where it is no
        finite number from 0 up, or the name not letters, digits and underscores."""
        if not isinstance(amount, (int, float)):
            raise TypeError(f"{name}: a number is counted, not {type(amount).__name__}")
        if not 0 <= amount < INFINITE:
            raise ValueError(f"{name}: a counter does not go by {amount}")
        self.add_to(name, int(amount) if isinstance(amount, int) else float(amount))

    def reset(self):
        """Back to nothing recorded."""
        self.forget()
        self.by_category = self.by_name = None

    def total(self):
        """All calls: a Histogram of their own."""
        cdef Histogram made = Histogram()
        absorb(&made.cells, &self.cells)
        return made

    def window(self, int64_t seconds, now=None):
        """The calls that ended in the last `seconds`, and up to 10 s before: whole slots, so that
        no call of that time is missing. At most 300 s. now: as in `record`."""
        cdef Histogram made = Histogram()
        cdef int64_t current = (bridge_monotonic() if now is None else now) // SLOT
        cdef int64_t oldest = current - min(-(-seconds * 1_000_000_000 // SLOT), LIVE - 1)
        cdef uint32_t i
        for i in range(self.capacity):
            if oldest <= self.slots[i].number <= current:
                absorb(&made.cells, &self.slots[i].cells)
        return made

    cdef void forget(self) noexcept:
        """Give back all memory of counts."""
        cdef uint32_t i
        empty(&self.cells)
        for i in range(self.capacity):
            empty(&self.slots[i].cells)
        free(self.slots)
        self.slots = self.slot = NULL
        self.capacity = 0
        self.slot_ends = 0


cdef size_t sizeof_cells(const Cells *cells) noexcept nogil:
    return cells.room * sizeof(uint16_t) + cells.size * sizeof(uint64_t)


def now_ns():
    """CLOCK_MONOTONIC in nanoseconds: the clock of all latencies."""
    return bridge_monotonic()
