"""Args that hold arrays: how a type declares them, and how args are decoded with their arrays and buffers.

class Product(msgspec.Struct):
    a: Annotated[numpy.ndarray, array("f32", "n", "k")]
    b: Annotated[numpy.ndarray, array("f32", "k", "m")]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import msgspec
from msgspec import inspect

from bridge.wire import _walk
from bridge.wire._walk import BUFFER, Placeholder
from bridge.wire.codec import Format
from bridge.wire.tensors import TYPES, Tensor, as_array, dimensions, invalid, substitute, tensor_of
from bridge.wire.type_walk import parts, type_of, types_in, walk

Buffers = Sequence[Any] | None  # of the frame; None if it is not a multipart one
Sizes = dict[str, int]


def args_decoder(type: Any) -> Callable[[Format, msgspec.Raw, Buffers], Any]:
    """Return the function that decodes args as `type`, chosen once for each command."""
    return partial(_decode_arrays if holds_arrays(type) else _decode, type)


def _decode(type: Any, format: Format, raw: msgspec.Raw, buffers: Buffers) -> Any:
    if buffers is None or type is msgspec.Raw or not _refers_to_buffers(raw):
        return format.decode_args(raw, type)
    return _decode_arrays(type, format, raw, buffers)


def _refers_to_buffers(raw: msgspec.Raw) -> bool:
    """Return whether encoded args may hold a reference to a buffer; in JSON, escapes may hide its name."""
    encoded = bytes(raw)
    return BUFFER.encode() in encoded or b"\\u" in encoded


def _decode_arrays(type: Any, format: Format, raw: msgspec.Raw, buffers: Buffers) -> Any:
    return format.decode_args(raw, type, decode=partial(_decode_parts, format, buffers))


def _decode_parts(format: Format, buffers: Buffers, data: Any, type: Any, undecodable: str) -> Any:
    value = format.decode_lenient(data, Any, undecodable)
    if holds_raw(type):  # an undecoded part cannot refer to buffers, so what it refers to is encoded into it
        return format.decode(format.encode(substitute(value, buffers)), type)
    format.prepare(type)
    return convert(value, type, buffers, format)


def convert(value: Any, type: Any, buffers: Buffers, format: Format) -> Any:
    """Return a decoded value as `type`, with arrays and `buffers` in place of its references, and check
    the constraints of its arrays. Raises msgspec.ValidationError with the path."""
    value = substitute(value, buffers, Placeholder)
    if not format.has_bytes:
        value = _with_bytes(type_of(type), value)
    made = msgspec.convert(value, type, dec_hook=_as, str_keys=format.has_text_keys)
    made = _walk.fill(made, as_array)
    sizes: Sizes = {}
    for path, info, part in walk(type, made, "$", _is_constraint):
        name, shape = info.extra["tensor"]
        _check(name, shape, part, path, sizes)
    return made


def array(type: str | None, *shape: int | str | None) -> msgspec.Meta:
    """Return the constraint of an array among the args: Annotated[numpy.ndarray, array("f32", None, 768)].

    type: a key of TYPES, or None for any. shape: for each dimension its size, None for any size, or a
    name: dimensions with the same name have the same size. Without sizes: any shape.
    """
    if type is not None and type not in TYPES:
        raise ValueError(f"unknown tensor type {type!r}; known: {', '.join(TYPES)}")
    return msgspec.Meta(
        extra={"tensor": (type, shape)},
        extra_json_schema={"description": f"tensor {_wanted(type, shape, {})}"},
    )


def schema(type: Any) -> dict[str, Any]:
    """Return the JSON Schema of an array. Raises NotImplementedError for other types."""
    if type is not Tensor and not _is_ndarray(type):
        raise NotImplementedError(f"args of type {type}")
    sizes = {"type": "array", "items": {"type": "integer", "minimum": 0}}
    form = {"type": {"enum": [*TYPES]}, "shape": sizes, "data": {}}
    tensor = {"type": "object", "properties": form, "required": [*form]}
    return {"type": "object", "properties": {"$tensor": tensor}, "required": ["$tensor"]}


@cache
def holds_arrays(type: Any) -> bool:
    """Return whether values of `type` hold arrays or Tensors."""
    return _has(type, _is_array)


@cache
def holds_raw(type: Any) -> bool:
    """Return whether values of `type` hold undecoded parts."""
    return _has(type, _is_raw)


@cache
def _has(type: Any, is_wanted: Callable[[Any], bool]) -> bool:
    return any(is_wanted(info) for info in types_in(type_of(type)))


def _is_ndarray(type: Any) -> bool:
    return (type.__module__, type.__name__) == ("numpy", "ndarray")


def _is_raw(info: Any) -> bool:
    return isinstance(info, inspect.RawType)


def _is_array(info: Any) -> bool:
    is_custom = isinstance(info, inspect.CustomType)
    return is_custom and (info.cls is Tensor or _is_ndarray(info.cls))


def _is_constraint(info: Any) -> bool:
    return isinstance(info, inspect.Metadata) and "tensor" in (info.extra or {})


def _as(type: type, value: Any) -> Any:
    """Convert a value to a type that msgspec does not know: its `dec_hook`."""
    if type is not Tensor and not _is_ndarray(type):
        raise NotImplementedError(f"args of type {type.__name__}")
    if not isinstance(value, Placeholder):
        raise ValueError(f"Expected `tensor`, got `{value.__class__.__name__}`")
    tensor: Tensor = value.tensor
    return tensor if type is Tensor else tensor.numpy()


_BYTES = (inspect.BytesType, inspect.ByteArrayType, inspect.MemoryViewType)


def _with_bytes(info: Any, value: Any) -> Any:
    """Return `value` with bytes in place of text where its type has bytes and no text."""
    if isinstance(info, _BYTES):
        return value.encode() if isinstance(value, str) else value
    if isinstance(info, inspect.Metadata):
        return _with_bytes(info.type, value)
    if isinstance(info, inspect.UnionType):
        for each in () if any(isinstance(each, inspect.StrType) for each in info.types) else info.types:
            value = _with_bytes(each, value)
        return value
    changed = {}
    for key, _, type, part in parts(info, value):
        new = _with_bytes(type, part)
        if new is not part:
            changed[key] = new
    if not changed:
        return value
    if isinstance(value, dict):
        return {**value, **changed}
    return [changed.get(index, entry) for index, entry in enumerate(value)]


def _check(type: str | None, shape: tuple[int | str | None, ...], value: Any, path: str, sizes: Sizes) -> None:
    """Raise for an array that does not have that type and shape. sizes: the sizes of the dimensions named so far."""
    tensor = tensor_of(value)
    if tensor is None:
        return
    known = dict(sizes)
    fits = not shape or len(shape) == len(tensor.shape)
    for wanted, size in zip(shape, tensor.shape, strict=False):
        if isinstance(wanted, str):
            wanted = sizes.setdefault(wanted, size)
        fits = fits and wanted in (None, size)
    if not fits or type not in (None, tensor.type):
        raise invalid(f"Expected `{_wanted(type, shape, known)}`, got `{tensor}`", path)


def _wanted(type: str | None, shape: tuple[int | str | None, ...], known: Sizes) -> str:
    """Return a constraint as text: f32[n, k=3, _]."""
    sizes = ["_" if w is None else f"{w}={known[w]}" if w in known else w for w in shape]
    return f"{type or 'any'}[{dimensions(sizes) if shape else '…'}]"
