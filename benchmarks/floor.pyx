# cython: language_level=3
"""The least that a Python process can do for a frame: a lower bound for the figures of docs/performance.md.

    cythonize -i benchmarks/floor.pyx && cc -O2 -o host benchmarks/c/host.c
    echo -n '{"id":1,"command":"ping","args":{}}' > ping
    cd benchmarks && ../host calls -n10000 -p0,0 -e '"success"' python -c 'import floor; floor.main(0)' < ../ping

main(0) writes a constant reply; main(1) decodes the request and encodes a reply with msgspec. Each
read must return one whole frame that fits into the buffer, so this is not a worker.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE, PyByteArray_Resize
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.string cimport memcpy

import msgspec


cdef extern from "<unistd.h>" nogil:
    ssize_t read(int fd, void *buffer, size_t size)
    ssize_t write(int fd, const void *buffer, size_t size)


class Request(msgspec.Struct, gc=False):
    id: int | str
    command: str
    args: msgspec.Raw = msgspec.Raw()


class Reply(msgspec.Struct, gc=False):
    id: object
    success: bool
    result: object
    timestamp: str


def main(bint decoding):
    cdef unsigned char buffer[65536]
    cdef ssize_t got
    cdef Py_ssize_t size
    cdef bytearray out = bytearray(512)
    now = "2026-01-01T00:00:00.000Z"
    pong = {"status": "ok", "timestamp": now, "dspy_available": False, "mode": "standalone"}
    decode = msgspec.json.Decoder(Request).decode
    encode_into = msgspec.json.Encoder().encode_into
    constant = msgspec.json.encode(Reply(1, True, pong, now))
    while True:
        with nogil:
            got = read(0, buffer, sizeof(buffer))
        if got <= 0:
            return
        if decoding:
            request = decode(PyBytes_FromStringAndSize(<char *>buffer + 4, got - 4))
            encode_into(Reply(request.id, True, pong, now), out)
            size = PyByteArray_GET_SIZE(out)
            memcpy(buffer + 4, PyByteArray_AS_STRING(out), size)
            PyByteArray_Resize(out, 512)
        else:
            size = len(<bytes>constant)
            memcpy(buffer + 4, <char *>(<bytes>constant), size)
        buffer[0] = buffer[1] = 0
        buffer[2] = size >> 8
        buffer[3] = size & 0xFF
        with nogil:
            write(1, buffer, size + 4)
