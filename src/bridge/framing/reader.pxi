# Part of _framing.pyx: bytes to frames.

@cython.final
cdef class Reader:
    """Reads frames from the descriptor `fd`, which it does not close.

    max_frame: bytes; a longer frame is refused before memory is allocated for it.
    """

    def __cinit__(self, int fd, uint64_t max_frame=DEFAULT_MAX_FRAME):
        self.fd = fd
        self.max_frame = max_frame
        self.slab = slab_new(SLAB)
        if self.slab is NULL:
            raise MemoryError()

    def __dealloc__(self):
        slab_release(self.slab)
        slab_release(self.spare)

    cdef int parse(self) noexcept nogil:
        """Return what the bytes read so far begin with. Does no I/O."""
        cdef size_t have
        if self.skipping:
            have = min(<uint64_t>(self.end - self.start), self.skipping)
            self.start += have
            self.skipping -= have
            if self.skipping:
                return PENDING
        have = self.end - self.start
        if have < HEADER:
            return PENDING
        self.announced = bridge_load_be32(self.slab.data + self.start)
        if self.announced > self.max_frame:
            return TOO_LARGE if self.announced <= TRUSTED else UNTRUSTED
        if have < HEADER + self.announced:
            return PENDING
        return FRAME if self.announced else EMPTY

    cdef int reserve(self, size_t need) noexcept nogil:
        """Make room for `need` bytes after `start`, and for one more byte. Return 0, or -1 without memory."""
        cdef size_t have = self.end - self.start
        cdef bint is_sole = slab_is_sole(self.slab)
        cdef bridge_slab *fresh
        if not have and not is_sole:
            self.start = self.end = aligned(self.start)  # so that the next payload is aligned
        if self.start + need <= self.slab.size and self.end < self.slab.size:
            if have or not is_sole or self.slab.size > LONG_SLAB:
                return 0
        if is_sole and need <= self.slab.size <= LONG_SLAB:
            memmove(self.slab.data, self.slab.data + self.start, have)
        else:
            fresh = self.fresh(need)
            if fresh is NULL:
                return -1
            memcpy(fresh.data, self.slab.data + self.start, have)
            self.retire(self.slab)
            self.slab = fresh
        self.start = 0
        self.end = have
        return 0

    cdef bridge_slab *fresh(self, size_t need) noexcept nogil:
        """Return a slab for `need` bytes: the spare one if it is of similar length; NULL without memory.

        After a frame that fits only a long slab, the next slab is long too, so that the next frame of that length is
        not read in two parts.
        """
        cdef bridge_slab *spare = self.spare
        cdef bint is_long = need > SLAB or self.had_long
        if need <= LONG_SLAB:
            self.had_long = False
            return slab_new(LONG_SLAB if is_long else SLAB)
        self.spare = NULL
        if (spare is not NULL and slab_is_sole(spare)
                and need <= spare.capacity <= need + need // 8):
            spare.size = need
            return spare
        slab_release(spare)
        return slab_new(need)

    cdef void retire(self, bridge_slab *slab) noexcept nogil:
        """Release a slab, or retain a long one as the spare for a short time: the kernel takes as long to provide new
        memory as a pipe takes to fill it."""
        if slab.size > LONG_SLAB:
            slab_release(self.spare)
            self.spare = slab
            self.spare_until = bridge_now_ms() + SPARE_MS
        else:
            slab_release(slab)

    cdef int await_with_spare(self) noexcept nogil:
        """Wait for bytes, and release the spare slab if they do not come in time. Return the result of poll(2)."""
        cdef int64_t left = self.spare_until - bridge_now_ms()
        cdef int ready = bridge_await(self.fd, POLLIN, <int>left) if left > 0 else 0
        if ready == 0:
            self.release_spare()
        return ready

    cdef bint release_spare(self) noexcept nogil:
        """Release the spare slab if its time is over, and return whether there is none anymore."""
        if self.spare is not NULL and self.spare_until <= bridge_now_ms():
            slab_release(self.spare)
            self.spare = NULL
        return self.spare is NULL

    cdef bint has_short_slab(self) noexcept nogil:
        """Return whether `fill` reads at most SLAB bytes."""
        return self.slab.size <= SLAB

    cdef bint has_long_slab(self) noexcept nogil:
        """Return whether the memory of a long frame is in use, or was until a short time ago."""
        return self.slab.size > LONG_SLAB or self.spare is not NULL

    cdef bint release_memory(self) noexcept nogil:
        """Release the memory of a long frame if it has not been used for a while, and return whether there is none."""
        if self.start == self.end and self.slab.size > LONG_SLAB:
            self.reserve(HEADER)  # makes it the spare slab
        return self.slab.size <= LONG_SLAB and self.release_spare()

    cdef int fill(self) noexcept nogil:
        """Call read(2) once after `parse` has returned PENDING. Return PENDING, or why there are no more bytes."""
        cdef ssize_t got
        cdef size_t have = self.end - self.start
        cdef size_t need = HEADER
        if have >= HEADER and not self.skipping:
            need = HEADER + self.announced
        if self.reserve(need) < 0:
            need = min(need, <size_t>SLAB)  # enough for the id of a frame for which there is no memory
            if self.reserve(need) < 0:
                bridge_await(-1, 0, PAUSE_MS)  # other threads may free some
                return INTERRUPTED
            if have >= need:
                return NO_MEMORY
        if self.spare is not NULL and have == 0 and not self.never_waits and self.await_with_spare() < 0:
            return INTERRUPTED
        got = read(self.fd, self.slab.data + self.end, self.slab.size - self.end)
        if got > 0:
            self.end += got
            return PENDING
        if got == 0:
            return TRUNCATED if have or self.skipping else END
        self.error = errno
        if self.error == EINTR:
            return INTERRUPTED
        if self.error == ECONNRESET:
            return END
        if self.error != EAGAIN:
            return FAILED
        return PENDING if self.never_waits or bridge_await(self.fd, POLLIN, -1) >= 0 else INTERRUPTED

    cdef int wait(self, Writer heartbeats) noexcept nogil:
        """Read until there is a frame or an error for Python. Answer empty frames if given a writer."""
        cdef int status
        while True:
            status = self.parse()
            if status == EMPTY and heartbeats is not None:
                self.start += HEADER
                if heartbeats.beat() == EPIPE:
                    return END
            elif status == PENDING:
                status = self.fill()
                if status != PENDING:
                    return status
            else:
                return status

    cdef Frame take(self):
        """Return the frame that `parse` has found."""
        cdef Frame frame = Frame.__new__(Frame)
        slab_hold(self.slab)
        frame.slab = self.slab
        frame.data = self.slab.data + self.start + HEADER
        frame.length = self.announced
        self.start += HEADER + self.announced
        self.had_long |= SLAB < HEADER + self.announced <= LONG_SLAB
        return frame

    cdef Frame beginning(self):
        """Return the bytes read so far of the payload that `parse` or `fill` has found and that cannot be read."""
        cdef Frame frame = Frame.__new__(Frame)
        slab_hold(self.slab)
        frame.slab = self.slab
        frame.data = self.slab.data + self.start + HEADER
        frame.length = self.end - self.start - HEADER
        return frame

    cdef void skip(self) noexcept:
        self.start += HEADER
        self.skipping = self.announced

    def read(self):
        """Return the next frame (an empty one is a heartbeat), or None at the end of the stream.

        Raises FrameTooLarge, and Overloaded if there is no memory for the frame (`unread` is its beginning); the next
        call continues after the frame, unless that is longer than 1 GiB. Raises InvalidFrame if the stream ends inside
        a frame, and OSError.
        """
        cdef int status
        while True:
            with nogil:
                status = self.wait(None)
            if status == FRAME or status == EMPTY:
                return self.take()
            if status == END:
                return None
            if status == INTERRUPTED:
                PyErr_CheckSignals()
                continue
            raise self.fault(status)

    cdef object fault(self, int status):
        """Return the error for a status that is neither a frame nor the end of the stream. Skips a frame that cannot be
        read, if that is possible."""
        if status == TOO_LARGE or status == UNTRUSTED:
            error = FrameTooLarge.announced(self.announced, self.max_frame)
            if status == TOO_LARGE:
                self.skip()
            return error
        if status == NO_MEMORY:
            self.unread = self.beginning()
            self.skip()
            return Overloaded.without_memory(f"for a frame of {self.announced} bytes")
        if status == TRUNCATED:
            return InvalidFrame(f"stream ended inside a frame, after {self.end - self.start} bytes")
        return OSError(self.error, f"read from descriptor {self.fd} failed")
