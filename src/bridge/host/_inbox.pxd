from bridge._framing cimport Frame, Reader


cdef extern from "pythread.h":
    ctypedef void *PyThread_type_lock


cdef class Follower:
    cdef PyThread_type_lock lock     # released to wake the caller
    cdef bint for_event
    cdef bint is_awake               # the lock has been released
    cdef bint is_leader              # the reading has been handed over to this caller
    cdef Follower next               # another one of the same call

    cdef void wake(self)


cdef class Exchange:
    cdef readonly object channel
    cdef readonly object id
    cdef readonly object command
    cdef readonly object timeout
    cdef readonly object deadline
    cdef readonly bint has_ended
    cdef readonly Frame reply
    cdef readonly object error
    cdef readonly object events
    cdef readonly bint caller_waits  # otherwise the event loop concludes the call
    cdef public object on_end
    cdef public object timing
    cdef public object outbox
    cdef public bint is_paused       # the worker holds back events of the call
    cdef public bint is_unlimited    # any number of events may wait
    cdef public bint awaits_event    # the next event is a job of the event loop
    cdef Inbox inbox
    cdef Follower followers          # the callers that wait for this call while another reads

    cdef bint is_ready(self, bint for_event)


cdef class Inbox:
    cdef readonly dict calls         # the open ones, by id
    cdef readonly object jobs        # what the event loop has to do
    cdef readonly unsigned long leads    # how often a caller has begun to read, or the event loop has stopped
    cdef public bint forwards_logs
    cdef Reader reader
    cdef readonly int jobs_fd
    cdef int wake_fd
    cdef dict followers              # the callers that wait while another reads, in their order
    cdef unsigned long reading       # the thread that reads, NOBODY, LOOP or HANDED_OVER
    cdef Py_ssize_t loop_calls       # open calls that no caller waits for
    cdef bint is_loop_reading        # the event loop reads at this moment, and will look at `jobs`
    cdef bint is_loop_asleep         # it has to be woken when a caller stops reading
    cdef bint is_filling             # a thread is reading at this moment, without the GIL
    cdef bint releases_later         # the event loop will call `release_memory`
    cdef bint is_stopping            # callers must not read anymore
    cdef bint is_over                # the stream has ended
    cdef bint has_served             # a caller that waited has got what it waited for

    cdef bint remove(self, Exchange call)
    cdef void wake_reader(self)
    cdef int ended(self, Exchange call) except -1
    cdef void wake(self, Exchange call, bint has_ended)
    cdef int wait(self, Exchange call, object deadline, bint for_event) except -1
    cdef int lead(self, Exchange call, long long until, bint for_event, unsigned long thread) except -1
    cdef int follow(self, Exchange call, long long until, bint for_event) except -1
    cdef void leave(self)
    cdef int fill(self) except -1
    cdef int dispatch(self) except -1
    cdef int deliver(self, Frame frame) except -1
    cdef int fault(self, int status) except -1
    cpdef int add_job(self, int kind, object subject) except -1
