"""Arrays and large binaries on the wire: the names of types, the forms of tensors, and their buffers.

In JSON and MessagePack a tensor is {"$tensor": {"type": "f32", "shape": [2, 3], "data": …}}, in ETF
{tensor, {f, 32}, {2, 3}, Data}. The data is a binary (base64 in JSON) or, in a multipart frame, a
reference to one of its buffers: {"$buffer": 0}. Little-endian, row by row.

numpy is loaded when the first array is decoded.
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
from bridge.wire._walk import InvalidReference

if TYPE_CHECKING:
    import numpy

_RAW = ("bf16", "f8", "f8_e4m3fn")
# Name on the wire -> bytes of an element, numpy type. numpy has neither bf16 nor f8; their arrays hold the bits.
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
# dtype.str -> name on the wire, for arrays whose bytes need no conversion.
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
    """Return the type as Nx names it; Nx has no type for booleans."""
    if name == "bool":
        return "u", 8
    if name == "f8_e4m3fn":
        return name, 8
    kind = name.rstrip("0123456789")
    return kind, int(name[len(kind) :])


_TERMS = {name: _nx(name) for name in TYPES}
_FROM_TERMS = {term: name for name, term in _TERMS.items() if name != "bool"}
# Atoms that the ETF encoder may write.
ATOMS = ("tensor", *sorted({kind for kind, _ in _TERMS.values()}))


class Tensor:
    """Represents an array of any type on the wire, including those that numpy lacks.

    type: a key of TYPES. shape: the size of each dimension. data: a buffer of exactly that many
    bytes; referenced, not copied. Raises ValueError.
    """

    __slots__ = ("data", "shape", "type")

    def __init__(self, type: str, shape: Sequence[int], data: Any) -> None:
        if not isinstance(type, str) or type not in TYPES:
            raise ValueError(f"unknown tensor type {shown(type)}; known: {', '.join(TYPES)}")
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
        """Return a Tensor of `array`, without a copy if it is C-contiguous and little-endian. Raises
        ValueError for types that have no name on the wire (text, objects, dates, records)."""
        module = sys.modules["numpy"]
        if type(array) is not module.ndarray and isinstance(array, module.ma.MaskedArray):
            raise ValueError("a masked array cannot be sent; fill it first")
        name = _NAMES.get(array.dtype.str)
        if name is None:
            name = _NAMES.get(f"<{array.dtype.str[1:]}")
            if name is None:
                raise ValueError(f"an array of {array.dtype} cannot be sent: the wire has no such type")
            array = array.astype(array.dtype.newbyteorder("<"), order="C")
        tensor = cls.__new__(cls)
        tensor.type, tensor.shape = name, array.shape
        tensor.data = array if array.flags.c_contiguous else array.copy(order="C")
        return tensor

    def numpy(self) -> numpy.ndarray[Any, Any]:
        """Return a numpy array over the same bytes, read-only if they are; copied only if they are not
        aligned. bf16 and f8 become unsigned integers with the same bits."""
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
    """Holds the list for the out-of-band buffers of the message that this thread encodes; None: it may not have any.

    The hooks of msgspec's encoders have no other access to that list.
    """

    buffers: list[Any] | None = None


_collector = Collector()
Encode = Callable[[Any, bytearray], None]


def collecting_buffers(encode_into: Encode, buffers: list[Any]) -> Encode:
    """Return an `encode_into` that moves tensors to `buffers` and writes references."""

    def encode(message: Any, buffer: bytearray) -> None:
        before, _collector.buffers = _collector.buffers, buffers
        try:
            encode_into(message, buffer)
        finally:
            _collector.buffers = before

    return encode


def encode_hook(value: Any) -> Any:
    """Return the form of a tensor in JSON and MessagePack. Raises TypeError for values that no format carries."""
    tensor = tensor_of(value)
    if tensor is None:
        return _plain(value)
    form = {"type": tensor.type, "shape": tensor.shape, "data": _data(tensor.data)}
    return {"$tensor": form}


def encode_json_hook(value: Any) -> Any:
    """Return the form of a tensor in JSON. Raises ValueError for a numpy number that is NaN or infinite,
    for which the encoder would write null."""
    plain = encode_hook(value)
    if type(plain) is float and not math.isfinite(plain):
        raise ValueError(f"{plain} is not a number that JSON can carry")
    return plain


def encode_etf_hook(value: Any) -> Any:
    """Return the form of a tensor in ETF. Raises TypeError for values that no format carries."""
    tensor = tensor_of(value)
    if tensor is None:
        return _plain(value)
    kind, bits = _TERMS[tensor.type]
    return (Atom("tensor"), (Atom(kind), bits), tensor.shape, _data(tensor.data))


def without_arrays(value: Any) -> Any:
    """Return the Python number for a numpy number, None for an array or a buffer. Raises TypeError for
    other values."""
    if isinstance(value, Tensor) or is_array(value):
        return None
    return _plain(value)


def as_array(tensor: Tensor) -> Any:
    """Return `tensor` as handlers get it by default: as a numpy array if numpy has the type."""
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
            raise InvalidReference(str(error)) from None

    try:
        return _walk.substitute(value, replacement)
    except InvalidReference as error:
        path = "$"
        for key in reversed(error.path):
            path += f".{key}" if isinstance(key, str) else f"[{shown(key)}]"
        raise invalid(str(error), path) from None


def _buffer(index: Any, buffers: Sequence[Any] | None) -> memoryview:
    if buffers is None:
        raise InvalidReference("the frame has no buffers to refer to")
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(buffers):
        raise InvalidReference(f"no buffer {shown(index)}: the frame has {len(buffers)}")
    return memoryview(buffers[index])


def _from_form(form: Any, buffers: Sequence[Any] | None) -> Tensor:
    if not isinstance(form, dict) or not {"type", "shape", "data"} <= form.keys():
        raise InvalidReference("a $tensor needs type, shape and data")
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
            raise InvalidReference(f"the data of a tensor is not base64: {error}") from None
    elif not isinstance(data, bytes | memoryview):
        raise InvalidReference("the data of a tensor must be a binary")
    if not isinstance(shape, list):
        raise InvalidReference("the shape of a tensor must be a list of sizes")
    try:
        return Tensor(type, shape, data)
    except (ValueError, OverflowError) as error:
        raise InvalidReference(str(error)) from None


def invalid(message: str, path: str) -> msgspec.ValidationError:
    """Return the error that msgspec would raise at that path."""
    return msgspec.ValidationError(f"{message} - at `{path}`")


def dimensions(sizes: Sequence[Any]) -> str:
    """Return sizes as text: `2, 3`, and at most eight of them."""
    return ", ".join(map(str, sizes[:8])) + (", …" if len(sizes) > 8 else "")


def tensor_of(value: Any) -> Tensor | None:
    """Return an array or a Tensor as a Tensor, None for other values. Raises ValueError."""
    if isinstance(value, Tensor):
        return value
    return Tensor.of(value) if is_array(value) else None


def is_array(value: Any) -> bool:
    """Return whether `value` is a numpy array, without loading numpy."""
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
