# Part of _etf.pyx: values to bytes.

cdef struct Sink:
    PyObject *buffer      # the bytearray that is written to, borrowed
    char *at
    char *end
    int levels            # of containers that may still be entered


cdef int resize(Sink *sink, Py_ssize_t size) except -1:
    """Make the buffer `size` bytes long; it may move."""
    cdef Py_ssize_t used = sink.at - PyByteArray_AS_STRING(sink.buffer)
    PyByteArray_Resize(sink.buffer, size)
    sink.at = PyByteArray_AS_STRING(sink.buffer) + used
    sink.end = PyByteArray_AS_STRING(sink.buffer) + size
    return 0


cdef int cut(Sink *sink) noexcept:
    """End the buffer after what was written. Its memory stays, for the next message."""
    Py_SET_SIZE(sink.buffer, sink.at - PyByteArray_AS_STRING(sink.buffer))
    sink.at[0] = 0
    return 0


cdef int grow(Sink *sink, Py_ssize_t size) except -1:
    """Make room for `size` more bytes, and for half as much again as the buffer then needs: so growing is
    amortized."""
    cdef Py_ssize_t needed = sink.at - PyByteArray_AS_STRING(sink.buffer) + size
    return resize(sink, needed + needed // 2)


cdef inline int reserve(Sink *sink, Py_ssize_t size) except -1:
    return grow(sink, size) if sink.end - sink.at < size else 0


cdef int open_at(Sink *sink, object buffer, Py_ssize_t offset) except -1:
    cdef Py_ssize_t size = PyByteArray_GET_SIZE(buffer)
    if offset < 0:
        raise ValueError("offset must be >= -1")
    sink.buffer = <PyObject *>buffer
    sink.levels = DEPTH
    sink.at = PyByteArray_AS_STRING(sink.buffer)
    if offset > size:
        resize(sink, offset)
        memset(sink.at + size, 0, offset - size)
    sink.at = PyByteArray_AS_STRING(sink.buffer) + offset
    sink.end = PyByteArray_AS_STRING(sink.buffer) + max(size, offset)
    return 0


cdef inline int enter(Sink *sink) except -1:
    sink.levels -= 1
    if sink.levels < 0:
        too_deep()
    return 0


cdef inline int leave(Sink *sink) noexcept:
    sink.levels += 1
    return 0


cdef inline int put_head(Sink *sink, int tag, uint64_t size) except -1:
    """Write a tag and a count of 32 bits."""
    if size > 0xFFFFFFFF:
        raise OverflowError("ETF cannot carry more than 4294967295 items or bytes")
    reserve(sink, 5)
    sink.at[0] = <char>tag
    store_32(sink.at + 1, <uint32_t>size)
    sink.at += 5
    return 0


cdef inline int put_bytes(Sink *sink, const void *data, Py_ssize_t size) except -1:
    reserve(sink, size)
    memcpy(sink.at, data, size)
    sink.at += size
    return 0


cdef inline int put_binary(Sink *sink, const void *data, Py_ssize_t size) except -1:
    if size > 0xFFFFFFFF:
        raise OverflowError("ETF cannot carry more than 4294967295 items or bytes")
    reserve(sink, 5 + size)
    sink.at[0] = BINARY
    store_32(sink.at + 1, <uint32_t>size)
    memcpy(sink.at + 5, data, size)
    sink.at += 5 + size
    return 0


cdef inline int put_text(Sink *sink, PyObject *value) except -1:
    cdef Py_ssize_t size
    cdef const char *data
    if PyUnicode_IS_COMPACT_ASCII(value):
        return put_binary(sink, PyUnicode_DATA(value), PyUnicode_GET_LENGTH(value))
    data = PyUnicode_AsUTF8AndSize(<object>value, &size)
    return put_binary(sink, data, size)


cdef int put_atom(Sink *sink, object name) except -1:
    cdef Py_ssize_t size
    cdef const char *data = PyUnicode_AsUTF8AndSize(name, &size)
    if size > 0xFFFF:
        raise OverflowError("an atom has at most 65535 bytes")
    reserve(sink, 3)
    if size <= 255:
        sink.at[0] = SMALL_ATOM_UTF8
        sink.at[1] = <char>size
        sink.at += 2
    else:
        sink.at[0] = ATOM_UTF8
        sink.at[1] = <char>(size >> 8)
        sink.at[2] = <char>size
        sink.at += 3
    return put_bytes(sink, data, size)


cdef inline int put_int(Sink *sink, PyObject *value) except -1:
    cdef int overflow = 0
    cdef int64_t number
    cdef uint64_t magnitude
    cdef int size
    reserve(sink, 11)
    if not one_digit(value, &number):
        number = PyLong_AsLongLongAndOverflow(<object>value, &overflow)
        if overflow:
            return put_big(sink, <object>value)
    if 0 <= number <= 255:
        sink.at[0] = SMALL_INTEGER
        sink.at[1] = <char>number
        sink.at += 2
    elif -0x80000000 <= number <= 0x7FFFFFFF:
        sink.at[0] = INTEGER
        store_32(sink.at + 1, <uint32_t>number)
        sink.at += 5
    else:
        magnitude = <uint64_t>number if number > 0 else -<uint64_t>number
        size = store_little(sink.at + 3, magnitude)
        sink.at[0] = SMALL_BIG
        sink.at[1] = <char>size
        sink.at[2] = number < 0
        sink.at += 3 + size
    return 0


cdef int put_big(Sink *sink, object value) except -1:
    cdef Py_ssize_t size = (value.bit_length() + 7) // 8
    cdef bytes digits = abs(value).to_bytes(size, "little")
    if size <= 255:
        reserve(sink, 3)
        sink.at[0] = SMALL_BIG
        sink.at[1] = <char>size
        sink.at += 2
    else:
        put_head(sink, LARGE_BIG, size)
        reserve(sink, 1)
    sink.at[0] = value < 0
    sink.at += 1
    return put_bytes(sink, PyBytes_AS_STRING(digits), size)


cdef inline int put_float(Sink *sink, double value) except -1:
    if not isfinite(value):
        raise ValueError(f"{value} is not a number that ETF can carry")
    reserve(sink, 9)
    sink.at[0] = NEW_FLOAT
    store_double(sink.at + 1, value)
    sink.at += 9
    return 0


cdef int put_buffer(Sink *sink, object value) except -1:
    cdef Py_buffer buffer
    PyObject_GetBuffer(value, &buffer, PyBUF_SIMPLE)
    try:
        put_binary(sink, buffer.buf, buffer.len)
    finally:
        PyBuffer_Release(&buffer)
    return 0


cdef int put_raw(Sink *sink, object value) except -1:
    """Write a term that is encoded already, with or without its version byte."""
    cdef Py_buffer buffer
    cdef const uint8_t *data
    cdef Py_ssize_t size
    cdef bytes whole
    PyObject_GetBuffer(value, &buffer, PyBUF_SIMPLE)
    try:
        data = <const uint8_t *>buffer.buf
        size = buffer.len
        if size and data[0] == VERSION:
            data += 1
            size -= 1
        if size == 0:
            raise ValueError("an empty Raw is not a term")
        if data[0] == COMPRESSED:
            whole = inflated(data + 1, size - 1)
            data = <const uint8_t *>PyBytes_AS_STRING(whole)
            size = PyBytes_GET_SIZE(whole)
        put_bytes(sink, data, size)
    finally:
        PyBuffer_Release(&buffer)
    return 0


cdef int put_constant(Sink *sink, object value) except -1:
    if value is None:
        return put_bytes(sink, b"w\x03nil", 5)
    return put_bytes(sink, b"w\x04true", 6) if value else put_bytes(sink, b"w\x05false", 7)


cdef int put_tuple_head(Sink *sink, Py_ssize_t size) except -1:
    if size > 255:
        return put_head(sink, LARGE_TUPLE, size)
    reserve(sink, 2)
    sink.at[0] = SMALL_TUPLE
    sink.at[1] = <char>size
    sink.at += 2
    return 0


cdef int put_string(Sink *sink, list items) except -1:
    """Write a list for which `are_bytes` is true."""
    cdef bytes content = bytes(items)
    reserve(sink, 3)
    sink.at[0] = STRING
    sink.at[1] = <char>(PyBytes_GET_SIZE(content) >> 8)
    sink.at[2] = <char>PyBytes_GET_SIZE(content)
    sink.at += 3
    return put_bytes(sink, PyBytes_AS_STRING(content), PyBytes_GET_SIZE(content))


cdef bint are_bytes(list items) noexcept:
    """Return whether each item is an int from 0 to 255: the BEAM writes such a list as STRING_EXT."""
    cdef Py_ssize_t index
    cdef PyObject *item
    cdef int64_t number
    for index in range(PyList_GET_SIZE(items)):
        item = PyList_GET_ITEM(items, index)
        if Py_TYPE(item) != &PyLong_Type or not one_digit(item, &number) or number >> 8:
            return False
    return True


@cython.final
cdef class Shape:
    """Represents how a struct type is written. offsets: where its fields are. heads: the encoded key of each field."""

    cdef tuple offsets
    cdef tuple heads
    cdef tuple defaults   # None: all are written
    cdef tuple empties    # of each field the type whose empty value is the default as well, or None
    cdef object tag       # None: it has none
    cdef bytes tag_head
    cdef bint array_like

    def __init__(self, kind):
        config = kind.__struct_config__
        self.offsets = offsets_of(kind)
        self.heads = tuple(encode(name)[1:] for name in kind.__struct_encode_fields__)
        self.tag = config.tag
        self.tag_head = encode(config.tag_field)[1:]
        self.array_like = config.array_like
        if config.omit_defaults:
            required = len(self.offsets) - len(kind.__struct_defaults__)
            self.defaults = (NODEFAULT,) * required + kind.__struct_defaults__
            factories = [getattr(default, "factory", None) for default in self.defaults]
            self.empties = tuple(made if made in (list, dict, set) else None for made in factories)

    cdef list items(self, value):
        """Return the items of a struct that is written as a list."""
        items = [field_at(value, offset) for offset in self.offsets]
        return items if self.tag is None else [self.tag, *items]

    cdef bint omits(self, object value, Py_ssize_t index) except -1:
        """Return whether msgspec omits a field: it is unset, or its default, or empty like a mutable default."""
        return value is UNSET or self.defaults is not None and (
            value is self.defaults[index] or type(value) is self.empties[index] and not value)


cdef dict shapes = {}  # of struct types


cdef Shape shape_of(object value):
    """Return the shape of a struct; None for any other value."""
    cdef object shape = shapes.get(type(value))
    if shape is None and isinstance(value, Struct):
        if len(shapes) >= MOST_TYPES:
            shapes.clear()
        shape = shapes[type(value)] = Shape(type(value))
    return <Shape>shape


cdef object check_keys(dict items):
    """Raise ValueError for a key that is there both as text and as bytes: both are the same binary, and no
    node reads a map that has a key twice."""
    for key in items:
        if type(key) is bytes and key.decode("utf-8", "surrogateescape") in items:
            raise ValueError("a map with the same key as text and as bytes")


cdef tuple BUFFERS = (bytes, bytearray, memoryview)


@cython.final
cdef class Encoder:
    """Encodes values.

    atoms: names that an Atom may have to be written as an atom; any other is written as a binary, so
    that the peer can decode with `:safe`. enc_hook(value): returns what to encode for a value of an
    unknown type, or raises TypeError.
    """

    cdef readonly frozenset atoms
    cdef readonly object enc_hook
    cdef bytearray scratch  # None while it is written to

    def __init__(self, atoms=(), enc_hook=None):
        self.atoms = frozenset(atoms)
        self.enc_hook = enc_hook

    def encode(self, value):
        """Return `value` as bytes, the version byte first.

        Raises TypeError for values that ETF cannot carry, ValueError for NaN and infinity,
        UnicodeEncodeError, RecursionError, OverflowError.
        """
        cdef Sink sink
        cdef bytearray scratch = self.scratch
        self.scratch = None  # encoding a value may run code that encodes another one
        if scratch is None:
            scratch = bytearray(SCRATCH_BYTES)
        open_at(&sink, scratch, 0)
        self.put_message(&sink, value)
        encoded = PyBytes_FromStringAndSize(PyByteArray_AS_STRING(<PyObject *>scratch),
                                            sink.at - PyByteArray_AS_STRING(<PyObject *>scratch))
        if PyByteArray_GET_SIZE(scratch) <= RETAINED_BYTES:
            self.scratch = scratch
        return encoded

    def encode_into(self, value, bytearray buffer not None, Py_ssize_t offset=0):
        """Write `value` into `buffer` from `offset` on (-1: at its end) and cut the buffer after it."""
        cdef Sink sink
        open_at(&sink, buffer, PyByteArray_GET_SIZE(buffer) if offset == -1 else offset)
        self.put_message(&sink, value)
        cut(&sink)

    cdef int put_message(self, Sink *sink, object value) except -1:
        reserve(sink, 1)
        sink.at[0] = <char>VERSION
        sink.at += 1
        return self.put(sink, value)

    cdef inline int put_item(self, Sink *sink, PyObject *item) except -1:
        """Write a borrowed item of a container."""
        cdef PyTypeObject *exact = Py_TYPE(item)
        if exact == &PyUnicode_Type:
            return put_text(sink, item)
        if exact == &PyLong_Type:
            return put_int(sink, item)
        if exact == &PyFloat_Type:
            return put_float(sink, PyFloat_AS_DOUBLE(item))
        held = <object>item  # encoding it may run code that removes it from the container
        return self.put(sink, held)

    cdef int put(self, Sink *sink, object value) except -1:
        cdef PyTypeObject *exact = Py_TYPE(<PyObject *>value)
        if exact == &PyUnicode_Type:
            return put_text(sink, <PyObject *>value)
        if exact == &PyLong_Type:
            return put_int(sink, <PyObject *>value)
        if exact == &PyFloat_Type:
            return put_float(sink, PyFloat_AS_DOUBLE(<PyObject *>value))
        if value is None or exact == &PyBool_Type:
            return put_constant(sink, value)
        if exact == &PyDict_Type:
            return self.put_dict(sink, value)
        if exact == &PyList_Type:
            return self.put_list(sink, value)
        if exact == &PyTuple_Type:
            return self.put_tuple(sink, value)
        if exact == &PyBytes_Type:
            return put_binary(sink, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
        shape = shape_of(value)
        if shape is not None:
            return self.put_struct(sink, value, shape)
        kind = type(value)
        if kind is Atom:
            return put_atom(sink, value) if value in self.atoms else put_text(sink, <PyObject *>value)
        if kind is Raw:
            return put_raw(sink, value)
        if kind is Opaque:
            return put_bytes(sink, PyBytes_AS_STRING((<Opaque>value).data),
                             PyBytes_GET_SIZE((<Opaque>value).data))
        if kind is bytearray or kind is memoryview:
            return put_buffer(sink, value)
        return self.put_other(sink, value)

    cdef int put_other(self, Sink *sink, object value) except -1:
        """Write a value of another type: a subclass of a known one, or what msgspec converts it to."""
        enter(sink)
        if isinstance(value, enum.Enum):
            plain = to_builtins(value)
        elif isinstance(value, dict):
            plain = dict(value)
        elif isinstance(value, tuple):
            plain = tuple(value)
        elif isinstance(value, (list, set, frozenset)):
            plain = list(value)
        else:
            plain = self.plain(value)
        self.put(sink, plain)
        return leave(sink)

    cdef object plain(self, object value):
        try:
            return to_builtins(value, builtin_types=BUFFERS)
        except TypeError:
            if self.enc_hook is None:
                raise
            return self.enc_hook(value)

    cdef int put_dict(self, Sink *sink, dict items) except -1:
        cdef Py_ssize_t size = PyDict_Size(items), position = 0, written = 0
        cdef PyObject *name
        cdef PyObject *value
        cdef bint has_bytes = False
        put_head(sink, MAP, size)
        enter(sink)
        while PyDict_Next(items, &position, &name, &value):
            held = <object>value  # encoding the key may run code that removes the value from the dict
            has_bytes = has_bytes or Py_TYPE(name) == &PyBytes_Type
            self.put_item(sink, name)
            self.put_item(sink, value)
            written += 1
        if written != size:
            raise RuntimeError("a dict has changed while it was encoded")
        if has_bytes:
            check_keys(items)
        return leave(sink)

    cdef int put_list(self, Sink *sink, list items) except -1:
        cdef Py_ssize_t size = PyList_GET_SIZE(items), index
        cdef PyObject *item
        if size and size <= STRING_MAX and are_bytes(items):
            return put_string(sink, items)
        if size:
            put_head(sink, LIST, size)
            enter(sink)
            for index in range(size):
                if index >= PyList_GET_SIZE(items):
                    raise RuntimeError("a list has changed while it was encoded")
                item = PyList_GET_ITEM(items, index)
                if Py_TYPE(item) == &PyLong_Type:  # a fast path for rows of numbers
                    put_int(sink, item)
                elif Py_TYPE(item) == &PyFloat_Type:
                    put_float(sink, PyFloat_AS_DOUBLE(item))
                else:
                    self.put_item(sink, item)
            leave(sink)
        reserve(sink, 1)
        sink.at[0] = NIL
        sink.at += 1
        return 0

    cdef int put_tuple(self, Sink *sink, tuple items) except -1:
        cdef Py_ssize_t size = PyTuple_GET_SIZE(items)
        put_tuple_head(sink, size)
        enter(sink)
        for item in items:
            self.put(sink, item)
        return leave(sink)

    cdef int put_struct(self, Sink *sink, object value, Shape shape) except -1:
        cdef Py_ssize_t index, head, size
        cdef bytes name
        if shape.array_like:
            return self.put_list(sink, shape.items(value))
        head = sink.at - PyByteArray_AS_STRING(sink.buffer)
        size = len(shape.offsets)
        put_head(sink, MAP, size)
        enter(sink)
        if shape.tag is not None:
            put_bytes(sink, PyBytes_AS_STRING(shape.tag_head), PyBytes_GET_SIZE(shape.tag_head))
            self.put(sink, shape.tag)
            size += 1
        for index in range(len(shape.offsets)):
            item = field_at(value, shape.offsets[index])
            if shape.omits(item, index):
                size -= 1
                continue
            name = shape.heads[index]
            put_bytes(sink, PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))
            self.put(sink, item)
        store_32(PyByteArray_AS_STRING(sink.buffer) + head + 1, <uint32_t>size)
        return leave(sink)


cdef Encoder encoder = Encoder()


def encode(value):
    """Return `value` as bytes, without atoms other than true, false and nil."""
    return encoder.encode(value)
