"""The path of every frame: decode the request, look up its command, run an inline handler, encode the reply, record.

This module is compiled and contains only what every call needs. Everything else (a broken frame, a failed handler, a
call for a thread) is passed to a policy, the dispatcher in `worker/dispatch.py`.
"""

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING
from libc.stdint cimport int64_t, uint64_t

from bridge._framing cimport HEADER, Frame, Outbox, is_multipart
from bridge._histogram cimport Recorder, monotonic
from bridge.wire._frames cimport FrameCodec, codec_of
from bridge.wire._limits cimport limited
from bridge._watch cimport in_fork

from threading import Lock
from time import sleep

from msgspec import UNSET

from bridge.wire._frames import codec_for, unknown_format
from bridge.wire.codec import JSON
from bridge.errors import BridgeError, CallEnded, InvalidFrame, NotAllowed, Overloaded, ReplyTooLarge, shown
from bridge._framing import EVENT, HOST_CALL, buffers_of, envelope_beginning, envelope_of
from bridge.wire.messages import Event, Failure, Reply, TimedReply


cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <stdio.h>
    #include <time.h>
    #ifdef CLOCK_REALTIME_COARSE
    #define BRIDGE_WALL_CLOCK CLOCK_REALTIME_COARSE  /* ticks of 4 ms, at a fifth of the cost */
    #else
    #define BRIDGE_WALL_CLOCK CLOCK_REALTIME
    #endif
    /* Milliseconds since the epoch. */
    static int64_t bridge_wall(void) {
        struct timespec now;
        clock_gettime(BRIDGE_WALL_CLOCK, &now);
        return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
    }
    static void bridge_iso8601(int64_t milliseconds, char *text) {
        time_t seconds = milliseconds / 1000;
        struct tm parts;
        gmtime_r(&seconds, &parts);
        size_t length = strftime(text, 25, "%Y-%m-%dT%H:%M:%S", &parts);
        snprintf(text + length, 8, ".%03dZ", (int)(milliseconds % 1000));
    }
    """
    int64_t bridge_wall() nogil
    void bridge_iso8601(int64_t milliseconds, char *text) nogil


cdef int64_t stamped = -1
cdef str stamp = ""


cpdef str timestamp():
    """Return the current time as ISO 8601 in UTC, accurate to a tick of the coarse clock (4 ms on Linux)."""
    global stamped, stamp
    cdef int64_t now = bridge_wall()
    cdef char text[40]
    if now != stamped:
        bridge_iso8601(now, text)
        stamp = text.decode("ascii")
        stamped = now
    return stamp


cdef int64_t started = monotonic()  # the start of the process: this module is loaded early


cdef inline int refuse_in_fork() except -1:
    """Raise CallEnded in a child of the worker."""
    if in_fork():
        raise CallEnded("this is a child of the worker")
    return 0


cdef object observer = None


def observe(begin):
    """Call begin(context) when a call begins, from now on. None: stop doing that.

    What it returns is called on the same thread when the call ends, with its Failure or None. Neither may raise.
    """
    global observer
    observer = begin


cdef object call_log = None


def log_calls(log):
    """Call log(context, nanoseconds, Failure or None) when a call is answered, from now on. None: stop doing that.

    It must not raise.
    """
    global call_log
    call_log = log


@cython.final
cdef class Command:
    """Represents a row of the command table.

    run(args, context): the handler. decode(format, raw, buffers): returns its args; None: they are not decoded.
    inline: whether it runs on the thread that reads the frames. spec: its declaration, which only the policy uses.
    """

    cdef readonly str name
    cdef readonly object run
    cdef readonly object decode
    cdef readonly bint inline
    cdef readonly object spec
    cdef readonly Recorder recorder

    def __init__(self, str name, run, decode, bint inline, spec):
        self.name = name
        self.run = run
        self.decode = decode
        self.inline = inline
        self.spec = spec
        self.recorder = Recorder()


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
        """Send `command` to the host, and return its answer. Wait for that until the deadline of the call.

        Raise NotAllowed if the host has not offered to be called, the error that the host answers with,
        DeadlineExceeded, CallEnded, NotEncodable, ReplyTooLarge, Overloaded if too many calls wait for the host.
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


