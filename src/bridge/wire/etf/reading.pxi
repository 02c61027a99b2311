# Part of _etf.pyx: bytes to values.

cdef enum:  # what binaries become
    TEXT      # str, or bytes where they are not UTF-8
    VIEW      # views of the input; keys are as in TEXT
    BYTES     # bytes
    REPLACE   # str, with U+FFFD for what is not UTF-8

cdef struct Cursor:
    const uint8_t *begin
    const uint8_t *at
    const uint8_t *end
    int levels            # of containers that may still be entered
    uint64_t owed         # terms that the entered containers have announced and that have not been read
    uint64_t copied       # bytes that have been copied into opaque terms
    int binaries
    bint plain            # atoms are plain str
    PyObject *input       # a memoryview of the whole, borrowed; NULL until one is needed


cdef inline void start(Cursor *cursor, const uint8_t *data, Py_ssize_t size) noexcept:
    cursor.begin = data
    cursor.at = data
    cursor.end = data + size
    cursor.levels = DEPTH
    cursor.owed = 0
    cursor.copied = 0
    cursor.binaries = TEXT
    cursor.plain = False
    cursor.input = NULL


cdef int truncated() except -1:
    raise DecodeError("Input data was truncated")


cdef int malformed(Cursor *cursor, what) except -1:
    raise DecodeError(f"ETF data is malformed: {what} (byte {cursor.at - cursor.begin})")


cdef int too_deep() except -1:
    raise RecursionError(f"terms are nested more than {DEPTH} levels deep")


cdef inline int need(Cursor *cursor, uint64_t size) except -1:
    if <uint64_t>(cursor.end - cursor.at) < size:
        truncated()
    return 0


cdef inline int descend(Cursor *cursor, uint64_t items) except -1:
    """Enter a container of `items` terms. Every announced term needs at least a byte of input, so all containers
    of a message together cannot take more memory than its length allows."""
    cursor.owed += items
    need(cursor, cursor.owed)
    cursor.levels -= 1
    if cursor.levels < 0:
        too_deep()
    return 0


cdef int at_end(Cursor *cursor) except -1:
    if cursor.at != cursor.end:
        malformed(cursor, "trailing characters")
    return 0


cdef inline uint32_t take_32(Cursor *cursor) except? 0:
    cdef uint32_t value
    need(cursor, 4)
    value = load_32(cursor.at)
    cursor.at += 4
    return value


cdef inline const uint8_t *take(Cursor *cursor, uint64_t size) except NULL:
    cdef const uint8_t *found = cursor.at
    need(cursor, size)
    cursor.at += size
    return found


cdef int skip(Cursor *cursor, uint64_t pending) except -1:
    """Move past `pending` terms without creating values. Does not recurse."""
    cdef uint64_t size
    cdef int tag
    while pending:
        need(cursor, pending)  # each of them is at least one byte
        pending -= 1
        tag = cursor.at[0]
        cursor.at += 1
        size = 0
        if tag == SMALL_INTEGER:
            size = 1
        elif tag == INTEGER:
            size = 4
        elif tag == NEW_FLOAT:
            size = 8
        elif tag == FLOAT:
            size = 31
        elif tag == NIL:
            pass
        elif tag == BINARY:
            size = take_32(cursor)
        elif tag == BIT_BINARY:
            size = <uint64_t>take_32(cursor) + 1
        elif tag == STRING or tag == ATOM_LATIN1 or tag == ATOM_UTF8:
            size = load_16(take(cursor, 2))
        elif tag == SMALL_ATOM_LATIN1 or tag == SMALL_ATOM_UTF8:
            size = take(cursor, 1)[0]
        elif tag == SMALL_BIG:
            size = <uint64_t>take(cursor, 1)[0] + 1
        elif tag == LARGE_BIG:
            size = <uint64_t>take_32(cursor) + 1
        elif tag == LIST:
            pending += <uint64_t>take_32(cursor) + 1
        elif tag == SMALL_TUPLE:
            pending += take(cursor, 1)[0]
        elif tag == LARGE_TUPLE:
            pending += take_32(cursor)
        elif tag == MAP:
            pending += 2 * <uint64_t>take_32(cursor)
        elif tag == NEW_FUN:
            size = take_32(cursor)  # counts itself
            if size < 4:
                malformed(cursor, "a fun shorter than its length")
            size -= 4
        elif tag == EXPORT:
            pending += 3
        elif tag == FUN:
            pending += <uint64_t>take_32(cursor) + 4
        elif tag in (NEW_PID, NEW_PORT, V4_PORT, PID, PORT, REFERENCE):
            skip_atom(cursor)
            size = 12 if tag == NEW_PID or tag == V4_PORT else 8
            if tag == PID:
                size = 9
            elif tag == PORT or tag == REFERENCE:
                size = 5
        elif tag == NEW_REFERENCE or tag == NEWER_REFERENCE:
            size = 4 * <uint64_t>load_16(take(cursor, 2)) + (1 if tag == NEW_REFERENCE else 4)
            skip_atom(cursor)
        else:
            cursor.at -= 1
            malformed(cursor, f"tag {tag} is not accepted")
        take(cursor, size)
    return 0


