# Part of _framing.pyx: frames that wait to be sent.

cdef bytearray scratch = bytearray(SCRATCH)  # for the next message; None while one is encoded into it


@cython.final
cdef class Outbox:
    """Holds frames to be sent, one after the other in one bytearray. Buffers of multipart frames and long messages are
    not copied, they are sent from their own memory."""

    def __cinit__(self):
        self.data = bytearray(SCRATCH)
        self.used = 0
        self.external = 0
        self.sent = 0
        self.buffers = None

    def __len__(self):
        return self.used + self.external

    cdef Py_ssize_t add(self, object encode_into, object message, Py_ssize_t limit) except -1:
        """Append `message` as a frame. Return the bytes of its payload, or 0 if it would be longer than `limit`."""
        return self.add_payload(encoded(encode_into, message), limit)

    cdef Py_ssize_t add_payload(self, bytearray payload, Py_ssize_t limit) except -1:
        cdef Py_ssize_t size = PyByteArray_GET_SIZE(payload)
        if size > limit:
            return 0
        self.reserve(HEADER + min(size, COPIED))
        bridge_store_be32(<unsigned char *>PyByteArray_AS_STRING(self.data) + self.used, <uint32_t>size)
        self.used += HEADER
        self.put(payload)
        return size

    cdef int put(self, bytearray encoded) except -1:
        """Append a message without its header: a copy, for which there is room, unless it is long."""
        global scratch
        cdef Py_ssize_t size = PyByteArray_GET_SIZE(encoded)
        if size > COPIED:
            self.refer_to(memoryview(encoded), size)
            return 0
        memcpy(PyByteArray_AS_STRING(self.data) + self.used, PyByteArray_AS_STRING(encoded), size)
        self.used += size
        PyByteArray_Resize(encoded, max(size, SCRATCH))
        scratch = encoded
        return 0

    cdef int refer_to(self, object view, Py_ssize_t size) except -1:
        """Append `size` bytes that are sent from their own memory."""
        if self.buffers is None:
            self.buffers = []
        self.buffers.append((self.used, view))
        self.external += size
        return 0

    cdef int reserve(self, Py_ssize_t size) except -1:
        """Make room for `size` more bytes in the bytearray, which is never shortened."""
        cdef Py_ssize_t needed = self.used + size
        if needed > PyByteArray_GET_SIZE(self.data):
            PyByteArray_Resize(self.data, needed + needed // 2)
        return 0

    cdef Py_ssize_t add_multipart(self, object encode_into, object message, list buffers,
                                  Py_ssize_t limit) except -1:
        """Append `message` with `buffers`, to which its encoding may add out-of-band buffers. If there are none in the
        end, the frame is not a multipart one. Return the bytes of the payload, or 0 if it would be longer than
        `limit`."""
        cdef bytearray envelope = encoded(encode_into, message)
        cdef Py_ssize_t size = PyByteArray_GET_SIZE(envelope), length
        cdef uint64_t total, end
        cdef unsigned char *at
        if not buffers:
            return self.add_payload(envelope, limit)
        parts = [raw(buffer) for buffer in buffers]
        total = end = PREFIX + ENTRY * <uint64_t>len(parts) + size
        for part in parts:
            total = aligned(total) + <uint64_t>part.nbytes
            if total > <uint64_t>limit:
                return 0
        self.reserve(HEADER + PREFIX + min(size, COPIED) + (ENTRY + ALIGNMENT) * len(parts))
        at = <unsigned char *>PyByteArray_AS_STRING(self.data) + self.used
        bridge_store_be32(at, <uint32_t>total)
        memcpy(at + HEADER, b"\xc1\x01\0\0", 4)
        bridge_store_be32(at + HEADER + 4, <uint32_t>len(parts))
        bridge_store_be32(at + HEADER + 8, <uint32_t>size)
        at += HEADER + PREFIX
        for part in parts:
            bridge_store_be32(at, <uint32_t>part.nbytes)
            at += ENTRY
        self.used += HEADER + PREFIX + ENTRY * len(parts)
        self.put(envelope)
        for part in parts:
            length = aligned(end) - end
            memset(PyByteArray_AS_STRING(self.data) + self.used, 0, length)
            self.used += length
            length = part.nbytes
            end = aligned(end) + length
            if length:
                self.refer_to(part, length)
        return total

    cdef int undo(self, Py_ssize_t used) except -1:
        """Remove what has been appended after the first `used` bytes."""
        self.used = used
        while self.buffers and self.buffers[len(self.buffers) - 1][0] > used:
            self.external -= self.buffers.pop()[1].nbytes
        return 0

    cdef int add_empty(self) except -1:
        self.reserve(HEADER)
        bridge_store_be32(<unsigned char *>PyByteArray_AS_STRING(self.data) + self.used, 0)
        self.used += HEADER
        return 0

    def append(self, encode_into, message):
        """Append `message` as one frame. encode_into(message, bytearray): replaces the bytes of the bytearray."""
        self.add(encode_into, message, 0xFFFFFFFF)

    def append_multipart(self, encode_into, message, list buffers not None):
        """Append `message` as a multipart frame with `buffers`, to which `encode_into` may add; as a frame without
        buffers if there are none in the end."""
        if not self.add_multipart(encode_into, message, buffers, 0xFFFFFFFF):
            raise OverflowError("a frame holds at most 4294967295 bytes")

    def payload(self):
        """Return the payload of the only frame, as bytes."""
        return b"".join(self.parts())[HEADER:]

    def parts(self):
        """Return all bytes to be sent, as a list of buffers."""
        cdef Py_ssize_t done = 0
        cdef list parts = []
        whole = memoryview(self.data)
        for offset, part in self.buffers or ():
            parts += (whole[done:offset], part)
            done = offset
        parts.append(whole[done:self.used])
        return parts

    def write_to(self, int fd):
        """Write as much as the non-blocking descriptor `fd` accepts at once, and return whether all has been written.

        The next call continues from there. `sent` changes together with the write, so it is right even if a signal
        handler raises. Raises OSError.
        """
        cdef iovec part
        cdef ssize_t written
        if self.buffers is not None:
            return bool(self.write_parts(fd))
        while self.sent < self.used:
            part.iov_base = PyByteArray_AS_STRING(self.data) + self.sent
            part.iov_len = self.used - self.sent
            if part.iov_len <= COPIED:  # which takes less time than to give up the GIL and take it again
                written = bridge_writev_some(fd, &part, 1)
            else:
                with nogil:
                    written = bridge_writev_some(fd, &part, 1)
            if written < 0:
                check_would_block(fd, errno)
                return False
            self.sent += written
        return True

    cdef int write_parts(self, int fd) except -1:
        cdef Py_buffer views[FEW]
        cdef iovec vector[FEW]
        cdef list parts = self.parts()
        cdef Py_ssize_t before = 0, length
        cdef ssize_t written
        cdef int count, error
        cdef Py_ssize_t index = 0
        while self.sent < self.used + self.external:
            length = parts[index].nbytes
            while before + length <= self.sent:
                before += length
                index += 1
                length = parts[index].nbytes
            count = 0
            try:
                while count < FEW and index + count < len(parts):
                    PyObject_GetBuffer(parts[index + count], &views[count], PyBUF_SIMPLE)
                    vector[count].iov_base = views[count].buf
                    vector[count].iov_len = views[count].len
                    count += 1
                vector[0].iov_base = <char *>vector[0].iov_base + (self.sent - before)
                vector[0].iov_len -= self.sent - before
                with nogil:
                    written = bridge_writev_some(fd, vector, count)
                error = errno
                if written > 0:
                    self.sent += written
            finally:
                while count:
                    count -= 1
                    PyBuffer_Release(&views[count])
            if written < 0:
                check_would_block(fd, error)
                return 0
        return 1

    cdef void clear(self):
        self.used = self.external = self.sent = 0
        self.buffers = None


cdef bytearray encoded(object encode_into, object message):
    """Return `message` in a bytearray, which `Outbox.put` may use for the next message.

    Encoders of msgspec write within the length of a bytearray and cut it in the end. With an offset they would cut it
    first, and have to request the memory again.
    """
    global scratch
    cdef bytearray buffer = scratch
    scratch = None  # encoding may run code that encodes another message
    if buffer is None:
        buffer = bytearray(SCRATCH)
    encode_into(message, buffer)
    return buffer


cdef int check_would_block(int fd, int error) except -1:
    """Raise OSError unless `error` means that the write would have blocked."""
    if error != EAGAIN:
        raise OSError(error, f"write to descriptor {fd} failed")
    return 0
