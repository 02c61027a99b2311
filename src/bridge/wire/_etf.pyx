"""Erlang's external term format (ETF): terms to Python values and back.

Every read is checked against the end of the input, and every announced count against the bytes that
are left, before anything is allocated. The tags are those of the ERTS user's guide, "External Term
Format"; docs/protocol.md states which value each of them becomes.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.math cimport NAN, isfinite
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from bridge.wire._fields cimport field_at, offsets_of

import enum
import types
import typing

import msgspec
from msgspec import NODEFAULT, UNSET, DecodeError, Raw, Struct, UnsetType, convert, inspect, to_builtins

from bridge.wire.type_walk import alternatives, type_of


cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    static inline uint16_t load_16(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }
    static inline uint32_t load_32(const uint8_t *p) {
        uint32_t v; memcpy(&v, p, 4);
        return __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? __builtin_bswap32(v) : v;
    }
    static inline void store_32(char *p, uint32_t v) {
        if (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__) v = __builtin_bswap32(v);
        memcpy(p, &v, 4);
    }
    static inline double load_double(const uint8_t *p) {
        uint64_t v; double d; memcpy(&v, p, 8);
        if (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__) v = __builtin_bswap64(v);
        memcpy(&d, &v, 8);
        return d;
    }
    static inline void store_double(char *p, double d) {
        uint64_t v; memcpy(&v, &d, 8);
        if (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__) v = __builtin_bswap64(v);
        memcpy(p, &v, 8);
    }
    static inline uint64_t load_little(const uint8_t *p, size_t n) {
        uint64_t v = 0;
        for (size_t i = 0; i < n; i++) v |= (uint64_t)p[i] << 8 * i;
        return v;
    }
    /* Writes the 8 bytes of `v`, little-endian. Returns how many of them are significant. */
    static inline int store_little(char *p, uint64_t v) {
        int n = 8 - __builtin_clzll(v | 1) / 8;
        if (__BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__) v = __builtin_bswap64(v);
        memcpy(p, &v, 8);
        return n;
    }
    /* Returns whether `v` is an int of one digit (30 bits), which is read without a call. */
    static inline int one_digit(PyObject *v, int64_t *number) {
    #if PY_VERSION_HEX >= 0x030C0000
        if (!PyUnstable_Long_IsCompact((PyLongObject *)v)) return 0;
        *number = PyUnstable_Long_CompactValue((PyLongObject *)v);
    #else
        Py_ssize_t size = Py_SIZE(v);
        if (size < -1 || size > 1) return 0;
        *number = size ? size * (int64_t)((PyLongObject *)v)->ob_digit[0] : 0;
    #endif
        return 1;
    }
    /* Returns the slot of the cache for a short text, computed from its ends and its length. */
    static inline uint32_t slot_of(const uint8_t *p, size_t n) {
        uint64_t head = 0, tail = 0;
        if (n >= 8) { memcpy(&head, p, 8); memcpy(&tail, p + n - 8, 8); }
        else if (n >= 4) {
            uint32_t a, b; memcpy(&a, p, 4); memcpy(&b, p + n - 4, 4); head = a; tail = b;
        }
        else if (n) head = p[0] | p[n / 2] << 8 | p[n - 1] << 16;
        head = (head ^ n) * 0x9E3779B97F4A7C15u;
        return (uint32_t)(((head ^ head >> 29 ^ tail) * 0xBF58476D1CE4E5B9u) >> 54);
    }
    """
    uint16_t load_16(const uint8_t *p) nogil
    uint32_t load_32(const uint8_t *p) nogil
    void store_32(char *p, uint32_t value) nogil
    double load_double(const uint8_t *p) nogil
    void store_double(char *p, double value) nogil
    uint64_t load_little(const uint8_t *p, size_t size) nogil
    int store_little(char *p, uint64_t value) nogil
    bint one_digit(PyObject *value, int64_t *number)
    uint32_t slot_of(const uint8_t *p, size_t size) nogil

    dict new_dict "__Pyx_PyDict_NewPresized"(Py_ssize_t size)


