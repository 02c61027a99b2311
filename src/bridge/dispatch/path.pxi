# Part of _dispatch.pyx: from a frame to its reply.

# Where the fields of an Envelope are that every call reads.
cdef Py_ssize_t ID_FIELD = offset_of(Envelope, "id")
cdef Py_ssize_t COMMAND_FIELD = offset_of(Envelope, "command")
cdef Py_ssize_t TIMING_FIELD = offset_of(Envelope, "timing")


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
        name, id = field_at(request, COMMAND_FIELD), field_at(request, ID_FIELD)
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
            self.run_observed(context, outbox)
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
        self.run_observed(context, outbox)

    cdef int run_observed(self, Context context, Outbox outbox) except -1:
        """Run the handler, append the reply, and tell the observer when the call begins and ends."""
        if observer is None:
            self.perform(context, outbox)
            return 0
        if context.observed:  # the call has ended before its handler started
            return 0
        context.observed = True
        end = observer(context)
        try:
            failure = self.perform(context, outbox)
        except BaseException as error:
            end(self.policy.fail(context, error))
            raise
        end(failure)
        return 0

    cdef object perform(self, Context context, Outbox outbox):
        """Run the handler and append the reply. Return the Failure of the call, or None."""
        cdef Command command = context.command
        cdef object message, args = None
        cdef Py_ssize_t before, start = outbox.used
        cdef int64_t began = monotonic() if field_at(context.request, TIMING_FIELD) else 0
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
