# Part of _etf.pyx: bytes to values of a type. Handles what msgspec.convert could no longer recognize in
# decoded values: raw parts and bytes. Creates the structs of messages directly, which is faster.

cdef enum:  # how a part of a message is read for its type
    AS_RAW      # its bytes
    AS_BYTES    # binaries in it are bytes
    AS_LIST     # each item by `item`
    AS_MAP      # each value by `item`
    AS_STRUCT   # each value by `fields`


@cython.final
cdef class Plan:
    """Represents how values of a type are read."""

    cdef int kind
    cdef Plan item
    cdef dict fields


cdef Plan plan_of(object info, dict seen):
    """Return how values of a type are read, from `type_walk`'s description of it; None: as without a type.

    seen: the plans of structs, so that a struct that holds itself ends the recursion.
    """
    cdef Plan plan, item
    cdef list infos = [one for one in alternatives(info) if not isinstance(one, inspect.NoneType)]
    if len(infos) != 1:
        return None
    info = infos[0]
    if isinstance(info, inspect.RawType):
        return plan_as(AS_RAW)
    if isinstance(info, (inspect.BytesType, inspect.ByteArrayType, inspect.MemoryViewType)):
        return plan_as(AS_BYTES)
    if isinstance(info, inspect.StructType):
        if info.cls not in seen:
            plan = seen[info.cls] = plan_as(AS_STRUCT)
            fields = () if info.array_like else info.fields
            plan.fields = {field.encode_name: plan_of(field.type, seen) for field in fields}
        return seen[info.cls]
    if isinstance(info, inspect.DictType):
        kind, item = AS_MAP, plan_of(info.value_type, seen)
    elif hasattr(info, "item_type"):
        kind, item = AS_LIST, plan_of(info.item_type, seen)
    else:
        return None
    if item is None:
        return None
    plan = plan_as(kind)
    plan.item = item
    return plan


cdef Plan plan_as(int kind):
    cdef Plan plan = Plan.__new__(Plan)
    plan.kind = kind
    return plan


cdef enum:  # of which kinds the value of a field may be
    INTEGERS = 1
    TEXTS = 2
    BOOLEANS = 4
    FLOATS = 8
    NOTHING = 16
    RAWS = 32
    MAPS = 64         # with keys that are text and any values
    ANYTHING = 128
    FIELDS = 32       # that a record may have

cdef dict KINDS = {
    int: INTEGERS, str: TEXTS, bool: BOOLEANS, float: FLOATS, types.NoneType: NOTHING, Raw: RAWS,
    dict[str, typing.Any]: MAPS, typing.Any: ANYTHING,
}


@cython.final
cdef class Record:
    """Represents a struct type with simple fields, which is created directly instead of by msgspec.convert."""

    cdef object type
    cdef dict indexes     # name on the wire -> index
    cdef Py_ssize_t count
    cdef bint forbids_unknown
    cdef int kinds[FIELDS]
    cdef list defaults    # NODEFAULT: required
    cdef list factories   # None: the default is the value


cdef Record record_of(wanted):
    """Return the Record of a type, or None if only msgspec.convert can create its values."""
    cdef Record record = Record.__new__(Record)
    if not isinstance(wanted, msgspec.StructMeta) or hasattr(wanted, "__post_init__"):
        return None
    config = wanted.__struct_config__
    if config.array_like or config.tag is not None:
        return None
    fields = msgspec.structs.fields(wanted)
    if wanted.__match_args__ != wanted.__struct_fields__:  # some are keyword-only
        return None
    if len(fields) > FIELDS:
        return None
    record.type = wanted
    record.indexes = {field.encode_name: index for index, field in enumerate(fields)}
    record.count = len(fields)
    record.forbids_unknown = config.forbid_unknown_fields
    for index, field in enumerate(fields):
        record.kinds[<int>index] = kinds_of(field.type)
        if record.kinds[<int>index] == 0:
            return None
    record.defaults = [field.default for field in fields]
    record.factories = [None if field.default_factory is NODEFAULT
                        else field.default_factory for field in fields]
    return record


cdef object kinds_of(wanted):
    """Return the kinds of values of a field, or 0 if a record cannot have it."""
    origin = typing.get_origin(wanted)
    if origin is not typing.Union and origin is not types.UnionType:
        return KINDS.get(wanted, 0)
    kinds = [KINDS.get(one, 0) for one in typing.get_args(wanted) if one is not UnsetType]
    return sum(kinds) if all(kinds) and RAWS not in kinds else 0


