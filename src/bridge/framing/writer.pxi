# Part of _framing.pyx: frames to bytes.

@cython.final
cdef class Writer:
    """Writes whole frames to the descriptor `fd`, from any thread.

    The lock is taken and released only without the GIL, so a heartbeat never waits for Python. A pipe does not split
    writes of up to PIPE_BUF bytes, so these share the lock, and none waits for a thread that lost its core inside
    another one. Longer writes hold the lock exclusively. A write that is interrupted by a signal continues; the signal
    handler runs afterwards.
    """

    def __cinit__(self, int fd):
        self.fd = fd
        self.shared_up_to = PIPE_BUF if bridge_is_pipe(fd) else 0
        if bridge_init_lock(&self.lock):
            raise MemoryError()

    def __dealloc__(self):
        pthread_rwlock_destroy(&self.lock)

    cdef int put(self, iovec *parts, int count, size_t size) noexcept nogil:
        """Write `parts`, which have `size` bytes in total and are consumed. Return 0 or the errno."""
        cdef int error
        if size <= self.shared_up_to:
            pthread_rwlock_rdlock(&self.lock)
        else:
            pthread_rwlock_wrlock(&self.lock)
        error = bridge_writev_all(self.fd, parts, count)
        pthread_rwlock_unlock(&self.lock)
        return error

    cdef int beat(self) noexcept nogil:
        """Send an empty frame. Return 0 or the errno."""
        cdef unsigned char header[HEADER]
        cdef iovec part
        bridge_store_be32(header, 0)
        part.iov_base = header
        part.iov_len = HEADER
        return self.put(&part, 1, HEADER)

    def flush(self, Outbox outbox not None):
        """Send all frames of `outbox` and empty it. Raises OSError (BrokenPipeError)."""
        cdef iovec part
        cdef size_t size = outbox.used
        cdef int error
        if outbox.buffers is not None:
            parts = outbox.parts()
            outbox.clear()
            self.put_all(parts, False)
            return
        part.iov_base = PyByteArray_AS_STRING(outbox.data)
        part.iov_len = size
        outbox.used = 0
        if size:
            with nogil:
                error = self.put(&part, 1, size)
            if error:
                raise OSError(error, f"write to descriptor {self.fd} failed")

    def send(self, *parts):
        """Send the buffers `parts` as one frame, in one writev. Raises OSError, ValueError."""
        self.put_all(parts, True)

    cdef int put_all(self, parts, bint as_frame) except -1:
        """Send buffers one after the other, in one writev. as_frame: after their length. Raises OSError, and ValueError
        if a frame cannot be that long."""
        cdef Py_buffer few_views[FEW]
        cdef iovec few_parts[FEW + 1]
        cdef Py_buffer *views = few_views
        cdef iovec *vector = few_parts
        cdef unsigned char header[HEADER]
        cdef Py_ssize_t count = len(parts), held = 0
        cdef uint64_t size = 0
        cdef int error = 0
        if count > FEW:
            views = <Py_buffer *>malloc(count * sizeof(Py_buffer))
            vector = <iovec *>malloc((count + 1) * sizeof(iovec))
        try:
            if views is NULL or vector is NULL:
                raise MemoryError()
            for part in parts:
                PyObject_GetBuffer(part, &views[held], PyBUF_SIMPLE)
                vector[held + 1].iov_base = views[held].buf
                vector[held + 1].iov_len = views[held].len
                size += views[held].len
                held += 1
            vector[0].iov_base = header
            vector[0].iov_len = HEADER if as_frame else 0
            if as_frame and size > 0xFFFFFFFF:
                raise ValueError(f"a frame holds at most 4294967295 bytes, not {size}")
            bridge_store_be32(header, <uint32_t>size)
            with nogil:
                error = self.put(vector, <int>count + 1, size + vector[0].iov_len)
        finally:
            while held:
                held -= 1
                PyBuffer_Release(&views[held])
            if count > FEW:
                free(views)
                free(vector)
        if error:
            raise OSError(error, f"write to descriptor {self.fd} failed")
        return 0