@cython.final
cdef class FastPath:
    """Answers frames.

    commands: by name. open_calls: the calls that are not inline and have no reply yet, by id. Both change while they
    are used. new_call(context): returns a `Deferred` for the context of a call that is not inline. worker: the object
    that handlers get as `context.worker`.

    policy: decides everything else. refuse(format, frame, buffers, error) returns the reply to a frame that is not a
    request, and receive(format, frame, buffers, envelope) the reply to a message without id or command; both may return
    None for no reply. reject(context), fail(context, error), not_encodable(context, error) and broken(id, error) return
    the reply to a request that cannot be answered otherwise. defer(call) queues a call that is not inline, or returns
    the reply that refuses it. end_fork(error) ends a child process that has returned from a handler.

    stopping: set to make the loop that reads frames stop. accepts_buffers: whether the host reads multipart replies to
    all requests, also to those without buffers.
    """

    cdef FrameCodec fallback
    cdef dict commands
    cdef dict open_calls
    cdef object new_call
    cdef object policy
    cdef object worker
    cdef readonly Py_ssize_t max_frame
    cdef readonly uint64_t max_values
    cdef public object stopping
    cdef public bint accepts_buffers

    def __init__(self, commands, open_calls, new_call, policy, worker, Py_ssize_t max_frame, uint64_t max_values):
        self.fallback = codec_for(JSON)
        self.commands = commands
        self.open_calls = open_calls
        self.new_call = new_call
        self.policy = policy
        self.worker = worker
        self.max_frame = max_frame
        self.max_values = max_values
        self.stopping = False
        self.accepts_buffers = False

    def answer(self, Frame frame not None, Outbox outbox not None, deliver):
        """Append the reply to `frame` to `outbox`, or queue the call. Return `stopping`.

        The reply to a queued call is passed to deliver(outbox) in another outbox, from another thread. What that
        returns, if anything, is called when no lock is held.
        """
        cdef int64_t arrived = monotonic()
        cdef Py_ssize_t before = outbox.used
        cdef Context context = Context.__new__(Context)
        try:
            self.take(frame, outbox, deliver, context, arrived)
        except Exception as error:
            outbox.undo(before)
            failure = self.policy.broken(context.id, error)
            self.put(outbox, None, context.codec or self.fallback, failure)
        return self.stopping

    cdef int take(self, Frame frame, Outbox outbox, object deliver, Context context,
                  int64_t arrived) except -1:
        """Answer `frame`. context: an empty one, for its call."""
        cdef object command, name, id, request, failure, reply
        cdef FrameCodec codec = None
        cdef Frame envelope = frame
        cdef tuple buffers = None
        try:
            if is_multipart(frame):
                envelope = envelope_of(frame)
            codec = context.codec = codec_of(envelope)
            if codec is None:
                raise InvalidFrame(unknown_format(envelope))
            if envelope is not frame:
                buffers = buffers_of(frame)
            envelope = limited(envelope, self.max_frame, self.max_values)
            request = codec.decode(envelope)
        except Exception as error:
            failure = self.policy.refuse(codec and codec.format, envelope, buffers, error)
            if failure is not None:
                self.put(outbox, None, codec or self.fallback, failure)
            return 0
        name, id = request.command, request.id
        if name is UNSET or id is UNSET:
            reply = self.policy.receive(codec.format, envelope, buffers, request)
            if reply is not None:
                self.put(outbox, None, codec, reply)
            return 0
        context.id = id
        context.request = request
        context.path = self
        context.deliver = deliver
        context.received_ns = arrived
        context.frame_bytes = frame.length
        context.buffers = buffers
        command = self.commands.get(name)
        context.command = <Command>command
        if command is None or (self.open_calls and context.id in self.open_calls):
            failure = self.policy.reject(context)
        elif context.command.inline:
            self.run(context, outbox)
            return 0
        else:
            context = <Deferred?>self.new_call(context)
            failure = self.policy.defer(context)
        if failure is not None:
            if observer is not None:
                observer(context)(failure)
            self.put(outbox, context, codec, failure)
        return 0

    def refuse(self, error, Outbox outbox not None, Frame beginning):
        """Append the reply to a frame that was not read. beginning: its first bytes if they were read, or None."""
        cdef FrameCodec codec = None
        if not isinstance(error, BridgeError):
            return
        if beginning is not None:
            beginning = envelope_beginning(beginning)
            codec = codec_of(beginning)
        failure = self.policy.refuse(None if codec is None else codec.format, beginning, None, error)
        if failure is not None:
            self.put(outbox, None, self.fallback if codec is None else codec, failure)

    def run(self, Context context not None, Outbox outbox not None):
        """Run the handler and append the one reply, whether it returns or raises. Append nothing if another thread has
        answered the call in the meantime."""
        if observer is None:
            self.perform(context, outbox)
            return
        if context.observed:  # the call has ended before its handler started
            return
        context.observed = True
        end = observer(context)
        try:
            failure = self.perform(context, outbox)
        except BaseException as error:
            end(self.policy.fail(context, error))
            raise
        end(failure)

    cdef object perform(self, Context context, Outbox outbox):
        """Run the handler and append the reply. Return the Failure of the call, or None."""
        cdef Command command = context.command
        cdef object message, args = None
        cdef Py_ssize_t before, start = outbox.used
        cdef int64_t began = monotonic() if context.request.timing else 0
        cdef int64_t decoded = 0
        try:
            if command.decode is not None:
                args = command.decode(context.codec.format, context.request.args, context.buffers)
            if began:
                decoded = monotonic()
            message = Reply(context.id, True, command.run(args, context), timestamp())
        except BaseException as error:
            if in_fork():
                self.policy.end_fork(error)
            decoded = 0
            message = self.policy.fail(context, error)
        if in_fork():
            self.policy.end_fork(None)
        if isinstance(context, Deferred) and not (<Deferred>context).claim():
            return self.policy.fail(context, (<Deferred>context).ended)
        before = outbox.used + outbox.external
        try:
            if decoded:
                message = self.timed(context, message, began, decoded)
            message = self.put(outbox, context, context.codec, message)
        except BaseException as error:
            outbox.undo(start)
            message = self.put(outbox, context, context.codec,
                               self.policy.not_encodable(context, error))
        self.record(context, outbox.used + outbox.external - before - HEADER, message)
        return message if type(message) is Failure else None

    def finish(self, Context context not None, Outbox outbox not None, error):
        """Append `error` as the reply to a call that was claimed before its handler returned."""
        cdef object message = self.policy.fail(context, error)
        cdef Py_ssize_t before = outbox.used + outbox.external
        message = self.put(outbox, context, context.codec, message)
        self.record(context, outbox.used + outbox.external - before - HEADER, message)
        if observer is not None and not context.observed:
            context.observed = True
            observer(context)(message)

    cdef int record(self, Context context, Py_ssize_t size, object message) except -1:
        """Record a call whose reply was `message` for its command and for its session."""
        cdef int64_t now = monotonic()
        cdef int64_t took = now - context.received_ns
        cdef str category = message.category if type(message) is Failure else None
        context.command.recorder.add(now, took, context.frame_bytes, size, category)
        if isinstance(context, Deferred) and (<Deferred>context).sessions:
            (<Recorder?>context.session.recorder).add(now, took, context.frame_bytes, size,
                                                          category)
        if call_log is not None:
            call_log(context, took, message if type(message) is Failure else None)
        return 0

    cdef object timed(self, Context context, object reply, int64_t began, int64_t decoded):
        cdef int64_t ran = monotonic()
        cdef Outbox trial = Outbox()
        self.put(trial, context, context.codec, reply)
        return TimedReply(reply.id, True, reply.result, reply.timestamp, {
            "queue_us": (began - context.received_ns) / 1000,
            "decode_us": (decoded - began) / 1000,
            "run_us": (ran - decoded) / 1000,
            "encode_us": (monotonic() - ran) / 1000,
            "bytes_in": context.frame_bytes,
            "bytes_out": trial.used + trial.external - HEADER,
        })

    cdef Outbox encoded(self, Context context, object message, object value, str name, str what):
        """Return `message` in a new outbox. value: the part of it that a handler made, called `name` in errors. what:
        the whole message in errors."""
        cdef Outbox outbox
        try:
            outbox = context.codec.encoded(message, value, name, what, self.max_frame, self.uses_buffers(context),
                                           context.passed)
        except MemoryError:
            raise Overloaded.without_memory(f"to encode {what}") from None
        if outbox is None:
            raise ReplyTooLarge(f"{what} is longer than {self.max_frame} bytes", limit=self.max_frame)
        return outbox

    cdef object put(self, Outbox outbox, Context context, FrameCodec codec, object message):
        """Append `message` and return what was appended. context: None if the message belongs to no call.

        Raises ReplyTooLarge, NotEncodable, and what the encoder raises; never raises for a failure.
        """
        if type(message) is Failure:
            return codec.add_failure(outbox, message, self.max_frame)
        value = message.result if type(message) is Reply or type(message) is TimedReply else None
        if codec.add(outbox, message, value, "result", self.max_frame, self.uses_buffers(context),
                     None if context is None else context.passed):
            return message
        raise ReplyTooLarge(f"the reply is longer than {self.max_frame} bytes", limit=self.max_frame)

    cdef inline bint uses_buffers(self, Context context):
        """Return whether the host reads multipart replies to this call: it has sent one, or offered it in `hello`."""
        return context is not None and (context.buffers is not None or self.accepts_buffers)
