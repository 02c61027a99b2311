"""The frames from a worker, passed to the calls that they belong to.

Whoever waits, reads (leader and followers): a caller that finds nobody reading reads for all callers until its own
reply has arrived; then it hands the reading over to a caller that still waits. So a single caller wakes no thread.
The event loop, asyncio's or that of the background thread, reads while no caller does, and takes care of all that is
not for a waiting caller. This module runs no Python code between taking a frame and delivering it: an exception from
a signal handler loses no frame.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport errno
from libc.stdint cimport int64_t

from bridge._framing cimport EMPTY, END, FRAME, HEADER, INTERRUPTED, NO_MEMORY, PENDING, Frame, Reader
from bridge.wire._heads cimport EVENT_HEAD, LOG_HEAD, OTHER_HEAD, REPLY_HEAD, Head, head_of

from collections import deque


cdef extern from "pythread.h":
    ctypedef enum PyLockStatus:
        PY_LOCK_FAILURE
        PY_LOCK_ACQUIRED
        PY_LOCK_INTR
    PyThread_type_lock PyThread_allocate_lock()
    void PyThread_free_lock(PyThread_type_lock lock)
    void PyThread_release_lock(PyThread_type_lock lock)
    PyLockStatus PyThread_acquire_lock_timed(PyThread_type_lock lock, long long microseconds, int intr_flag) nogil
    unsigned long PyThread_get_thread_ident()


cdef extern from *:
    """
    #include <errno.h>
    #include <poll.h>
    #include <stdint.h>
    #include <time.h>
    #include <unistd.h>

    enum { BRIDGE_READABLE = 1, BRIDGE_WOKEN = 2, BRIDGE_INTERRUPTED = 4 };

    static int64_t bridge_now_ns(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }

    /* Waits until `fd` or `wake` is readable; returns 0 when the time `until` (ns, or -1) has come. */
    static int bridge_await_either(int fd, int wake, int64_t until) {
        struct pollfd entries[2] = {{fd, POLLIN, 0}, {wake, POLLIN, 0}};
        int64_t ms = -1;
        int ready;
        if (until >= 0) {
            ms = (until - bridge_now_ns() + 999999) / 1000000;
            if (ms < 0) ms = 0;
            if (ms > 1000000000) ms = 1000000000;
        }
        ready = poll(entries, 2, (int)ms);
        if (ready < 0) return BRIDGE_INTERRUPTED;
        return (entries[0].revents ? BRIDGE_READABLE : 0) | (entries[1].revents ? BRIDGE_WOKEN : 0);
    }

    /* Writes to and reads from an eventfd. Neither of them blocks. */
    static void bridge_signal(int fd) {
        uint64_t one = 1;
        ssize_t done;
        do done = write(fd, &one, sizeof one); while (done < 0 && errno == EINTR);
    }
    static void bridge_clear_signal(int fd) {
        uint64_t count;
        ssize_t done;
        do done = read(fd, &count, sizeof count); while (done < 0 && errno == EINTR);
    }
    """
    enum:
        BRIDGE_READABLE
        BRIDGE_WOKEN
        BRIDGE_INTERRUPTED
    int64_t bridge_now_ns() nogil
    int bridge_await_either(int fd, int wake, int64_t until) nogil
    void bridge_signal(int fd) nogil
    void bridge_clear_signal(int fd) nogil


cdef extern from "<sys/eventfd.h>" nogil:
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK
    int eventfd(unsigned int count, int flags)


cdef extern from "<unistd.h>" nogil:
    int close(int fd)


cdef enum:
    NOBODY = 0             # in place of the identifier of the thread that reads
    LOOP = 1
    HANDED_OVER = 2        # to a caller that has not woken up yet

MOST_EVENTS = 256          # events of a call that may wait before the worker is paused
cdef Py_ssize_t most_events = MOST_EVENTS

# The jobs of the event loop: decode a frame; refuse one for which there is no memory; handle the end of the stream;
# pause the events of a call; conclude a call that has ended; wake the tasks that wait for an event of a call; release
# memory after a while; check the deadlines of the calls that no caller waits for.
RECEIVE, REFUSE, FINISH, PAUSE, CONCLUDE, EVENT, RELEASE, CHECK = range(8)


cdef class Exchange:
    """A request to the worker, and what has arrived for it.

    channel: its connection, which has the inbox and the ids of requests. timeout: seconds, or None. deadline: the end
    of that time, in seconds of time.monotonic(), or None. caller_waits: whether a caller will wait for it; otherwise
    the event loop has to conclude it. has_ended: whether it has its reply or an error. reply: the frame of the reply,
    until `take_reply` is called. error: the reason why there is no reply. events: the frames of events that have not
    been consumed; None if the request asked for none. on_end, timing: for the subclass.
    """

    def __init__(self, channel, command, timeout, bint has_events=False, bint caller_waits=True):
        self.channel = channel
        self.inbox = channel.inbox
        self.id = next(channel.ids)
        self.command = command
        self.timeout = timeout
        if timeout is not None:
            self.deadline = bridge_now_ns() * 1e-9 + <double>timeout
        self.events = deque() if has_events else None
        self.caller_waits = caller_waits

    cdef bint is_ready(self, bint for_event):
        return self.has_ended or (for_event and len(self.events) > 0)

    def take_reply(self):
        """Return the frame of the reply, and drop it here, because it keeps other frames' memory in use too."""
        reply, self.reply = self.reply, None
        return reply

    def wait(self, deadline=None, bint for_event=False):
        """Wait until the call has ended (or there is an event, if `for_event`), and return True; False at `deadline`,
        which is in seconds of time.monotonic()."""
        return self.inbox.wait(self, deadline, for_event)