cdef int skip_atom(Cursor *cursor) except -1:
    """Move past the node name in a pid, a port or a reference."""
    cdef int tag = take(cursor, 1)[0]
    if tag == ATOM_LATIN1 or tag == ATOM_UTF8:
        take(cursor, load_16(take(cursor, 2)))
    elif tag == SMALL_ATOM_LATIN1 or tag == SMALL_ATOM_UTF8:
        take(cursor, take(cursor, 1)[0])
    else:
        malformed(cursor, "a node that is not an atom")
    return 0


cdef object opaque(Cursor *cursor, const uint8_t *begin, uint64_t pending):
    """Return the term that starts at `begin` and ends `pending` terms from here, as an Opaque."""
    cdef Opaque term = Opaque.__new__(Opaque)
    skip(cursor, pending)
    cursor.copied += cursor.at - begin
    if cursor.copied > OPAQUE_MAX + 4 * <uint64_t>(cursor.end - cursor.begin):
        malformed(cursor, "terms without Python values are too large")
    term.data = PyBytes_FromStringAndSize(<const char *>begin, cursor.at - begin)
    return term


cdef object term(Cursor *cursor):
    """Return the next term as a value."""
    cdef const uint8_t *begin = cursor.at
    cdef uint32_t size
    need(cursor, 1)
    cdef int tag = begin[0]
    cursor.at += 1
    if tag == BINARY:
        size = take_32(cursor)
        return binary(cursor, take(cursor, size), size)
    elif tag == SMALL_INTEGER:
        return PyLong_FromLong(take(cursor, 1)[0])
    elif tag == INTEGER:
        return PyLong_FromLong(<int32_t>take_32(cursor))
    elif tag == NEW_FLOAT:
        return finite(cursor, load_double(take(cursor, 8)))
    elif tag == SMALL_ATOM_UTF8 or tag == SMALL_ATOM_LATIN1:
        size = take(cursor, 1)[0]
        return atom(cursor, tag, take(cursor, size), size)
    elif tag == MAP:
        return mapping(cursor)
    elif tag == NIL:
        return []
    elif tag == LIST:
        return sequence(cursor)
    elif tag == STRING:
        size = load_16(take(cursor, 2))
        return list(take(cursor, size)[:size])
    elif tag == SMALL_TUPLE:
        return fixed(cursor, take(cursor, 1)[0])
    elif tag == LARGE_TUPLE:
        return fixed(cursor, take_32(cursor))
    elif tag == SMALL_BIG:
        return big(cursor, take(cursor, 1)[0])
    elif tag == LARGE_BIG:
        return big(cursor, take_32(cursor))
    elif tag == ATOM_UTF8 or tag == ATOM_LATIN1:
        size = load_16(take(cursor, 2))
        return atom(cursor, tag, take(cursor, size), size)
    elif tag == FLOAT:
        return old_float(cursor)
    cursor.at = begin
    return opaque(cursor, begin, 1)


cdef inline object finite(Cursor *cursor, double value):
    if not isfinite(value):
        malformed(cursor, "a float that is not finite")
    return PyFloat_FromDouble(value)


cdef object old_float(Cursor *cursor):
    """Return a float written as 31 bytes of text, padded with zeros."""
    cdef bytes text = take(cursor, 31)[:31].rstrip(b"\0")
    cdef double value = NAN
    if not text.strip(b"0123456789.eE+-"):  # float() accepts more than Erlang writes
        try:
            value = float(text)
        except ValueError:
            pass
    return finite(cursor, value)


cdef object big(Cursor *cursor, uint32_t size):
    cdef bint negative = take(cursor, 1)[0] != 0
    cdef uint64_t magnitude
    if size <= 8:
        magnitude = load_little(take(cursor, size), size)
        if magnitude >> 63 == 0:
            return PyLong_FromLongLong(-<int64_t>magnitude if negative else <int64_t>magnitude)
        value = PyLong_FromUnsignedLongLong(magnitude)
        return -value if negative else value
    value = int.from_bytes(take(cursor, size)[:size], "little")
    return -value if negative else value


