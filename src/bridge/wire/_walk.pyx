"""Walks over a whole value: survey what it holds, and substitute arrays and binaries for references.

Compiled, because every reply is walked. `tensors.py` decides what a reference means. No walk goes
deeper than `MAX_DEPTH` levels, whatever Python's own recursion limit is.
"""

from cpython.bytes cimport PyBytes_GET_SIZE
from libc.math cimport isfinite

from bridge.wire._fields cimport field_at, offsets_of

import enum

from msgspec import UNSET, Raw, Struct
from msgspec.structs import force_setattr, replace

from bridge._framing import MOST_BUFFERS
from bridge.wire._etf import MAX_DEPTH, Atom


cdef extern from "<Python.h>":
    ctypedef struct PyTypeObject:
        pass
    PyTypeObject *Py_TYPE(object value)
    PyTypeObject PyUnicode_Type, PyLong_Type, PyFloat_Type, PyBool_Type
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    double PyFloat_AS_DOUBLE(object value)


cdef int deepest = MAX_DEPTH

cdef enum:
    MOST_TYPES = 1000  # in `fields`: programs may make types

cdef dict fields = {}  # the offsets of the fields of struct types

# Flags that `survey` returns.
LONG_BINARY = 1  # a binary longer than `longest`
OTHER_TYPE = 2   # a value that only an encoder's hook knows, such as an array
RESERVED = 4     # a map or a tuple that looks like a reference
NON_FINITE = 8   # NaN or an infinity, which JSON and ETF cannot carry
TOO_LARGE = 16   # no format writes the value in `limit` bytes; the walk ends there

BUFFER, TENSOR = "$buffer", "$tensor"


class InvalidReference(ValueError):
    """Raised for a reference that names no buffer, and for an invalid tensor.

    path: the keys and indexes that lead to it, innermost first.
    """

    def __init__(self, message):
        super().__init__(message)
        self.path = []


class Placeholder:
    """Represents a tensor in a value that is still to be converted to a type. tensor: a tensors.Tensor."""

    __slots__ = ("tensor",)

    def __init__(self, tensor):
        self.tensor = tensor


Placeholder.__name__ = "tensor"  # msgspec names it in errors


cdef inline bint is_simple(object value, object kind):
    return (value is None or kind is str or kind is int or kind is float or kind is bool
            or kind is Raw)


cdef struct Survey:
    int found
    int levels        # of containers that may still be entered
    Py_ssize_t left   # bytes that it may still take
    Py_ssize_t longest


cpdef int survey(object value, Py_ssize_t limit=0x7FFFFFFFFFFFFFFF, int levels=0,
                 Py_ssize_t longest=0x7FFFFFFFFFFFFFFF) except -1:
    """Return what `value` holds, as a sum of flags. limit: bytes that a message may take. levels: how many
    containers hold `value`. longest: bytes of a binary that is not long.

    Raises RecursionError if it is nested more than MAX_DEPTH levels deep, BufferError for a
    memoryview whose bytes are not contiguous, ValueError for a released one and for an empty Raw.
    """
    cdef Survey result
    result.found = 0
    result.levels = deepest - levels
    result.left = limit
    result.longest = longest
    look(value, &result)
    if result.left < 0:
        result.found |= TOO_LARGE
    return result.found


cdef int too_deep() except -1:
    raise RecursionError(f"nested more than {MAX_DEPTH} levels deep")


cdef inline int look(object value, Survey *survey) except -1:
    """Survey one value. Numbers and texts come first: they are most of a large message."""
    cdef PyTypeObject *exact = Py_TYPE(value)
    survey.left -= 1
    if exact == &PyFloat_Type:
        if not isfinite(PyFloat_AS_DOUBLE(value)):
            survey.found |= NON_FINITE
    elif exact == &PyUnicode_Type:
        survey.left -= PyUnicode_GET_LENGTH(value)
    elif not (exact == &PyLong_Type or exact == &PyBool_Type or value is None or value is UNSET):
        return look_further(value, survey)
    return 0