@cython.final
cdef class Follower:
    """A caller that waits while another reads."""

    def __cinit__(self):
        self.lock = PyThread_allocate_lock()
        if self.lock is NULL:
            raise MemoryError()
        PyThread_acquire_lock_timed(self.lock, 0, 0)

    def __dealloc__(self):
        if self.lock is not NULL:
            PyThread_free_lock(self.lock)

    cdef void wake(self):
        if not self.is_awake:
            self.is_awake = True
            PyThread_release_lock(self.lock)


@cython.final
cdef class Inbox:
    """The open calls of a client, and the reader of the frames for them. Usable from any number of threads.

    reader: of a descriptor that does not block. jobs_fd: readable when the event loop has something to do.
    forwards_logs: whether log events are for the event loop, and not for the calls whose ids they have.
    """

    def __cinit__(self):
        self.jobs_fd = self.wake_fd = -1

    def __init__(self, Reader reader not None):
        self.reader = reader
        reader.never_waits = True
        self.jobs_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.jobs_fd < 0 or self.wake_fd < 0:
            raise OSError(errno, "eventfd failed")
        self.calls = {}
        self.jobs = deque()
        self.followers = {}

    def __dealloc__(self):
        for fd in (self.jobs_fd, self.wake_fd):
            if fd >= 0:
                close(fd)

    # Calls

    def open(self, Exchange call not None):
        """Add a call whose request will be sent. Its reply may arrive from now on."""
        self.calls[call.id] = call
        if not call.caller_waits:
            self.loop_calls += 1
            if self.reading == NOBODY:
                bridge_signal(self.jobs_fd)

    def close(self, Exchange call not None, error):
        """End an open call with `error`, and return whether it was open."""
        if not self.remove(call):
            return False
        call.error = error
        self.ended(call)
        self.wake_reader()
        return True

    cdef void wake_reader(self):
        """Wake the caller that reads, unless it is this thread: it may wait for the call that has changed."""
        if self.reading > HANDED_OVER and self.reading != PyThread_get_thread_ident():
            bridge_signal(self.wake_fd)

    cdef bint remove(self, Exchange call):
        if self.calls.pop(call.id, None) is None:
            return False
        if not call.caller_waits:
            self.loop_calls -= 1
        return True

    cdef int ended(self, Exchange call) except -1:
        call.has_ended = True
        self.wake(call, True)
        if not call.caller_waits:
            self.add_job(CONCLUDE, call)
        return 0

    cdef void wake(self, Exchange call, bint has_ended):
        """Wake the callers that wait for the end of the call, or for an event."""
        cdef Follower follower = call.followers
        while follower is not None:
            if has_ended or follower.for_event:
                follower.wake()
                self.has_served = True
            follower = follower.next

    def settle(self, Exchange call not None, Frame reply not None):
        """End a call with its reply, unless it is not open anymore."""
        if self.remove(call):
            call.reply = reply
            self.ended(call)
            self.wake_reader()

    def add_event(self, Exchange call not None, Frame event not None):
        """Add an event to a call that asked for events. Have the worker paused if too many wait to be consumed."""
        if call.events is None:
            return
        call.events.append(event)
        if len(call.events) > most_events and not (call.is_paused or call.is_unlimited):
            call.is_paused = True
            self.add_job(PAUSE, call)
        if call.awaits_event:
            call.awaits_event = False
            self.add_job(EVENT, call)
        self.wake(call, False)
        self.wake_reader()

    # Waiting and reading

    cdef int wait(self, Exchange call, object deadline, bint for_event) except -1:
        cdef int64_t until = -1 if deadline is None else <int64_t>(<double>deadline * 1e9)
        cdef unsigned long thread = PyThread_get_thread_ident()
        cdef int found
        while not call.is_ready(for_event):
            if not self.is_stopping and (self.reading == NOBODY or self.reading == thread):
                found = self.lead(call, until, for_event, thread)
            else:
                found = self.follow(call, until, for_event)
            if found == BRIDGE_INTERRUPTED:
                # Here, where nobody relies on this thread: a handler may call, or take long.
                PyErr_CheckSignals()
            elif not found and bridge_now_ns() >= until:
                return call.is_ready(for_event)
        return 1

    cdef int lead(self, Exchange call, long long until, bint for_event, unsigned long thread) except -1:
        """Read until the call is ready, a signal has come, the time is `until`, or reading has to stop. Return what was
        found at last: BRIDGE_INTERRUPTED for a signal, 0 at `until`."""
        cdef bint is_nested = self.reading == thread  # in a destructor that runs while its thread reads
        cdef int found = BRIDGE_READABLE
        self.reading = thread
        self.leads += 1
        try:
            self.dispatch()
            while not (call.is_ready(for_event) or self.is_stopping):
                with nogil:
                    found = bridge_await_either(self.reader.fd, self.wake_fd, until)
                if found & BRIDGE_WOKEN:
                    bridge_clear_signal(self.wake_fd)
                elif not found & BRIDGE_READABLE:
                    break
                elif not self.is_stopping:
                    self.fill()
                    self.dispatch()
            return found
        finally:
            if not is_nested:
                self.leave()

    cdef int follow(self, Exchange call, long long until, bint for_event) except -1:
        """Wait until the call may be ready, it is its turn to read, a signal has come, or the time is `until`. Return
        BRIDGE_INTERRUPTED for a signal, 0 at `until`."""
        cdef Follower follower = Follower()
        cdef PyLockStatus status
        cdef long long left = -1
        follower.for_event = for_event
        follower.next = call.followers
        call.followers = follower
        self.followers[follower] = None
        if until >= 0:
            left = max(0, (until - bridge_now_ns() + 999) // 1000)
        with nogil:
            status = PyThread_acquire_lock_timed(follower.lock, left, 1)
        self.followers.pop(follower, None)
        remove_follower(call, follower)
        if follower.is_leader:
            self.reading = NOBODY
            if call.is_ready(for_event) or status != PY_LOCK_ACQUIRED:
                self.leave()
        if status == PY_LOCK_INTR:
            return BRIDGE_INTERRUPTED
        return BRIDGE_READABLE if status == PY_LOCK_ACQUIRED else 0

    cdef void leave(self):
        """Hand the reading over to a caller that waits, or else to the event loop, which is woken if it has to read."""
        cdef Follower follower
        while self.followers and not self.is_stopping:
            # The last one: it may be a signal handler's call that interrupted an earlier one of the same thread.
            follower = self.followers.popitem()[0]
            if not follower.is_awake:  # otherwise it has what it waits for
                self.reading = HANDED_OVER
                follower.is_leader = True
                follower.wake()
                return
        self.reading = NOBODY
        if self.loop_calls or self.is_stopping or self.is_loop_asleep:
            bridge_signal(self.jobs_fd)

    cdef int fill(self) except -1:
        """Read once what is there."""
        cdef int status
        if self.reader.has_short_slab():  # a read takes less time than to give up the GIL and take it again
            status = self.reader.fill()
        else:
            self.is_filling = True
            with nogil:
                status = self.reader.fill()
            self.is_filling = False
            if not self.releases_later and self.reader.has_long_slab():
                self.releases_later = True
                self.add_job(RELEASE, None)
        if status != PENDING and status != INTERRUPTED:
            self.fault(status)
        return 0

    cdef int dispatch(self) except -1:
        """Deliver the frames that have been read."""
        cdef int status
        while not self.is_over:
            status = self.reader.parse()
            if status == FRAME:
                self.deliver(self.reader.take())
            elif status == EMPTY:
                self.reader.start += HEADER
            elif status == PENDING:
                break
            else:
                self.fault(status)
        return 0

    cdef int deliver(self, Frame frame) except -1:
        cdef int64_t id = 0
        cdef Head head = head_of(frame, &id)
        cdef Exchange call
        if head == OTHER_HEAD or (head == LOG_HEAD and self.forwards_logs):
            self.add_job(RECEIVE, frame)
            return 0
        call = self.calls.get(id)
        if call is not None:
            if head == REPLY_HEAD:
                self.settle(call, frame)
            else:
                self.add_event(call, frame)
        return 0

    cdef int fault(self, int status) except -1:
        if status == NO_MEMORY:
            error = self.reader.fault(status)
            beginning, self.reader.unread = self.reader.unread, None
            self.add_job(REFUSE, (beginning, error))
        else:
            self.is_over = self.is_stopping = True
            self.add_job(FINISH, None if status == END else self.reader.fault(status))
        return 0

    # For the event loop

    cpdef int add_job(self, int kind, object subject) except -1:
        self.jobs.append((kind, subject))
        if not self.is_loop_reading:
            bridge_signal(self.jobs_fd)
        return 0

    def take_over(self, bint is_idle):
        """Make the event loop the one that reads if no caller does, and return whether it is.

        Do so only if there are calls that no caller waits for, or if `is_idle`: no caller has read for a while.
        """
        if self.reading == NOBODY and not self.is_stopping and (is_idle or self.loop_calls):
            self.reading = LOOP
            self.has_served = False
        self.is_loop_asleep = is_idle
        return self.reading == LOOP

    def read(self):
        """Read what has arrived, and deliver it. The descriptor must be readable; `jobs` must be done afterwards."""
        self.is_loop_reading = True
        try:
            self.fill()
            self.dispatch()
        finally:
            self.is_loop_reading = False

    def give_up(self):
        """Hand the reading over to a caller that waits. Without one, stop reading if a caller has just been served: it
        will probably call again, and read for itself."""
        if self.reading == LOOP and (self.followers or (self.has_served and not self.loop_calls)):
            self.leads += 1
            self.leave()

    def release_memory(self):
        """Release the memory of the last long frame if it has not been used for a second. Return whether there is none
        left; otherwise this has to be called again."""
        if not self.is_filling:
            self.releases_later = not self.reader.release_memory()
        return not self.releases_later

    def read_rest(self):
        """Read what a worker that has ended has left in the pipe, and return True. Callers do not read anymore.

        Return False if a caller reads at this moment; `jobs_fd` is readable when it has finished.
        """
        self.is_stopping = True
        if self.reading > HANDED_OVER:
            bridge_signal(self.wake_fd)
        if self.is_filling:
            return False
        while not self.is_over and bridge_await_either(self.reader.fd, -1, 0) & BRIDGE_READABLE:
            self.read()
        self.is_over = True
        return True


cdef void remove_follower(Exchange call, Follower follower):
    cdef Follower each = call.followers
    if each is follower:
        call.followers = follower.next
        return
    while each.next is not follower:
        each = each.next
    each.next = follower.next
