# Part of _framing.pyx: the payloads of frames, and the parts of multipart frames.

@cython.final
@cython.freelist(256)
cdef class Frame:
    """Represents a payload: a read-only buffer over the slab into which it was read, and which it keeps alive.

    The bytes never move and are not overwritten as long as a frame or a view of it exists.
    """

    def __cinit__(self):
        self.slab = NULL

    def __dealloc__(self):
        slab_release(self.slab)

    def __len__(self):
        return self.length

    cdef Frame part(self, Py_ssize_t start, Py_ssize_t length):
        """Return a part of this frame, without a copy."""
        cdef Frame part = Frame.__new__(Frame)
        slab_hold(self.slab)
        part.slab = self.slab
        part.data = self.data + start
        part.length = length
        return part

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, <void *>self.data, self.length, 1, flags)

    @staticmethod
    def of(data):
        """Return a frame with a copy of `data` (any buffer), for callers without a pipe."""
        cdef Py_buffer view
        cdef Frame frame = Frame.__new__(Frame)
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            frame.slab = slab_new(HEADER + view.len)
            if frame.slab is NULL:
                raise MemoryError()
            frame.data = frame.slab.data + HEADER
            memcpy(<void *>frame.data, view.buf, view.len)
            frame.length = view.len
        finally:
            PyBuffer_Release(&view)
        return frame


cdef Frame frame_over(const void *data, Py_ssize_t length, void (*release)(void *) noexcept nogil,
                      void *context):
    """Return a frame over bytes of the caller, which must not change until release(context) is called. That happens
    once, in the thread that drops the last view of them. Without `release`, the frame has a copy."""
    cdef Frame frame = Frame.__new__(Frame)
    frame.slab = slab_new(HEADER if release is not NULL else HEADER + length)
    if frame.slab is NULL:
        raise MemoryError()
    frame.length = length
    if release is not NULL:
        slab_entrust(frame.slab, release, context)
        frame.data = <const unsigned char *>data
    else:
        frame.data = frame.slab.data + HEADER
        if length > SLAB:
            with nogil:
                memcpy(<void *>frame.data, data, length)
        else:
            memcpy(<void *>frame.data, data, length)
    return frame


cpdef bint is_multipart(Frame frame) except -1:
    """Return whether `frame` is a multipart frame: an envelope followed by buffers."""
    return frame.length > 0 and frame.data[0] == MULTIPART


def envelope_of(Frame frame not None):
    """Return the envelope of a multipart frame, as a frame. Raises InvalidFrame."""
    cdef Py_ssize_t start
    cdef uint64_t count, length
    if frame.length < PREFIX or frame.data[1] != VERSION or frame.data[2] or frame.data[3]:
        raise InvalidFrame("a multipart frame begins with C1 01 00 00, a count and a length")
    count = bridge_load_be32(frame.data + 4)
    length = bridge_load_be32(frame.data + 8)
    if count > <uint64_t>most_buffers:
        raise InvalidFrame(f"{count} buffers are more than {MOST_BUFFERS}")
    if PREFIX + ENTRY * count + length > <uint64_t>frame.length:
        raise InvalidFrame(f"{count} buffers and an envelope of {length} bytes are more than a"
                           f" frame of {frame.length} bytes")
    start = PREFIX + ENTRY * count
    return frame.part(start, length)


def envelope_beginning(Frame frame not None):
    """Return the bytes of the envelope that `frame`, the beginning of a payload, contains; `frame` itself if it is not
    the beginning of a multipart frame."""
    cdef uint64_t start
    if not is_multipart(frame) or frame.length < PREFIX:
        return frame
    start = min(PREFIX + ENTRY * <uint64_t>bridge_load_be32(frame.data + 4), <uint64_t>frame.length)
    return frame.part(start, frame.length - start)


def buffers_of(Frame frame not None):
    """Return the buffers of a multipart frame, as a tuple of frames. Raises InvalidFrame."""
    cdef Frame envelope = envelope_of(frame)
    cdef Py_ssize_t end = envelope.data - frame.data + envelope.length
    cdef uint64_t start, length
    cdef Py_ssize_t index, count = bridge_load_be32(frame.data + 4)
    cdef list buffers = []
    for index in range(count):
        start = aligned(end)
        length = bridge_load_be32(frame.data + PREFIX + ENTRY * index)
        if start + length > <uint64_t>frame.length:
            raise InvalidFrame(f"buffer {index} of {length} bytes ends after its frame")
        buffers.append(frame.part(start, length))
        end = start + length
    if end != frame.length:
        raise InvalidFrame(f"{frame.length - end} bytes after the last buffer")
    return tuple(buffers)


cdef object raw(object buffer):
    """Return a view of a buffer, which cannot change its size as long as the view exists; a view of a copy if its bytes
    are not contiguous."""
    view = memoryview(buffer)
    return view if view.c_contiguous else memoryview(view.tobytes())


cdef inline Py_ssize_t aligned(Py_ssize_t offset) noexcept nogil:
    return (offset + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
