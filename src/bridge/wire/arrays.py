"""Args that hold arrays: how a type says so, and how args become what it says.

class Product(msgspec.Struct):
    a: Annotated[numpy.ndarray, array("f32", "n", "k")]
    b: Annotated[numpy.ndarray, array("f32", "k", "m")]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import msgspec
from msgspec import inspect

from bridge.wire import _walk
from bridge.wire._walk import Found
from bridge.wire.tensors import TYPES, Tensor, dimensions, found, invalid, opened, tensor_of

Sizes = dict[str, int]


def convert(
    value: Any,
    type: Any,
    buffers: Sequence[Any] | None,
    *,
    str_keys: bool = False,
    tells_text: bool = True,
) -> Any:
    """A decoded value, whose references are to `buffers`, as `type`, whose arrays may have
    constraints (`array`). str_keys: keys are text, whatever they stand for. tells_text: text in
    `value` is no binary. Raises msgspec.ValidationError, with the place."""
    resolved = found(value, buffers, Found)
    if not tells_text:
        resolved = _with_bytes(type_of(type), resolved)
    made = msgspec.convert(resolved, type, dec_hook=_as, str_keys=str_keys)
    made = _walk.opened(made, opened)
    if _has(type, _is_constraint):
        _check(type_of(type), made, "$", {})
    return made


def array(type: str | None, *shape: int | str | None) -> msgspec.Meta:
    """A constraint of an array among the args: Annotated[numpy.ndarray, array("f32", None, 768)].

    type: of TYPES, or None for any. shape: of each dimension its size, None for any, or a name:
    dimensions of one name are of one size. None given: any shape.
    """
    if type is not None and type not in TYPES:
        raise ValueError(f"no tensor type {type!r}; known: {', '.join(TYPES)}")
    return msgspec.Meta(
        extra={"tensor": (type, shape)},
        extra_json_schema={"description": f"tensor {_wanted(type, shape, {})}"},
    )


def schema(type: Any) -> dict[str, Any]:
    """The JSON Schema of an array's form. Raises NotImplementedError for other types."""
    if type is not Tensor and not _is_ndarray(type):
        raise NotImplementedError(f"args of type {type}")
    sizes = {"type": "array", "items": {"type": "integer", "minimum": 0}}
    form = {"type": {"enum": [*TYPES]}, "shape": sizes, "data": {}}
    tensor = {"type": "object", "properties": form, "required": [*form]}
    return {"type": "object", "properties": {"$tensor": tensor}, "required": ["$tensor"]}


def is_about_arrays(type: Any) -> bool:
    """Whether values of that type hold arrays or Tensors."""
    return type is not None and type is not msgspec.Raw and _has(type, _is_array)


def keeps_bytes(type: Any) -> bool:
    """Whether values of that type hold undecoded parts, which cannot refer to anything."""
    return type is not None and _has(type, _is_raw)


@cache
def type_of(type: Any) -> Any:
    """What msgspec knows of a type."""
    return inspect.type_info(type)


@cache
def _has(type: Any, wanted: Any) -> bool:
    return any(wanted(info) for info in _all(type_of(type), set()))


def _all(info: Any, seen: set[int]) -> Iterator[Any]:
    """A type and all that its values may hold."""
    if id(info) in seen:
        return
    seen.add(id(info))
    yield info
    for part in _parts(info):
        yield from _all(part, seen)


def _parts(info: Any) -> Iterable[Any]:
    if hasattr(info, "fields"):  # structs, dataclasses, typed dicts, named tuples
        return [field.type for field in info.fields]
    several = [*getattr(info, "types", ()), *getattr(info, "item_types", ())]
    one = [getattr(info, name, None) for name in ("type", "item_type", "key_type", "value_type")]
    return [*several, *(part for part in one if isinstance(part, inspect.Type))]


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
    """msgspec's question what a value is as a type that it does not know."""
    if type is not Tensor and not _is_ndarray(type):
        raise NotImplementedError(f"args of type {type.__name__}")
    if not isinstance(value, Found):
        raise ValueError(f"Expected `tensor`, got `{value.__class__.__name__}`")
    tensor: Tensor = value.tensor
    return tensor if type is Tensor else tensor.numpy()


def _with_bytes(info: Any, value: Any) -> Any:
    """`value` with bytes in place of text where a type wants bytes."""
    if isinstance(info, inspect.BytesType | inspect.ByteArrayType | inspect.MemoryViewType):
        return value.encode() if isinstance(value, str) else value
    if isinstance(info, inspect.Metadata):
        return _with_bytes(info.type, value)
    if isinstance(info, inspect.UnionType):  # where either will do, text is text
        if not any(isinstance(each, inspect.StrType) for each in info.types):
            for each in info.types:
                value = _with_bytes(each, value)
    elif isinstance(value, dict):
        if isinstance(info, inspect.DictType):
            return {key: _with_bytes(info.value_type, entry) for key, entry in value.items()}
        fields = {field.encode_name: field.type for field in getattr(info, "fields", ())}
        return {key: _with_bytes(fields[key], entry) if key in fields else entry for key, entry in value.items()}
    elif isinstance(value, list | tuple):
        if isinstance(info, inspect.ListType | inspect.VarTupleType):
            return [_with_bytes(info.item_type, entry) for entry in value]
        if isinstance(info, inspect.TupleType):
            types = zip(info.item_types, value, strict=False)
            return [_with_bytes(each, entry) for each, entry in types]
    return value


def _check(info: Any, value: Any, place: str, sizes: Sizes) -> None:
    """Raise for arrays in `value`, which is of that type, that are not as `array` says."""
    if isinstance(info, inspect.Metadata):
        if _is_constraint(info):
            type, shape = (info.extra or {})["tensor"]
            _hold(type, shape, value, place, sizes)
        else:
            _check(info.type, value, place, sizes)
    elif isinstance(info, inspect.UnionType):
        for each in info.types:
            _check(each, value, place, sizes)
    elif hasattr(info, "fields"):
        if isinstance(value, dict) and isinstance(info, inspect.TypedDictType):
            for field in info.fields:
                if field.name in value:
                    _check(field.type, value[field.name], f"{place}.{field.name}", sizes)
        elif value.__class__ is info.cls:
            is_list = getattr(info, "array_like", False)
            first = 0 if getattr(info, "tag", None) is None else 1
            for index, field in enumerate(info.fields, first):
                key = f"[{index}]" if is_list else f".{field.encode_name}"
                _check(field.type, getattr(value, field.name), place + key, sizes)
    elif isinstance(info, inspect.DictType):
        if isinstance(value, dict):
            for key, entry in value.items():
                _check(info.value_type, entry, f"{place}.{key}", sizes)
    elif isinstance(info, inspect.TupleType):
        if isinstance(value, tuple):
            for index, (each, entry) in enumerate(zip(info.item_types, value, strict=False)):
                _check(each, entry, f"{place}[{index}]", sizes)
    elif hasattr(info, "item_type") and isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            _check(info.item_type, entry, f"{place}[{index}]", sizes)


def _hold(type: str | None, shape: tuple[int | str | None, ...], value: Any, place: str, sizes: Sizes) -> None:
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
        raise invalid(f"Expected `{_wanted(type, shape, known)}`, got `{tensor}`", place)


def _wanted(type: str | None, shape: tuple[int | str | None, ...], known: Sizes) -> str:
    """A constraint in words: f32[n, k=3, _]."""
    sizes = ["_" if w is None else f"{w}={known[w]}" if w in known else w for w in shape]
    return f"{type or 'any'}[{dimensions(sizes) if shape else '…'}]"
