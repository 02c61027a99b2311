"""Arrays and large binaries on the wire: their names, their forms, and where their bytes stand.

In JSON and MessagePack a tensor is {"$tensor": {"type": "f32", "shape": [2, 3], "data": …}}, in ETF
{tensor, {f, 32}, {2, 3}, Data}. The data is a binary (base64 in JSON) or, in a multipart frame, a
reference to one of its buffers: {"$buffer": 0}. Little-endian, row by row.

numpy is loaded when the first array is made or met.
"""

from __future__ import annotations

import binascii
import math
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from bridge._framing import MOST_BUFFERS
from bridge.errors import shown
from bridge.wire import _walk
from bridge.wire._etf import Atom
from bridge.wire._walk import Misplaced

if TYPE_CHECKING:
    import numpy

_RAW = ("bf16", "f8", "f8_e4m3fn")
# Name on the wire -> bytes of an element, numpy's type. numpy has no bf16 and no f8: their bits.
TYPES: dict[str, tuple[int, str]] = {
    **{
        f"{kind}{8 * size}": (size, f"<{code}{size}")
        for kind, code, sizes in (
            ("s", "i", (1, 2, 4, 8)),
            ("u", "u", (1, 2, 4, 8)),
            ("f", "f", (2, 4, 8)),
            ("c", "c", (8, 16)),
        )
        for size in sizes
    },
    "bool": (1, "?"),
    "bf16": (2, "<u2"),
    "f8": (1, "<u1"),
    "f8_e4m3fn": (1, "<u1"),
}
# By dtype.str, where the bytes are as they are on the wire.
_NAMES = {
    "|b1": "bool",
    **{
        code.replace("<", "|") if size == 1 else code: name
        for name, (size, code) in TYPES.items()
        if name not in ("bool", *_RAW)
    },
}
MOST_DIMENSIONS = 64  # numpy's
LARGEST_SIZE = 2**63 - 1  # of a dimension


def _nx(name: str) -> tuple[str, int]:
    """The type as Nx calls it, which has none for truth values."""
    if name == "bool":
        return "u", 8
    if name == "f8_e4m3fn":
        return name, 8
    kind = name.rstrip("0123456789")
    return kind, int(name[len(kind) :])


_TERMS = {name: _nx(name) for name in TYPES}
_FROM_TERMS = {term: name for name, term in _TERMS.items() if name != "bool"}
# What an encoder may write as atoms.
ATOMS = ("tensor", *sorted({kind for kind, _ in _TERMS.values()}))


class Tensor:
    """An array of any type of the wire, those that numpy does not have too.

    type: a key of TYPES. shape: sizes. data: any buffer of just the right length; held, not
    copied. Raises ValueError.
    """

    __slots__ = ("data", "shape", "type")

    def __init__(self, type: str, shape: Sequence[int], data: Any) -> None:
        if not isinstance(type, str) or type not in TYPES:
            raise ValueError(f"no tensor type {shown(type)}; known: {', '.join(TYPES)}")
        if len(shape) > MOST_DIMENSIONS:
            raise ValueError(f"{len(shape)} dimensions are more than {MOST_DIMENSIONS}")
        for size in shape:
            is_whole = isinstance(size, int) and not isinstance(size, bool)
            if not is_whole or not 0 <= size <= LARGEST_SIZE:
                raise ValueError(f"a shape is of sizes from 0 to 2^63-1, not {shown(size)}")
        self.type = type
        self.shape = tuple(shape)
        self.data = data
        wanted, given = math.prod(self.shape) * TYPES[type][0], memoryview(data).nbytes
        if wanted != given:
            raise ValueError(f"{self} does not take {given} bytes")

    @classmethod
    def of(cls, array: numpy.ndarray[Any, Any]) -> Tensor:
        """The array, without a copy where it lies row by row in little-endian order. Raises
        ValueError for types that have no name on the wire (text, objects, dates, records)."""
        module = sys.modules["numpy"]
        if type(array) is not module.ndarray and isinstance(array, module.ma.MaskedArray):
            raise ValueError("a masked array has no form on the wire")
        name = _NAMES.get(array.dtype.str)
        if name is None:
            name = _NAMES.get(f"<{array.dtype.str[1:]}")
            if name is None:
                raise ValueError(f"an array of {array.dtype} has no form on the wire")
            array = array.astype(array.dtype.newbyteorder("<"), order="C")
        tensor = cls.__new__(cls)
        tensor.type, tensor.shape = name, array.shape
        tensor.data = array if array.flags.c_contiguous else array.copy(order="C")
        return tensor

    def numpy(self) -> numpy.ndarray[Any, Any]:
        """An array of the same bytes, read-only if they are; copied only where they are not
        aligned. Of bf16 and f8 the bits, as unsigned integers."""
        import numpy

        array: numpy.ndarray[Any, Any]
        array = numpy.ndarray(self.shape, TYPES[self.type][1], self.data)
        if not array.flags.aligned:
            is_writeable, array = array.flags.writeable, array.copy()
            array.flags.writeable = is_writeable
        return array

    def __repr__(self) -> str:
        return f"{self.type}[{dimensions(self.shape)}]"


