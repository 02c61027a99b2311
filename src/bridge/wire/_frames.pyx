"""Frames of each format: which format a frame is in, and how a message becomes a frame.

Only this module decides whether a message gets out-of-band buffers, and refuses what a format cannot carry.
Compiled, because every reply passes through it.
"""

cimport cython

from bridge._framing cimport Frame, Outbox
from bridge.wire._walk cimport refer_to_long_binaries, survey

from bridge.errors import BridgeError, NotEncodable, text_of
from bridge.wire._walk import RESERVED, LONG_BINARY, NON_FINITE, OTHER_TYPE, TOO_LARGE
from bridge.wire.codec import FORMATS
from bridge.wire.messages import shortened, without_id
from bridge.wire.non_finite import refuse_non_finite
from bridge.wire.tensors import collecting_buffers


@cython.final
cdef class FrameCodec:
    """Represents a `Format` in C fields, so that the hot path does not look attributes up."""

    def __init__(self, format):
        self.format = format
        self.decode = format.decode_envelope
        self.encode_into = format.encode_into
        self.carries_nan = format.carries_nan
        self.longest_binary = format.longest_binary

    cdef Py_ssize_t add(self, Outbox outbox, object message, object value, str name, Py_ssize_t limit,
                        bint uses_buffers, tuple passed) except -1:
        """Append `message` and return the bytes of its payload, or 0 if it is longer than `limit`.

        value: the part of `message` that a handler made, called `name` in errors. uses_buffers: the
        peer accepts multipart frames, so long binaries and arrays go into out-of-band buffers.
        passed: buffers of a request that the message refers to by their numbers, or None.
        """
        cdef int found = survey(value, limit, 1, self.longest_binary)
        if found & TOO_LARGE:
            return 0
        if found & NON_FINITE and not self.carries_nan:
            refuse_non_finite(value, name)
        try:
            return self.add_checked(outbox, message, found, limit, uses_buffers, passed)
        except ValueError:
            refuse_non_finite(value, name)  # names the number if that is the reason
            raise

    cdef Py_ssize_t add_checked(self, Outbox outbox, object message, int found, Py_ssize_t limit,
                                bint uses_buffers, tuple passed) except -1:
        cdef list buffers
        if not uses_buffers or not (passed or found & (LONG_BINARY | OTHER_TYPE)):
            return outbox.add(self.encode_into, message, limit)
        if found & RESERVED and not passed:
            raise NotEncodable("a map with the single key $buffer or $tensor, or a tuple that begins with tensor,"
                               " is reserved: it cannot be sent together with arrays or long binaries")
        buffers = list(passed or ())
        if found & LONG_BINARY or buffers:
            message = refer_to_long_binaries(message, buffers, self.longest_binary)
        encode_into = collecting_buffers(self.encode_into, buffers) if found & OTHER_TYPE else self.encode_into
        return outbox.add_multipart(encode_into, message, buffers, limit)

    cdef object add_failure(self, Outbox outbox, object failure, Py_ssize_t limit):
        """Append a failure reply that is at most `limit` bytes long, and return what was appended.

        Omits details that cannot be encoded. If the reply is too long, omits the details and shortens the text; then
        omits the id.
        """
        try:
            if self.carries_nan or not survey(failure.details) & NON_FINITE:
                if outbox.add(self.encode_into, failure, limit):
                    return failure
        except Exception:  # encoding a handler's values may raise anything
            pass
        failure = shortened(failure, limit)
        if not outbox.add(self.encode_into, failure, limit):
            failure = without_id(failure.timestamp)
            outbox.append(self.encode_into, failure)
        return failure

    cpdef Outbox encoded(self, object message, object value, str name, str what, Py_ssize_t limit,
                         bint uses_buffers, tuple passed=None):
        """Return `message` as a frame, or None if it is longer than `limit` bytes.

        what: names the whole message in errors; the other arguments are those of `add`. Raises
        NotEncodable and MemoryError.
        """
        cdef Outbox outbox = Outbox()
        try:
            return outbox if self.add(outbox, message, value, name, limit, uses_buffers, passed) else None
        except (BridgeError, MemoryError):
            raise
        except Exception as error:  # encoding a handler's values may raise anything
            raise NotEncodable(f"{what} cannot be encoded as {self.format.name}:"
                               f" {type(error).__name__}: {text_of(error)}") from error


# Built from the `beginnings` of each format: those of one byte, and of two bytes where formats share the first byte.
cdef list by_first_byte = [None] * 256
cdef dict by_two_bytes = {}
cdef bint is_shared[256]
cdef dict by_names = {}


cdef int register(format) except -1:
    cdef FrameCodec codec = FrameCodec(format)
    by_names[format.name] = codec
    for beginning in format.beginnings:
        if len(beginning) == 1:
            by_first_byte[<int>beginning[0]] = codec
        else:
            by_two_bytes[beginning] = codec
            is_shared[<int>beginning[0]] = True
    return 0


for each in FORMATS:
    register(each)


cdef FrameCodec codec_of(Frame frame):
    """Return the codec of the format that `frame` begins like, or None."""
    cdef object codec
    if frame.length == 0:
        return None
    if is_shared[frame.data[0]] and frame.length > 1:
        codec = by_two_bytes.get(frame.data[:2])
        if codec is not None:
            return codec
    return by_first_byte[frame.data[0]]


def format_of(message):
    """Return the `Format` that `message` (any buffer) begins like, or None."""
    codec = codec_of(message if type(message) is Frame else Frame.of(memoryview(message)[:2]))
    return None if codec is None else codec.format


def codec_for(format):
    """Return the codec of `format`."""
    return by_names[format.name]


def unknown_format(message):
    """Return the text of the error for a message (any buffer) that begins like no format."""
    if not len(message):
        return f"an empty frame; expected a message in {', '.join(by_names)}"
    first = memoryview(message)[0]
    return f"a frame that begins with byte 0x{first:02x} is not in a known format: {', '.join(by_names)}"