cdef object recorded(Cursor *cursor, Record record):
    """Return the next term as the struct; None if it does not match exactly."""
    cdef PyObject *values[FIELDS]
    cdef Py_ssize_t index
    for index in range(record.count):
        values[index] = NULL
    try:
        if not read_fields(cursor, record, values) or not fill_in(record, values):
            return None
        return PyObject_Vectorcall(record.type, values, record.count, NULL)
    finally:
        for index in range(record.count):
            Py_XDECREF(values[index])


cdef bint read_fields(Cursor *cursor, Record record, PyObject **values) except -1:
    """Return whether the next term is a map whose values match; `values` then holds a reference to each."""
    cdef uint32_t size, pair
    cdef const uint8_t *begin
    cdef PyObject *found
    cdef Py_ssize_t index
    if cursor.end - cursor.at < 5 or cursor.at[0] != MAP:
        return False
    cursor.at += 1
    size = take_32(cursor)
    descend(cursor, 2 * <uint64_t>size)
    for pair in range(size):
        cursor.owed -= 2
        name = key(cursor)
        if type(name) is not str:
            return False
        found = PyDict_GetItemWithError(record.indexes, name)
        if found is NULL:
            if record.forbids_unknown:
                return False
            skip(cursor, 1)
            continue
        index = <object>found
        begin = cursor.at
        if record.kinds[index] == RAWS:
            skip(cursor, 1)
            value = raw(cursor, begin)
        else:
            value = term(cursor)
            if record.kinds[index] & (FLOATS | INTEGERS) == FLOATS and type(value) is int:
                value = as_float(value)
            if not fits(value, record.kinds[index]):
                return False
        if values[index] is not NULL:
            return False
        Py_INCREF(value)
        values[index] = <PyObject *>value
    cursor.levels += 1
    return True


cdef bint fill_in(Record record, PyObject **values) except -1:
    """Fill in defaults for missing fields; return False if a required field is missing."""
    cdef Py_ssize_t index
    for index in range(record.count):
        if values[index] is NULL:
            factory = record.factories[index]
            value = record.defaults[index] if factory is None else factory()
            if value is NODEFAULT:
                return False
            Py_INCREF(value)
            values[index] = <PyObject *>value
    return True


cdef object as_float(object value):
    try:
        return float(value)
    except OverflowError:
        return value  # which does not fit


cdef bint fits(object value, int kinds):
    if kinds & ANYTHING:
        return True
    kind = type(value)
    if kind is str:
        return kinds & TEXTS
    if kind is int:
        return kinds & INTEGERS
    if kind is float:
        return kinds & FLOATS
    if kind is bool:
        return kinds & BOOLEANS
    if value is None:
        return kinds & NOTHING
    if kind is dict and kinds & MAPS:
        for name in <dict>value:
            if type(name) is not str:
                return False
        return True
    return False


cdef object planned(Cursor *cursor, Plan plan):
    """Return the next term, read by `plan` if it has the right shape."""
    cdef const uint8_t *begin = cursor.at
    if plan is None:
        return term(cursor)
    need(cursor, 1)
    cdef int tag = begin[0]
    if plan.kind == AS_RAW:
        skip(cursor, 1)
        return raw(cursor, begin)
    if plan.kind == AS_BYTES and tag == BINARY:
        cursor.at += 1
        size = take_32(cursor)
        return take(cursor, size)[:size]
    if tag == MAP and (plan.kind == AS_MAP or plan.kind == AS_STRUCT):
        return planned_mapping(cursor, plan)
    if tag == LIST and plan.kind == AS_LIST:
        return planned_sequence(cursor, plan.item)
    return term(cursor)


cdef object raw(Cursor *cursor, const uint8_t *begin):
    """Return the bytes of the term from `begin` to here; nil in its shortest form, so that it can be compared."""
    cdef Py_ssize_t size = cursor.at - begin
    if 5 <= size <= 6 and memcmp(cursor.at - 3, b"nil", 3) == 0:
        if begin[0] in (SMALL_ATOM_UTF8, SMALL_ATOM_LATIN1, ATOM_UTF8, ATOM_LATIN1):
            return Raw(b"w\x03nil")
    if size <= COPIED or cursor.input is NULL:
        return Raw(PyBytes_FromStringAndSize(<const char *>begin, size))
    return Raw(view(cursor, begin, size))


cdef object planned_mapping(Cursor *cursor, Plan plan):
    cdef const uint8_t *begin = cursor.at
    cdef uint32_t size, index
    cdef Plan item = plan.item
    cdef dict found = {}, hashes
    cursor.at += 1
    size = take_32(cursor)
    hashes = {} if size > SAME_HASHES else None
    descend(cursor, 2 * <uint64_t>size)
    for index in range(size):
        cursor.owed -= 2
        name = key(cursor)
        if hashes is not None and type(name) is not str:
            check_hash(cursor, hashes, name)
        if plan.kind == AS_STRUCT:
            item = plan.fields.get(name) if type(name) is str else None
        if dict_set(found, name, planned(cursor, item)) < 0:
            PyErr_Clear()
            return unheld(cursor, begin, size - index - 1)
    cursor.levels += 1
    return found if <uint32_t>len(found) == size else opaque(cursor, begin, 0)