class Collector(threading.local):
    """Where binaries of the message go that this thread encodes: None, or the list of those that
    stand apart from it."""

    buffers: list[Any] | None = None


_collector = Collector()
Encode = Callable[[Any, bytearray, int], None]


def collecting(encode_into: Encode, buffers: list[Any]) -> Encode:
    """`encode_into`, putting what is to stand apart into `buffers` and references in its place."""

    def encode(message: Any, room: bytearray, offset: int) -> None:
        before, _collector.buffers = _collector.buffers, buffers
        try:
            encode_into(message, room, offset)
        finally:
            _collector.buffers = before

    return encode


def encode_hook(value: Any) -> Any:
    """What the encoder of MessagePack makes of a tensor. Raises TypeError for what is none."""
    if isinstance(value, Apart):
        return value.form()
    tensor = tensor_of(value)
    if tensor is None:
        return _plain(value)
    form = {"type": tensor.type, "shape": tensor.shape, "data": _data(tensor.data)}
    return {"$tensor": form}


def encode_json_hook(value: Any) -> Any:
    """The same of JSON's, which has no number for NaN. Raises ValueError for that."""
    plain = encode_hook(value)
    if type(plain) is float and not math.isfinite(plain):
        raise ValueError(f"{plain} is not a number that JSON can carry")
    return plain


def encode_etf_hook(value: Any) -> Any:
    """The same of ETF's."""
    if isinstance(value, Apart):
        return value.form()
    tensor = tensor_of(value)
    if tensor is None:
        return _plain(value)
    kind, bits = _TERMS[tensor.type]
    return (Atom("tensor"), (Atom(kind), bits), tensor.shape, _data(tensor.data))


def without_arrays(value: Any) -> Any:
    """None for what stands apart or is an array, the number for one of numpy's. Raises TypeError
    for the rest."""
    if isinstance(value, Apart | Tensor) or is_array(value):
        return None
    return _plain(value)


class Apart:
    """A binary that stands apart wherever that is possible."""

    __slots__ = ("buffer",)

    def __init__(self, buffer: Any) -> None:
        self.buffer = buffer

    def form(self) -> Any:
        return _data(self.buffer)


def set_apart(value: Any) -> Any:
    """`value` with its long binaries in maps, lists, tuples and structs as Apart; itself without
    any. Raises RecursionError."""
    return _walk.set_apart(value, Apart)


def as_array(tensor: Tensor) -> Any:
    """Return `tensor` as handlers get it where no type says otherwise: a numpy array if numpy has the type."""
    return tensor if tensor.type in _RAW else tensor.numpy()


