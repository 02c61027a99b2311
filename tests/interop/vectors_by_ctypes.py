"""A Python host of libbridge: vectors_by_ctypes.py LIBRARY. The interpreter runs already here, so
that the library uses it as it is; it is loaded so that calls give up the GIL, and so that they do
not. Says how many vectors are answered as they should be."""

from __future__ import annotations

import ctypes
import json
import signal
import sys
import threading
from pathlib import Path

VECTORS = Path(__file__).parent.parent / "vectors"
sys.path.insert(0, str(VECTORS))
from make import steady  # noqa: E402


class Request(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_char_p),
        ("size", ctypes.c_size_t),
        ("release", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
    )


class Bytes(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("owner", ctypes.c_void_p),
    )


CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(Bytes))


class Library:
    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        library.bridge_open.restype = ctypes.c_void_p
        library.bridge_error.restype = ctypes.c_char_p
        library.bridge_submit.argtypes = (
            ctypes.c_void_p,
            Request,
            CALLBACK,
            *[ctypes.c_void_p] * 2,
        )
        library.bridge_call.argtypes = (
            *(ctypes.c_void_p, Request, ctypes.c_int64),
            ctypes.POINTER(Bytes),
        )
        library.bridge_close.argtypes = (ctypes.c_void_p,)

    def open(self, adapter: str) -> int:
        handle = self.library.bridge_open(None, json.dumps({"adapter": adapter}).encode())
        assert handle, self.library.bridge_error()
        return handle

    def call(self, handle: int, payload: bytes) -> bytes:
        reply = Bytes()
        status = self.library.bridge_call(handle, Request(payload, len(payload)), -1, reply)
        assert status == 0, self.library.bridge_error()
        data = ctypes.string_at(reply.data, reply.size)
        self.library.bridge_free(ctypes.byref(reply))
        return data

    def submit(self, handle: int, payload: bytes) -> list[bytes]:
        got: list[bytes] = []
        done = threading.Event()

        @CALLBACK
        def callback(context: int, kind: int, message: ctypes._Pointer[Bytes]) -> None:
            data, size = message.contents.data, message.contents.size
            got.append(ctypes.string_at(data, size))
            if kind == 0:
                done.set()

        request = Request(payload, len(payload))
        assert self.library.bridge_submit(handle, request, callback, None, None) == 0
        assert done.wait(60)
        return got

    def close(self, handle: int) -> None:
        assert self.library.bridge_close(handle) == 0, self.library.bridge_error()


def main() -> None:
    entries = json.loads((VECTORS / "index.json").read_text())["vectors"]
    handler, threads = signal.getsignal(signal.SIGINT), threading.active_count()
    stdout = sys.stdout
    for kind in (ctypes.CDLL, ctypes.PyDLL):
        library = Library(kind(sys.argv[1]))
        answered = 0
        handle, group = 0, None
        for entry in entries:
            if group != (entry["adapter"], entry["format"]):
                if handle:
                    library.close(handle)
                group = (entry["adapter"], entry["format"])
                handle = library.open(entry["adapter"])
            request = (VECTORS / entry["request"]).read_bytes()[4:]
            expected = [(VECTORS / name).read_bytes()[4:] for name in entry["replies"]]
            submits = len(expected) > 1 or kind is ctypes.CDLL
            got = library.submit(handle, request) if submits else [library.call(handle, request)]
            if got == [b""] and not expected:
                got = []
            assert list(map(steady, got)) == expected, (entry["name"], got)
            answered += 1
        library.close(handle)
        print(answered)
    assert signal.getsignal(signal.SIGINT) is handler
    assert sys.stdout is stdout
    assert threading.active_count() == threads, threading.enumerate()


if __name__ == "__main__":
    main()
