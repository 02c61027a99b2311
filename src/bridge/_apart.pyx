"""What stands apart from a message, looked for in it and put back: in C, because all of a message
is walked for it. What a reference means, and what becomes of it, is decided in `tensors.py`.
"""

from cpython.bytes cimport PyBytes_GET_SIZE

from msgspec import Raw, Struct
from msgspec.structs import force_setattr

from bridge._etf import Atom


cdef extern from "<Python.h>":
    int Py_EnterRecursiveCall(const char *where) except -1
    void Py_LeaveRecursiveCall()


cdef Py_ssize_t longest = 4096  # bytes; longer binaries stand apart in a multipart frame
APART = longest

# Of `apart_in`.
LONG = 1
OTHER = 2
FORGED = 4

BUFFER, TENSOR = "$buffer", "$tensor"


class Misplaced(ValueError):
    """Something is wrong with a reference. path: the keys and places on the way there."""

    def __init__(self, message):
        super().__init__(message)
        self.path = []


class Found:
    """A tensor among values that are to become a type. tensor: see tensors.Tensor."""

    __slots__ = ("tensor",)

    def __init__(self, tensor):
        self.tensor = tensor


Found.__name__ = "tensor"  # what errors call it


cdef inline bint is_simple(object value, object kind):
    return (value is None or kind is str or kind is int or kind is float or kind is bool
            or kind is Raw)


cpdef int apart_in(object value) except -1:
    """What in `value` is worth a buffer: LONG is a binary longer than APART, OTHER what only an
    encoder's hook knows, such as an array, FORGED a map that looks like a reference; added."""
    cdef int found = 0
    kind = type(value)
    if is_simple(value, kind):
        return 0
    if kind is bytes:
        return LONG if PyBytes_GET_SIZE(value) > longest else 0
    if kind is bytearray or kind is memoryview:
        return LONG if memoryview(value).nbytes > longest else 0
    Py_EnterRecursiveCall(b" while looking for arrays")
    try:
        if kind is dict:
            if len(<dict>value) == 1 and (BUFFER in value or TENSOR in value):
                found = FORGED
            for entry in (<dict>value).values():
                found |= apart_in(entry)
        elif kind is list:
            for entry in <list>value:
                found |= apart_in(entry)
        elif kind is tuple:
            if len(<tuple>value) == 4 and value[0] == "tensor":
                found = FORGED
            for entry in <tuple>value:
                found |= apart_in(entry)
        elif isinstance(value, Struct):
            for name in kind.__struct_fields__:
                found |= apart_in(getattr(value, name))
        else:
            found = OTHER
        return found
    finally:
        Py_LeaveRecursiveCall()


cpdef object resolve(object value, object make):
    """`value` with make(name, form) in place of each reference, name being "$buffer", "$tensor", or
    "tensor" of a term; atoms become text, because msgspec knows no text by descent. Itself where
    there is nothing to do. Raises Misplaced, and what `make` raises."""
    kind = type(value)
    if is_simple(value, kind) or kind is bytes:
        return value
    if kind is Atom:
        return str(value)
    Py_EnterRecursiveCall(b" while looking for references")
    try:
        if kind is dict:
            return resolve_map(value, make)
        if kind is list:
            return resolve_items(value, value, make)
        if kind is tuple:
            if is_term(value):
                return make("tensor", value)
            items = resolve_items(value, list(value), make)
            return value if items is value else tuple(items)
        return value
    finally:
        Py_LeaveRecursiveCall()


cdef bint is_term(tuple value) except -1:
    """Whether it is {tensor, {f, 32}, {2, 3}, Data}; the atom may have become text."""
    if len(value) != 4 or not isinstance(value[0], str) or value[0] != "tensor":
        return False
    return type(value[0]) is Atom or (type(value[1]) is tuple and type(value[2]) is tuple)


cdef object resolve_map(dict value, object make):
    cdef dict made = None
    cdef bint has_atoms = False
    if len(value) == 1:
        for name in (BUFFER, TENSOR):
            if name in value:
                return make(name, value[name])
    for name, old in value.items():
        has_atoms |= type(name) is Atom
        try:
            new = resolve(old, make)
        except Misplaced as error:
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


cdef object resolve_items(object value, list items, object make):
    """`value` where none of `items`, which are its own, changes; else a list."""
    cdef list made = None
    cdef Py_ssize_t index
    for index in range(len(items)):
        old = items[index]
        try:
            new = resolve(old, make)
        except Misplaced as error:
            error.path.append(index)
            raise
        if new is not old:
            if made is None:
                made = list(items)
            made[index] = new
    return value if made is None else made


cpdef object opened(object value, object open):
    """`value` with open(tensor) in place of each that was Found and left in it; itself, changed
    where it is a map, a list or a struct."""
    kind = type(value)
    if is_simple(value, kind) or kind is bytes or kind is memoryview:
        return value
    if kind is Found:
        return open(value.tensor)
    Py_EnterRecursiveCall(b" while looking for arrays")
    try:
        if kind is dict:
            for name, old in (<dict>value).items():
                new = opened(old, open)
                if new is not old:
                    (<dict>value)[name] = new
        elif kind is list:
            for index, old in enumerate(<list>value):
                new = opened(old, open)
                if new is not old:
                    (<list>value)[index] = new
        elif kind is tuple:
            items = [opened(entry, open) for entry in <tuple>value]
            if any([new is not old for new, old in zip(items, value)]):
                return tuple(items)
        elif isinstance(value, Struct):
            for name in kind.__struct_fields__:
                old = getattr(value, name)
                new = opened(old, open)
                if new is not old:
                    force_setattr(value, name, new)
        return value
    finally:
        Py_LeaveRecursiveCall()