cdef int look_further(object value, Survey *survey) except -1:
    kind = type(value)
    if kind is bytes:
        return look_at_binary(PyBytes_GET_SIZE(value), survey)
    if kind is Raw:
        if not value:
            raise ValueError("an empty Raw is not a value")
        return 0
    return look_inside(value, kind, survey)


cdef int look_at_binary(Py_ssize_t size, Survey *survey) except -1:
    survey.left -= size
    if size > survey.longest:
        survey.found |= LONG_BINARY
    return 0


cdef int look_inside(object value, object kind, Survey *survey) except -1:
    survey.levels -= 1
    if survey.levels < 0:
        too_deep()
    if kind is dict:
        look_at_map(value, survey)
    elif kind is list:
        for entry in <list>value:
            look(entry, survey)
            if survey.left < 0:
                break
    elif kind is tuple:
        if len(<tuple>value) == 4 and type(value[0]) in (str, Atom) and value[0] == "tensor":
            survey.found |= RESERVED
        for entry in <tuple>value:
            look(entry, survey)
            if survey.left < 0:
                break
    elif kind is bytearray or kind is memoryview:
        view = memoryview(value)
        if not view.c_contiguous:
            raise BufferError("a memoryview whose bytes are not contiguous; encode bytes(view)")
        look_at_binary(view.nbytes, survey)
    elif not look_at_struct(value, kind, survey):
        look_at_other(value, kind, survey)
    survey.levels += 1
    return 0


cdef int look_at_map(dict value, Survey *survey) except -1:
    if len(value) == 1 and (BUFFER in value or TENSOR in value):
        survey.found |= RESERVED
    for name, entry in value.items():
        look(name, survey)
        look(entry, survey)
        if survey.left < 0:
            break
    return 0


cdef bint look_at_struct(object value, object kind, Survey *survey) except -1:
    """Survey a struct. Return False for any other value."""
    cdef object offset, offsets = fields.get(kind)
    if offsets is None:
        if not isinstance(value, Struct):
            return False
        if len(fields) >= MOST_TYPES:
            fields.clear()
        offsets = fields[kind] = offsets_of(kind)
    for offset in <tuple>offsets:
        look(field_at(value, offset), survey)
    return True


cdef int look_at_other(object value, object kind, Survey *survey) except -1:
    """Survey a value of a type that encoders know by its base class, by its fields, or not at all."""
    survey.found |= OTHER_TYPE
    if isinstance(value, enum.Enum):
        look(value._value_, survey)
    elif isinstance(value, dict):
        for name, entry in dict.items(value):
            look(name, survey)
            look(entry, survey)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for entry in value:
            look(entry, survey)
            if survey.left < 0:
                break
    elif hasattr(kind, "__dataclass_fields__"):
        for name in kind.__dataclass_fields__:
            look(getattr(value, name, None), survey)
    elif hasattr(kind, "__attrs_attrs__"):
        for field in kind.__attrs_attrs__:
            look(getattr(value, field.name, None), survey)
    elif hasattr(kind, "nbytes"):
        # An array that repeats a few bytes may claim far more than there is memory.
        size = value.nbytes
        if isinstance(size, int):
            survey.left -= min(size, survey.left + 1)
    return 0


cpdef object refer_to_long_binaries(object value, list buffers, Py_ssize_t longest):
    """Return `value` with a reference in place of each binary of more than `longest` bytes in its maps, lists, tuples
    and structs, and append those binaries to `buffers`, as many as a frame may have. Return `value` itself if there are
    none. Raises RecursionError."""
    return referring(value, buffers, longest, deepest)


cdef object referring(object value, list buffers, Py_ssize_t longest, int levels):
    cdef dict changed = {}
    kind = type(value)
    if is_simple(value, kind):
        return value
    if kind is bytes or kind is bytearray or kind is memoryview:
        if memoryview(value).nbytes <= longest or len(buffers) >= MOST_BUFFERS:
            return value
        buffers.append(value)
        return {BUFFER: len(buffers) - 1}
    if levels == 0:
        too_deep()
    if kind is dict:
        for name, old in (<dict>value).items():
            new = referring(old, buffers, longest, levels - 1)
            if new is not old:
                changed[name] = new
        return {**value, **changed} if changed else value
    if kind is list or kind is tuple:
        items = [referring(entry, buffers, longest, levels - 1) for entry in value]
        if any([new is not old for new, old in zip(items, value)]):
            return items if kind is list else tuple(items)
        return value
    # A struct with __post_init__ may check its fields, which must not contain references.
    if isinstance(value, Struct) and not hasattr(kind, "__post_init__"):
        for name in kind.__struct_fields__:
            old = getattr(value, name)
            new = referring(old, buffers, longest, levels - 1)
            if new is not old:
                changed[name] = new
        return replace(value, **changed) if changed else value
    return value