def substitute(value: Any, buffers: Sequence[Any] | None, make: Callable[[Tensor], Any] = as_array) -> Any:
    """Return `value` with make(tensor) in place of each tensor, and memoryviews of `buffers` in place of
    references to them. Raises msgspec.ValidationError with the path."""

    def replacement(name: str, form: Any) -> Any:
        if name == _walk.BUFFER:
            return _buffer(form, buffers)
        tensor = _from_form(form, buffers) if name == _walk.TENSOR else _from_term(form, buffers)
        try:
            return make(tensor)
        except (ValueError, OverflowError) as error:
            raise Misplaced(str(error)) from None

    try:
        return _walk.resolve(value, replacement)
    except Misplaced as error:
        path = "$"
        for key in reversed(error.path):
            path += f".{key}" if isinstance(key, str) else f"[{shown(key)}]"
        raise invalid(str(error), path) from None


def _buffer(index: Any, buffers: Sequence[Any] | None) -> memoryview:
    if buffers is None:
        raise Misplaced("a reference to a buffer in a frame that has none")
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(buffers):
        raise Misplaced(f"no buffer {shown(index)}: the frame has {len(buffers)}")
    return memoryview(buffers[index])


def _from_form(form: Any, buffers: Sequence[Any] | None) -> Tensor:
    if not isinstance(form, dict) or not {"type", "shape", "data"} <= form.keys():
        raise Misplaced("a $tensor has type, shape and data")
    return _made(form["type"], form["shape"], form["data"], buffers)


def _from_term(term: tuple[Any, ...], buffers: Sequence[Any] | None) -> Tensor:
    _, type, shape, data = term
    if isinstance(type, tuple) and len(type) == 2:
        kind, bits = type
        if isinstance(kind, str) and isinstance(bits, int):
            type = _FROM_TERMS.get((kind, bits), f"{{{shown(kind)}, {shown(bits)}}}")
    return _made(type, list(shape) if isinstance(shape, tuple) else shape, data, buffers)


def _made(type: Any, shape: Any, data: Any, buffers: Sequence[Any] | None) -> Tensor:
    if isinstance(data, dict) and data.keys() == {"$buffer"}:
        data = _buffer(data["$buffer"], buffers)
    elif isinstance(data, str):
        try:
            data = binascii.a2b_base64(data, strict_mode=True)
        except ValueError as error:
            raise Misplaced(f"the data of a tensor is not base64: {error}") from None
    elif not isinstance(data, bytes | memoryview):
        raise Misplaced("the data of a tensor is no binary")
    if not isinstance(shape, list):
        raise Misplaced("the shape of a tensor is a list of sizes")
    try:
        return Tensor(type, shape, data)
    except (ValueError, OverflowError) as error:
        raise Misplaced(str(error)) from None


def invalid(message: str, place: str) -> msgspec.ValidationError:
    """What msgspec would raise at that place."""
    return msgspec.ValidationError(f"{message} - at `{place}`")


def dimensions(sizes: Sequence[Any]) -> str:
    """In words; not all of very many."""
    return ", ".join(map(str, sizes[:8])) + (", …" if len(sizes) > 8 else "")


def tensor_of(value: Any) -> Tensor | None:
    """An array as a Tensor, a Tensor as it is, None for the rest. Raises ValueError."""
    if isinstance(value, Tensor):
        return value
    return Tensor.of(value) if is_array(value) else None


def is_array(value: Any) -> bool:
    """Whether it is one of numpy's, which is not loaded for that."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def _plain(value: Any) -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic):
        return value.item()
    raise TypeError(f"Encoding objects of type {type(value).__name__} is unsupported")


def _data(buffer: Any) -> Any:
    buffers = _collector.buffers
    if buffers is None or len(buffers) >= MOST_BUFFERS:
        return memoryview(buffer)
    buffers.append(buffer)
    return {"$buffer": len(buffers) - 1}
