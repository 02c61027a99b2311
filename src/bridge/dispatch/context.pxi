# Part of _dispatch.pyx: a call, as its handler sees it.

cdef class FastPath  # declared here, because Context refers to it


@cython.freelist(64)
cdef class Context:
    """Represents a call to its handler: what is known about it, and what the handler can do besides returning a result.

    The context of a call that is not inline is a `Deferred`.

    id: of the request, as the host sent it. request: the decoded envelope. deliver(outbox): sends a message of the call
    that is not its reply. received_ns: when the request was received; monotonic. frame_bytes: the request's length.
    buffers: those of a multipart request, a tuple of frames; otherwise None.
    """

    cdef readonly object id
    cdef readonly object request
    cdef readonly Command command
    cdef FrameCodec codec
    cdef readonly object deliver
    cdef readonly int64_t received_ns
    cdef readonly Py_ssize_t frame_bytes
    cdef readonly tuple buffers
    cdef tuple passed  # buffers of the request that go into the reply
    cdef FastPath path
    cdef bint observed

    def __init__(self):
        raise TypeError("the dispatcher makes contexts")

    @property
    def format(self):
        """Return the format of the request, in which it is answered."""
        return self.codec.format

    @property
    def session_id(self):
        """Return the session id of the envelope or, if it has none, of the args; otherwise None."""
        return self.request.session_id

    @property
    def sessions(self):
        """Return the sessions that the call has; none if it is inline."""
        return ()

    @property
    def session(self):
        """Return the first of the sessions, or None."""
        return self.sessions[0] if self.sessions else None

    @property
    def shared(self):
        """Return what the adapter shares among all sessions, as of when the call arrived; {} if the call is inline."""
        return {}

    @property
    def worker(self):
        """Return the state of the worker (worker/state.py), which control commands read and change."""
        return self.path.worker

    @property
    def timestamp(self):
        """Return the current time as ISO 8601 in UTC."""
        return timestamp()

    @property
    def uptime(self):
        """Return the seconds from the start of the process to the arrival of the request, to the ms."""
        return ((self.received_ns - started) // 1_000_000) / 1000.0

    @property
    def streaming(self):
        """Return whether the host asked for events."""
        return self.request.stream

    @property
    def remaining(self):
        """Return the seconds until the deadline, 0.0 after it, None without one."""
        return None

    @property
    def has_turn(self):
        """Return whether none of the later calls of its sessions has started."""
        return False

    def check(self):
        """Raise CallEnded if the call is over. Handlers that run for long call this between their steps."""
        refuse_in_fork()

    def wait(self, seconds):
        """Wait that many seconds. Raise CallEnded as soon as the call is over."""
        self.check()
        sleep(max(0.0, seconds))

    def emit(self, str event, data):
        """Send an event if the host asked for events. Wait while the host has paused them.

        Raise CallEnded if the call is over, ReplyTooLarge, NotEncodable, Overloaded if too many calls wait for the
        host.
        """
        cdef Outbox outbox
        if not self.request.stream:
            return
        self.wait_until_ready()
        outbox = self.path.encoded(self, Event(self.id, event, data), data, "data",
                                     f"event {shown(event)}")
        outbox.kind = EVENT
        self.send(outbox)

    def pass_buffers(self):
        """Send the request's buffers with the reply, under the same numbers: for a result with the undecoded args."""
        self.passed = self.buffers

    def call_host(self, str command, args):
        """Send `command` to the host, and return its answer. Wait for that until the call is over.

        Raise NotAllowed if the host has not offered to be called, the error that the host answers with, CallEnded,
        NotEncodable, ReplyTooLarge, Overloaded if too many calls wait for the host.
        """
        raise NotAllowed("an inline command cannot wait for the host")

    def run_together(self, run, threads):
        """Call run() on this thread and on up to `threads` - 1 others at once, which have its context variables. Return
        when all have returned.

        If one raises, the context raises CallEnded in the others, also where they wait in one of its methods. The first
        error is raised when they have returned; the handler cannot use the context any more then.
        """
        run()

    def stream_host(self, str command, args):
        """Like `call_host`, but a generator: yield the events (event, data) that the host sends before its answer, then
        return that.

        Raise ReplyTooLarge, besides, if all events together have more than --max-frame bytes.
        """
        raise NotAllowed("an inline command cannot wait for the host")

    def count(self, str name not None, amount=1):
        """Add `amount` to the counter `name` in the statistics of the command and of the session.

        Use few names, known beforehand (`lm_calls`, `input_tokens`). Raise TypeError or ValueError unless the amount is
        a finite number of at least 0 and the name consists of letters, digits and underscores.
        """
        self.command.recorder.count(name, amount)
        if self.sessions:
            (<Recorder?>self.session.recorder).count(name, amount)

    def release(self):
        """Commit what the handler has changed in its session, and let the session's later calls start.

        Raise SessionLost or StoreFailed if it cannot be stored.
        """

    def take_turn(self):
        """Wait for the session's turn again after `release`: handlers that have worked for long change it then.

        Raise SessionNotFound if the session has ended meanwhile, SessionLost, StoreFailed, CallEnded.
        """

    cdef int wait_until_ready(self) except -1:
        """Wait until an event may be sent."""
        self.check()
        return 0

    cdef int send(self, Outbox outbox) except -1:
        """Deliver a message of the call that is not its reply."""
        rest = self.deliver(outbox)
        if rest is not None:
            rest()
        return 0


cdef class Deferred(Context):
    """Represents a call that is not inline, which several threads may try to answer: it gets one reply, and no event
    after that.

    sessions: those whose earlier calls it waits for. answered: whether a thread has claimed the call, to send the
    reply. ended: the error that ended it before its handler returned. running: whether its handler has started.
    stepped_ns: when the handler last checked whether it should go on; monotonic, like deadline_ns (0: no deadline).
    """

    cdef public object session_id
    cdef public list sessions
    cdef public dict shared
    cdef public int64_t deadline_ns
    cdef public bint running
    cdef public object ended
    cdef readonly bint answered
    cdef readonly int64_t stepped_ns
    cdef readonly object gate  # a lock: what must not be sent or changed after the reply is done while holding it
    cdef public object resumed  # an event, not set while the host has paused the call's events; None if it never has

    def __init__(self, Context arrived not None):
        """Take over the request that arrived."""
        self.id = arrived.id
        self.request = arrived.request
        self.command = arrived.command
        self.codec = arrived.codec
        self.deliver = arrived.deliver
        self.received_ns = arrived.received_ns
        self.frame_bytes = arrived.frame_bytes
        self.buffers = arrived.buffers
        self.path = arrived.path
        self.session_id = arrived.request.session_id
        self.sessions = []
        self.shared = {}
        self.gate = Lock()

    @property
    def remaining(self):
        return max(0.0, (self.deadline_ns - monotonic()) / 1e9) if self.deadline_ns else None

    def check(self):
        self.stepped_ns = monotonic()
        if self.ended is not None:
            raise CallEnded(str(self.ended))
        refuse_in_fork()

    def claim(self, error=None):
        """Return whether the caller must answer the call: only the first caller must. No event is sent after that.

        error: what ends the call before its handler returns.
        """
        cdef bint first
        with self.gate:
            first = not self.answered
            self.answered = True
            if first and error is not None:
                self.ended = error
        return first

    cdef int wait_until_ready(self) except -1:
        self.check()
        if self.resumed is not None and not self.resumed.is_set():
            self.await_resume()
            self.check()
        return 0

    cdef int send(self, Outbox outbox) except -1:
        rest = None
        with self.gate:
            if not self.answered:
                rest = self.deliver(outbox)
        if rest is not None:
            rest()
        self.check()
        return 0

    def send_host_call(self, str request_id, str command, args):
        """Send a request to the host. Raise NotEncodable, ReplyTooLarge, CallEnded."""
        cdef dict message = {"id": request_id, "command": command, "args": args, "call_id": self.id}
        cdef Outbox outbox = self.path.encoded(self, message, args, "args", f"host call {shown(command)}")
        outbox.kind = HOST_CALL
        self.send(outbox)
