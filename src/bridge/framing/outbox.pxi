# Part of _framing.pyx: frames that wait to be sent.

@cython.final
cdef class Outbox:
    """Holds frames to be sent, one after the other in one bytearray. Buffers of multipart frames are not copied, they
    are sent from their own memory.

    The bytearray is not emptied between uses: msgspec writes within its length, and shrinking it would free the memory
    each time.
    """

    def __cinit__(self):
        self.data = bytearray(512)
        self.used = 0
        self.external = 0
        self.sent = 0
        self.buffers = None

    def __len__(self):
        return self.used + self.external

    cdef Py_ssize_t add(self, object encode_into, object message, Py_ssize_t limit) except -1:
        """Append `message` as a frame. Return the bytes of its payload, or 0 if it would be longer than `limit`."""
        cdef Py_ssize_t size = self.encode(encode_into, message)
        return self.close(size) if size <= limit else 0

    cdef Py_ssize_t encode(self, object encode_into, object message) except -1:
        """Write `message` after the space for a header, and return its bytes."""
        cdef Py_ssize_t before = PyByteArray_GET_SIZE(self.data)
        encode_into(message, self.data, self.used + HEADER)
        if before >= MAPPED and PyByteArray_GET_SIZE(self.data) < MAPPED:
            # Shrunk memory from mmap stays mapped, and the system would resize it with each later message: 8 us.
            self.data = bytearray(self.data)
        return PyByteArray_GET_SIZE(self.data) - self.used - HEADER

    cdef Py_ssize_t add_multipart(self, object encode_into, object message, list buffers,
                                  Py_ssize_t limit) except -1:
        """Append `message` with `buffers`, to which its encoding may add out-of-band buffers. If there are none in the
        end, the frame is not a multipart one. Return the bytes of the payload, or 0 if it would be longer than
        `limit`."""
        cdef Py_ssize_t start = self.used + HEADER, size, prefix, end, length, index
        cdef unsigned char *at
        cdef uint64_t total
        size = self.encode(encode_into, message)
        if not buffers:
            return self.close(size) if size <= limit else 0
        prefix = PREFIX + ENTRY * len(buffers)
        end = prefix + size
        total = end
        parts = [raw(buffer) for buffer in buffers]
        for part in parts:
            length = part.nbytes
            total = aligned(total) + <uint64_t>length
            if total > <uint64_t>limit:
                return 0
        PyByteArray_Resize(self.data, start + prefix + size + ALIGNMENT * len(parts))
        at = <unsigned char *>PyByteArray_AS_STRING(self.data) + start
        memmove(at + prefix, at, size)
        memcpy(at, b"\xc1\x01\0\0", 4)
        bridge_store_be32(at + 4, <uint32_t>len(parts))
        bridge_store_be32(at + 8, <uint32_t>size)
        bridge_store_be32(at - HEADER, <uint32_t>total)
        if self.buffers is None:
            self.buffers = []
        self.used = start + end
        total = end
        for index, part in enumerate(parts):
            length = part.nbytes
            bridge_store_be32(at + PREFIX + ENTRY * index, <uint32_t>length)
            memset(at + (self.used - start), 0, aligned(total) - total)
            self.used += aligned(total) - total
            total = aligned(total) + length
            if length:
                self.buffers.append((self.used, part))
                self.external += length
        return total

    cdef Py_ssize_t close(self, Py_ssize_t size):
        bridge_store_be32(<unsigned char *>PyByteArray_AS_STRING(self.data) + self.used,
                          <uint32_t>size)
        self.used += HEADER + size
        return size

    cdef int undo(self, Py_ssize_t used) except -1:
        """Remove what has been appended after the first `used` bytes."""
        self.used = used
        while self.buffers and self.buffers[len(self.buffers) - 1][0] > used:
            self.external -= self.buffers.pop()[1].nbytes
        return 0

    cdef int add_empty(self) except -1:
        if PyByteArray_GET_SIZE(self.data) < self.used + HEADER:
            PyByteArray_Resize(self.data, self.used + HEADER)
        bridge_store_be32(<unsigned char *>PyByteArray_AS_STRING(self.data) + self.used, 0)
        self.used += HEADER
        return 0

    def append(self, encode_into, message):
        """Append what `encode_into(message, bytearray, offset)` writes, as one frame."""
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


cdef int check_would_block(int fd, int error) except -1:
    """Raise OSError unless `error` means that the write would have blocked."""
    if error != EAGAIN:
        raise OSError(error, f"write to descriptor {fd} failed")
    return 0