cdef object binary(Cursor *cursor, const uint8_t *data, uint32_t size):
    if cursor.binaries == TEXT:
        return text(data, size)
    if cursor.binaries == BYTES:
        return data[:size]
    if cursor.binaries == REPLACE:
        return PyUnicode_DecodeUTF8(<const char *>data, size, "replace")
    return view(cursor, data, size)


cdef object text(const uint8_t *data, uint32_t size):
    """Return str, or bytes if it is not UTF-8."""
    try:
        return PyUnicode_DecodeUTF8(<const char *>data, size, NULL)
    except UnicodeDecodeError:
        return data[:size]


cdef object view(Cursor *cursor, const uint8_t *data, Py_ssize_t size):
    cdef Py_ssize_t offset = data - cursor.begin
    return (<object>cursor.input)[offset:offset + size]


# Texts that were read before, so that a repeated one is not created again. Each slot holds a reference.
cdef PyObject *known_texts[SLOTS]
cdef PyObject *known_atoms[SLOTS]


cdef object known(PyObject **cache, const uint8_t *data, uint32_t size):
    """Return the text of at most CACHED bytes from `cache`, adding it if it is missing; bytes if not UTF-8."""
    cdef PyObject **slot = cache + slot_of(data, size)
    cdef PyObject *found = slot[0]
    if found is not NULL and PyUnicode_GET_LENGTH(found) == size:
        if memcmp(PyUnicode_DATA(found), data, size) == 0:
            return <object>found
    made = text(data, size)
    if cache == &known_atoms[0] and type(made) is str:
        made = Atom(made)
    if isinstance(made, str) and made.isascii():  # only then are its characters its bytes
        PyObject_Hash(made)
        Py_INCREF(made)
        found = slot[0]  # read again: creating an object may run other code, which may decode
        slot[0] = <PyObject *>made
        if found is not NULL:
            drop(found)
    return made


cdef object atom(Cursor *cursor, int tag, const uint8_t *data, uint32_t size):
    if size <= 5:
        if size == 3 and memcmp(data, b"nil", 3) == 0:
            return None
        if size == 4 and memcmp(data, b"true", 4) == 0:
            return True
        if size == 5 and memcmp(data, b"false", 5) == 0:
            return False
    if tag == SMALL_ATOM_LATIN1 or tag == ATOM_LATIN1:
        name = PyUnicode_DecodeLatin1(<const char *>data, size, NULL)
        return name if cursor.plain else Atom(name)
    if size <= CACHED:
        name = known(&known_texts[0] if cursor.plain else &known_atoms[0], data, size)
    else:
        name = text(data, size)
        if not cursor.plain and type(name) is str:
            name = Atom(name)
    if type(name) is bytes:
        malformed(cursor, "an atom that is not UTF-8")
    return name


cdef inline object key(Cursor *cursor):
    """Return the next term as a key."""
    cdef const uint8_t *begin = cursor.at
    cdef uint32_t size
    if cursor.binaries > VIEW or cursor.end - begin < 5 or begin[0] != BINARY:
        return term(cursor)
    cursor.at += 1
    size = take_32(cursor)
    take(cursor, size)
    return known(&known_texts[0], begin + 5, size) if size <= CACHED else text(begin + 5, size)


cdef int check_hash(Cursor *cursor, dict hashes, object name) except -1:
    """Count the hash of a key. Hashes of integers and tuples can be predicted, and a map whose keys share
    one hash would take a time that grows with the square of its size."""
    cdef int64_t number
    cdef int count
    kind = type(name)
    if kind is not tuple and (kind is not int or one_digit(<PyObject *>name, &number)):
        return 0
    try:
        value = hash(name)
    except TypeError:
        return 0
    count = hashes.get(value, 0) + 1
    if count > SAME_HASHES:
        malformed(cursor, "too many keys of a map with the same hash")
    hashes[value] = count
    return 0