cdef extern from "Python.h":
    object PyUnicode_DecodeUTF8(const char *text, Py_ssize_t size, const char *errors)
    object PyUnicode_DecodeLatin1(const char *text, Py_ssize_t size, const char *errors)
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    bint PyUnicode_IS_COMPACT_ASCII(PyObject *text)
    const uint8_t *PyUnicode_DATA(PyObject *text)
    Py_ssize_t PyUnicode_GET_LENGTH(PyObject *text)
    Py_hash_t PyObject_Hash(object value) except -1
    int dict_set "PyDict_SetItem"(object items, object key, object value)  # < 0: error is set
    void PyErr_Clear()
    list PyList_New(Py_ssize_t size)
    void PyList_SET_ITEM(object items, Py_ssize_t index, object item)
    PyObject *PyList_GET_ITEM(object items, Py_ssize_t index)  # borrowed
    Py_ssize_t PyList_GET_SIZE(object items)
    ctypedef struct PyTypeObject:
        pass
    PyTypeObject *Py_TYPE(PyObject *value)
    PyTypeObject PyUnicode_Type, PyLong_Type, PyFloat_Type, PyBool_Type, PyDict_Type, PyList_Type
    PyTypeObject PyTuple_Type, PyBytes_Type
    tuple PyTuple_New(Py_ssize_t size)
    void PyTuple_SET_ITEM(object items, Py_ssize_t index, object item)
    Py_ssize_t PyTuple_GET_SIZE(object items)
    int PyDict_Next(object items, Py_ssize_t *place, PyObject **key, PyObject **value)
    Py_ssize_t PyDict_Size(object items) except -1
    object PyLong_FromLong(long value)
    object PyLong_FromLongLong(long long value)
    object PyLong_FromUnsignedLongLong(unsigned long long value)
    long long PyLong_AsLongLongAndOverflow(object value, int *overflow) except? -1
    object PyFloat_FromDouble(double value)
    double PyFloat_AS_DOUBLE(PyObject *value)
    object PyMemoryView_FromObject(object value)
    object PyObject_Vectorcall(object function, PyObject **arguments, size_t count,
                               PyObject *names)
    void drop "Py_DECREF"(PyObject *value)
    void Py_XDECREF(PyObject *value)
    PyObject *PyDict_GetItemWithError(object items, object key) except? NULL  # borrowed
    int PyByteArray_Resize(PyObject *data, Py_ssize_t size) except -1
    void Py_SET_SIZE(PyObject *data, Py_ssize_t size)
    char *PyByteArray_AS_STRING(PyObject *data)
    Py_ssize_t PyByteArray_GET_SIZE(object data)


cdef enum:  # tags
    VERSION = 131
    COMPRESSED = 80
    NEW_FLOAT = 70
    BIT_BINARY = 77
    NEW_PID = 88
    NEW_PORT = 89
    NEWER_REFERENCE = 90
    SMALL_INTEGER = 97
    INTEGER = 98
    FLOAT = 99
    ATOM_LATIN1 = 100
    REFERENCE = 101
    PORT = 102
    PID = 103
    SMALL_TUPLE = 104
    LARGE_TUPLE = 105
    NIL = 106
    STRING = 107
    LIST = 108
    BINARY = 109
    SMALL_BIG = 110
    LARGE_BIG = 111
    NEW_FUN = 112
    EXPORT = 113
    NEW_REFERENCE = 114
    SMALL_ATOM_LATIN1 = 115
    MAP = 116
    FUN = 117
    ATOM_UTF8 = 118
    SMALL_ATOM_UTF8 = 119
    V4_PORT = 120

cdef enum:
    DEPTH = 512           # levels of containers, both ways; a level takes about 200 bytes of stack
    CACHED = 32           # bytes; longer keys and atoms are not cached
    SLOTS = 1024          # of each cache
    SAME_HASHES = 40      # keys of a map that may have one hash
    PEEKED = 65536        # bytes of a compressed message that are searched for its id
    PRESIZED = 1024       # entries that are allocated before they are read
    COPIED = 1024         # bytes; a shorter raw value is cheaper to copy than to refer to
    STRING_MAX = 65535    # items of a list that may be written as STRING_EXT
    SCRATCH_BYTES = 256   # that `encode` starts with
    MOST_TYPES = 1000     # of structs whose shapes are retained: programs may make types
    RETAINED_BYTES = 65536  # up to which `encode` retains its memory for the next call

# The bytes that a compressed term may inflate to if the caller gives no limit.
cdef uint64_t UNCOMPRESSED_MAX = 64 << 20  # bytes
# The bytes that the opaque terms of a message may hold beyond four times its length: a nested opaque
# term is copied with each one around it, up to 512 times.
cdef uint64_t OPAQUE_MAX = 64 << 20  # bytes

MAX_DEPTH = DEPTH


class Atom(str):
    """Represents an atom. Equal to the same text. The atoms true, false and nil become True, False and None."""

    __slots__ = ()

    def __repr__(self):
        return f"Atom({str.__repr__(self)})"


@cython.final
cdef class Opaque:
    """Represents a term that has no Python value, such as a pid, by its bytes without the version byte.

    It encodes to the same bytes. Equal to another Opaque with the same bytes.
    """

    cdef readonly bytes data

    def __cinit__(self, *_):
        self.data = b"j"  # a valid term, in case __init__ does not run

    def __init__(self, bytes data not None):
        cdef Cursor cursor
        start(&cursor, <const uint8_t *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        skip(&cursor, 1)
        at_end(&cursor)
        self.data = data

    def __eq__(self, other):
        return type(other) is Opaque and self.data == (<Opaque>other).data

    def __hash__(self):
        return hash((Opaque, self.data))

    def __repr__(self):
        return f"Opaque({self.data!r})"

    def __reduce__(self):
        return Opaque, (self.data,)


include "etf/reading.pxi"
include "etf/typed.pxi"
include "etf/writing.pxi"
