"""User-defined formats for tests of the benchmark: one that works, and some that fail."""

from __future__ import annotations

import ast
import os
from pathlib import Path

from bridge.bench import Format, Unsuitable


class Literal(Format):
    """Python literals."""

    name, about, flags = "literal", "repr and literal_eval", "none"

    def encode(self, native):
        return repr(native).encode()

    def decode(self, data):
        return ast.literal_eval(bytes(data).decode())


class Rounding(Literal):
    """Changes numbers."""

    name = "rounding"

    def encode(self, native):
        return repr({k: float(v) if type(v) is int else v for k, v in native.items()}).encode()


class Raising(Literal):
    name = "raising"

    def encode(self, native):
        raise RuntimeError("no\nsuch luck")


class Refusing(Literal):
    name = "refusing"

    def __init__(self, payload):
        raise Unsuitable("not on a Sunday")


class Missing(Literal):
    name = "missing"

    def __init__(self, payload):
        import a_library_that_is_not_there  # noqa: F401


class Dying(Literal):
    """Ends its worker process."""

    name = "dying"

    def decode(self, data):
        if is_worker():
            os._exit(7)
        return super().decode(data)


class Failing(Literal):
    """Fails in its worker only."""

    name = "failing"

    def decode(self, data):
        if is_worker():
            raise ValueError("worse over there")
        return super().decode(data)


class Fickle(Literal):
    """Works in the check, but changes values in the worker."""

    name = "fickle"

    def encode(self, native):
        return super().encode({**native, "more": 1} if is_worker() else native)


class Hanging(Literal):
    """Never returns in its worker, whose process id it writes to `pid`."""

    name = "hanging"

    def decode(self, data):
        if is_worker():
            Path("pid").write_text(str(os.getpid()))
            while True:
                pass
        return super().decode(data)


def is_worker() -> bool:
    with open("/proc/self/cmdline") as line:
        return "bridge.bench.worker" in line.read()


not_a_format = 5