cdef object mapping(Cursor *cursor):
    """Return a map; an Opaque if its keys are not hashable, or equal in Python."""
    cdef const uint8_t *begin = cursor.at - 1
    cdef uint32_t size = take_32(cursor), index
    cdef dict found, hashes = {} if size > SAME_HASHES else None
    descend(cursor, 2 * <uint64_t>size)
    found = new_dict(min(size, <uint32_t>PRESIZED))
    for index in range(size):
        cursor.owed -= 2
        name = key(cursor)
        if hashes is not None and type(name) is not str:
            check_hash(cursor, hashes, name)
        if dict_set(found, name, term(cursor)) < 0:
            PyErr_Clear()
            return unheld(cursor, begin, size - index - 1)
    cursor.levels += 1
    return found if <uint32_t>len(found) == size else opaque(cursor, begin, 0)


cdef object unheld(Cursor *cursor, const uint8_t *begin, uint64_t pairs):
    """Return a map with a key that is not hashable as an Opaque; `pairs` are left to read."""
    cursor.levels += 1
    cursor.owed -= 2 * pairs
    return opaque(cursor, begin, 2 * pairs)


cdef object sequence(Cursor *cursor):
    """Return a list; an Opaque if it is improper."""
    cdef const uint8_t *begin = cursor.at - 1
    cdef uint32_t size = take_32(cursor), index
    cdef list found
    descend(cursor, <uint64_t>size + 1)
    found = PyList_New(size)
    for index in range(size):
        cursor.owed -= 1
        item = term(cursor)
        Py_INCREF(item)
        PyList_SET_ITEM(found, index, item)
    return ended(cursor, begin, found)


cdef object ended(Cursor *cursor, const uint8_t *begin, list found):
    """Return `found` after its last item, if the tail that follows is nil; otherwise an Opaque."""
    cursor.levels += 1
    cursor.owed -= 1
    need(cursor, 1)
    if cursor.at[0] != NIL:
        return opaque(cursor, begin, 1)
    cursor.at += 1
    return found


cdef object fixed(Cursor *cursor, uint32_t size):
    """Return a tuple."""
    cdef uint32_t index
    cdef tuple found
    cdef bint is_tensor = size == 4 and names_a_tensor(cursor)
    descend(cursor, size)
    found = PyTuple_New(size)
    for index in range(size):
        cursor.owed -= 1
        item = numbers(cursor) if is_tensor and index == 3 else term(cursor)
        Py_INCREF(item)
        PyTuple_SET_ITEM(found, index, item)
    cursor.levels += 1
    return found


cdef bint names_a_tensor(Cursor *cursor) noexcept:
    """Return whether the atom `tensor` is next, in any encoding."""
    cdef Py_ssize_t size = cursor.end - cursor.at
    if size >= 8 and (cursor.at[0] == SMALL_ATOM_UTF8 or cursor.at[0] == SMALL_ATOM_LATIN1):
        return memcmp(cursor.at + 1, b"\x06tensor", 7) == 0
    return size >= 9 and cursor.at[0] == ATOM_LATIN1 and memcmp(cursor.at + 1, b"\0\x06tensor",
                                                                8) == 0


cdef object numbers(Cursor *cursor):
    """Return the data of a tensor: bytes, even if they are valid UTF-8."""
    cdef const uint8_t *begin = cursor.at
    cdef uint32_t size
    if cursor.end - begin < 5 or begin[0] != BINARY:
        return term(cursor)
    cursor.at += 1
    size = take_32(cursor)
    take(cursor, size)
    return begin[5:5 + size] if cursor.input is NULL else view(cursor, begin + 5, size)


cdef object inflated(const uint8_t *data, Py_ssize_t size, uint64_t limit=UNCOMPRESSED_MAX):
    """Return what a compressed term holds; `data` is what follows its tag."""
    import zlib

    cdef uint64_t announced
    if size < 4:
        truncated()
    announced = load_32(data)
    if announced > limit:
        raise DecodeError(f"a compressed term of {announced} bytes, more than {limit}")
    stream = zlib.decompressobj()
    try:
        # One byte more, to notice a longer one.
        found = stream.decompress(data[4:size], announced + 1)
    except zlib.error as error:
        raise DecodeError(f"a compressed term does not inflate: {error}") from None
    if <uint64_t>len(found) != announced or not stream.eof or stream.unused_data:
        raise DecodeError("a compressed term does not have its announced length")
    if found[:1] in (b"\x83", b"P"):
        raise DecodeError("a compressed term in a compressed term")
    return found


def inflate(message, uint64_t limit):
    """Return the message that a compressed one holds. Raises DecodeError."""
    cdef bytes data = bytes(message)
    return b"\x83" + inflated(<const uint8_t *>PyBytes_AS_STRING(data) + 2,
                              PyBytes_GET_SIZE(data) - 2, limit)
