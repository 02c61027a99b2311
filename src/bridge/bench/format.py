"""The interface of a benchmarked format: built-in formats and a user's own implement it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from bridge.bench.payloads import Payload


class Unsuitable(Exception):
    """Raised by a format that cannot carry a payload; the message says why."""


class Format:
    """One way to encode values, made for one payload, in the best use that its library documents.

    A value is an entry of `Payload.messages`. A native is the object that a program using the
    library works with: the value itself, a struct, a protobuf message, a table. `build` makes a
    native from a value, `read` makes a value from a native. If any method raises, the pair of
    format and payload is N/A.

    name, about: for the tables. packages: distributions whose versions are recorded.
    flags: settings that differ from the library's defaults.
    typed: the format works with a declared type.
    through_bridge: round trips go to a worker of this project, see `formats.BRIDGE`.
    foreign: natives are not Python objects, so `build` and `read` are part of the cost of a message
    and are timed with it.
    encode, decode: a native to bytes, and a memoryview to a native. `__init__` may set them to
    functions of the library.
    """

    name: ClassVar[str] = ""
    about: ClassVar[str] = ""
    packages: ClassVar[tuple[str, ...]] = ()
    flags: ClassVar[str] = ""
    typed: ClassVar[bool] = False
    foreign: ClassVar[bool] = False
    through_bridge: ClassVar[bool] = False
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]

    def __init__(self, payload: Payload) -> None:
        """Import the library, and make what can be reused. Raises Unsuitable."""

    def build(self, value: Any) -> Any:
        """Return the native of a value."""
        return value

    def read(self, native: Any) -> Any:
        """Return the value of a native."""
        return native


def reason_of(error: BaseException) -> str:
    """Return why a pair of format and payload is N/A, as one line for a table."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed: pip install 'dspex-bridge[bench]'"
    text = " ".join(str(error).split())
    text = f"{text[:150]}…" if len(text) > 150 else text
    return text if isinstance(error, Unsuitable) else f"{type(error).__name__}: {text}"