cpdef object substitute(object value, object make):
    """Return `value` with make(name, form) in place of each reference. name: "$buffer", "$tensor", or
    "tensor" for an ETF term. Atoms become str, because msgspec does not convert subclasses of str.
    Returns `value` itself if nothing changes. Raises InvalidReference, RecursionError, and what
    `make` raises."""
    return substituted(value, make, deepest)


cdef object substituted(object value, object make, int levels):
    kind = type(value)
    if is_simple(value, kind) or kind is bytes:
        return value
    if kind is Atom:
        return str(value)
    if levels == 0:
        too_deep()
    if kind is dict:
        return substitute_in_map(value, make, levels - 1)
    if kind is list:
        return substitute_in_items(value, value, make, levels - 1)
    if kind is tuple:
        if is_term(value):
            return make("tensor", value)
        items = substitute_in_items(value, list(value), make, levels - 1)
        return value if items is value else tuple(items)
    return value


cdef bint is_term(tuple value) except -1:
    """Return whether the tuple is {tensor, {f, 32}, {2, 3}, Data}; the atom `tensor` may have become str."""
    if len(value) != 4 or not isinstance(value[0], str) or value[0] != "tensor":
        return False
    return type(value[0]) is Atom or (type(value[1]) is tuple and type(value[2]) is tuple)


cdef object substitute_in_map(dict value, object make, int levels):
    cdef dict made = None
    cdef bint has_atoms = False
    if len(value) == 1:
        for name in (BUFFER, TENSOR):
            if name in value:
                return make(name, value[name])
    for name, old in value.items():
        has_atoms |= type(name) is Atom
        try:
            new = substituted(old, make, levels)
        except InvalidReference as error:
            error.path.append(name)
            raise
        if new is not old:
            if made is None:
                made = dict(value)
            made[name] = new
    if has_atoms:
        return {str(name) if type(name) is Atom else name: entry
                for name, entry in (value if made is None else made).items()}
    return value if made is None else made


cdef object substitute_in_items(object value, list items, object make, int levels):
    """Return `value`, whose items are `items`, if none of them changes; otherwise a list."""
    cdef list made = None
    cdef Py_ssize_t index
    for index in range(len(items)):
        old = items[index]
        try:
            new = substituted(old, make, levels)
        except InvalidReference as error:
            error.path.append(index)
            raise
        if new is not old:
            if made is None:
                made = list(items)
            made[index] = new
    return value if made is None else made


cpdef object fill(object value, object make):
    """Return `value` with make(tensor) in place of each Placeholder in it. Changes maps, lists and structs
    in place. Raises RecursionError."""
    return fill_in(value, make, deepest)


cdef object fill_in(object value, object make, int levels):
    kind = type(value)
    if is_simple(value, kind) or kind is bytes or kind is memoryview:
        return value
    if kind is Placeholder:
        return make(value.tensor)
    if levels == 0:
        too_deep()
    levels -= 1
    if kind is dict:
        for name, old in (<dict>value).items():
            new = fill_in(old, make, levels)
            if new is not old:
                (<dict>value)[name] = new
    elif kind is list:
        for index, old in enumerate(<list>value):
            new = fill_in(old, make, levels)
            if new is not old:
                (<list>value)[index] = new
    elif kind is tuple:
        items = [fill_in(entry, make, levels) for entry in <tuple>value]
        if any([new is not old for new, old in zip(items, value)]):
            return tuple(items)
    elif isinstance(value, Struct):
        for name in kind.__struct_fields__:
            old = getattr(value, name)
            new = fill_in(old, make, levels)
            if new is not old:
                force_setattr(value, name, new)
    return value