cdef object planned_sequence(Cursor *cursor, Plan item):
    cdef const uint8_t *begin = cursor.at
    cdef uint32_t size, index
    cdef list found = []
    cursor.at += 1
    size = take_32(cursor)
    descend(cursor, <uint64_t>size + 1)
    for index in range(size):
        cursor.owed -= 1
        found.append(planned(cursor, item))
    return ended(cursor, begin, found)


def find_id(message):
    """Return the value of the outermost key "id" of a message that may be broken or cut off if it is an
    integer or text, otherwise None."""
    cdef Cursor cursor
    cdef bytes data = bytes(message)
    cdef uint64_t pairs
    try:
        if data[1:2] == b"P":
            import zlib
            data = zlib.decompressobj().decompress(data[6:], PEEKED)
        else:
            data = data[1:]
        start(&cursor, <const uint8_t *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        cursor.plain = True
        if take(&cursor, 1)[0] != MAP:
            return None
        pairs = take_32(&cursor)
        while pairs:
            if is_id(&cursor):
                found = term(&cursor)
                return found if type(found) in (int, str) else None
            skip(&cursor, 1)
            pairs -= 1
    except Exception:  # broken bytes may raise anything
        return None


cdef bint is_id(Cursor *cursor) except -1:
    """Return whether the next term, a key, is "id" as text or as an atom; moves past it."""
    cdef const uint8_t *begin = cursor.at
    skip(cursor, 1)
    if cursor.at - begin > 7 or begin[0] not in (BINARY, SMALL_ATOM_UTF8, SMALL_ATOM_LATIN1,
                                                 ATOM_UTF8, ATOM_LATIN1):
        return False
    cursor.at = begin
    return term(cursor) == "id"


cdef dict MODES = {"str": TEXT, "replace": REPLACE, "bytes": BYTES, "view": VIEW}


@cython.final
cdef class Decoder:
    """Decodes messages as values of `type`.

    binaries: what binaries become: "str" (but bytes if they are not UTF-8), "replace" (str with U+FFFD for
    bytes that are not UTF-8), "bytes", or "view" (memoryviews of the input, which they keep alive; keys as
    with "str").

    With a type other than Any, atoms become plain str, so that they are accepted as text.
    """

    cdef readonly object type
    cdef int binaries
    cdef bint typed
    cdef Plan plan
    cdef Record record
    cdef bint is_planned

    def __init__(self, type=typing.Any, *, str binaries="str"):
        if binaries not in MODES:
            raise ValueError(f"binaries must be one of {', '.join(MODES)}, not {binaries!r}")
        self.type = type
        self.binaries = MODES[binaries]
        self.typed = type is not typing.Any

    def decode(self, data):
        """Return the term in `data` (a buffer; the version byte may be missing).

        Raises msgspec.DecodeError, msgspec.ValidationError if it does not match the type,
        RecursionError.
        """
        cdef Py_buffer buffer
        cdef Cursor cursor
        cdef const uint8_t *begin
        cdef object whole = None
        if self.typed and not self.is_planned:
            self.plan = plan_of(type_of(self.type), {})
            self.record = record_of(self.type)
            self.is_planned = True
        PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
        try:
            start(&cursor, <const uint8_t *>buffer.buf, buffer.len)
            if buffer.len and cursor.at[0] == VERSION:
                cursor.at += 1
            need(&cursor, 1)
            if cursor.at[0] == COMPRESSED:
                return self.decode(inflated(cursor.at + 1, cursor.end - cursor.at - 1))
            cursor.binaries = self.binaries
            cursor.plain = self.typed
            if self.binaries == VIEW or buffer.len > COPIED:
                whole = PyMemoryView_FromObject(data)
                cursor.input = <PyObject *>whole
            if self.record is not None and self.binaries == TEXT:
                begin = cursor.at
                value = recorded(&cursor, self.record)
                if value is not None:
                    at_end(&cursor)
                    return value
                cursor.at = begin
                cursor.levels = DEPTH
                cursor.owed = 0
            value = planned(&cursor, self.plan)
            at_end(&cursor)
        finally:
            PyBuffer_Release(&buffer)
        return convert(value, self.type) if self.typed else value


def decode(data, *, type=typing.Any, binaries="str"):
    """Return the term in `data` as `type`, as a Decoder does."""
    return Decoder(type, binaries=binaries).decode(data)
