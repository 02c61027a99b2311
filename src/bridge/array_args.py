"""Args that hold arrays: how a type says so, and how args become what it says.

class Product(msgspec.Struct):
    a: Annotated[numpy.ndarray, array("f32", "n", "k")]
    b: Annotated[numpy.ndarray, array("f32", "k", "m")]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any

import msgspec

from bridge.tensors import TYPES, Path, Tensor, dimensions, invalid, is_array, tensor_of


def convert(value: Any, type: Any, *, tells_text: bool = True) -> Any:
    """What `resolve` has made, as `type`, whose arrays may have constraints (`array`). tells_text:
    text in `value` is no binary. Raises msgspec.ValidationError, with the place."""
    if not tells_text:
        value = _visitor(type, _bytes)(value, "$", {})
    made = msgspec.convert(value, type, dec_hook=_as)
    _visitor(type, _constraints)(value, "$", {})
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
    if type is None or type is msgspec.Raw:
        return False
    return _visit(msgspec.inspect.type_info(type), _arrays, ()) is not None


def _is_ndarray(type: Any) -> bool:
    return (type.__module__, type.__name__) == ("numpy", "ndarray")


Sizes = dict[str, int]
Visit = Callable[[Any, Path, Sizes], Any]
Leaf = Callable[[Any], Visit | None]


def _as_it_is(value: Any, path: Path, sizes: Sizes) -> Any:
    return value


@cache
def _visitor(type: Any, leaf: Leaf) -> Visit:
    """What goes through a value that is to become `type`, to every part of it for whose type
    `leaf` has a visit, and makes of the part what that returns."""
    return _visit(msgspec.inspect.type_info(type), leaf, ()) or _as_it_is


def _visit(info: Any, leaf: Leaf, above: tuple[type, ...]) -> Visit | None:
    """None where there is nothing to visit. Types within themselves are not gone into twice."""
    inspect = msgspec.inspect
    visit = leaf(info)
    if visit is not None:
        return visit
    if isinstance(info, inspect.Metadata):
        return _visit(info.type, leaf, above)
    if isinstance(info, inspect.StructType | inspect.DataclassType | inspect.TypedDictType):
        if info.cls in above:
            return None
        visits = [_visit(field.type, leaf, (*above, info.cls)) for field in info.fields]
        if getattr(info, "array_like", False):
            return _visits(_visit_places, enumerate(visits))
        names = [field.encode_name for field in info.fields]
        return _visits(_visit_fields, zip(names, visits, strict=True))
    if isinstance(info, inspect.TupleType):
        visits = [_visit(item, leaf, above) for item in info.item_types]
        return _visits(_visit_places, enumerate(visits))
    if isinstance(info, inspect.ListType | inspect.VarTupleType):
        item = _visit(info.item_type, leaf, above)
        return None if item is None else partial(_visit_items, item)
    if isinstance(info, inspect.DictType):
        item = _visit(info.value_type, leaf, above)
        return None if item is None else partial(_visit_entries, item)
    if isinstance(info, inspect.UnionType):
        inner = [found for each in info.types if (found := _visit(each, leaf, above)) is not None]
        return partial(_visit_each, inner) if inner else None
    return None


def _visits(visit: Any, parts: Iterable[tuple[Any, Visit | None]]) -> Visit | None:
    """`visit` with those of its parts that there are."""
    found = {key: inner for key, inner in parts if inner is not None}
    return partial(visit, found) if found else None


# A visit leaves alone what is not of its type: of a union it may be of another.
def _visit_fields(fields: dict[str, Visit], value: Any, path: Path, sizes: Sizes) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        name: fields[name](part, (path, name), sizes) if name in fields else part
        for name, part in value.items()
    }


def _visit_places(places: dict[int, Visit], value: Any, path: Path, sizes: Sizes) -> Any:
    if not isinstance(value, list | tuple):
        return value
    return [
        places[index](part, (path, index), sizes) if index in places else part
        for index, part in enumerate(value)
    ]


def _visit_items(item: Visit, value: Any, path: Path, sizes: Sizes) -> Any:
    if not isinstance(value, list | tuple):
        return value
    return [item(part, (path, index), sizes) for index, part in enumerate(value)]


def _visit_entries(item: Visit, value: Any, path: Path, sizes: Sizes) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: item(part, (path, name), sizes) for name, part in value.items()}


def _visit_each(visits: list[Visit], value: Any, path: Path, sizes: Sizes) -> Any:
    for visit in visits:
        value = visit(value, path, sizes)
    return value


def _arrays(info: Any) -> Visit | None:
    """Says where arrays are."""
    is_custom = isinstance(info, msgspec.inspect.CustomType)
    return _as_it_is if is_custom and (info.cls is Tensor or _is_ndarray(info.cls)) else None


def _bytes(info: Any) -> Visit | None:
    """Makes bytes of text where a type wants bytes."""
    inspect = msgspec.inspect
    if isinstance(info, inspect.BytesType | inspect.ByteArrayType | inspect.MemoryViewType):
        return _to_bytes
    if isinstance(info, inspect.UnionType):  # where either will do, text is text
        return _as_it_is if any(isinstance(t, inspect.StrType) for t in info.types) else None
    return None


def _to_bytes(value: Any, path: Path, sizes: Sizes) -> Any:
    return value.encode() if isinstance(value, str) else value


def _constraints(info: Any) -> Visit | None:
    """Raises for arrays that are not as `array` says."""
    if not isinstance(info, msgspec.inspect.Metadata):
        return None
    wanted = (info.extra or {}).get("tensor")
    return None if wanted is None else partial(_holds, *wanted)


def _holds(
    type: str | None, shape: tuple[int | str | None, ...], value: Any, path: Path, sizes: Sizes
) -> Any:
    tensor = tensor_of(value)
    if tensor is None:
        return value
    known = dict(sizes)
    fits = not shape or len(shape) == len(tensor.shape)
    for wanted, size in zip(shape, tensor.shape, strict=False):
        if isinstance(wanted, str):
            wanted = sizes.setdefault(wanted, size)
        fits = fits and wanted in (None, size)
    if not fits or type not in (None, tensor.type):
        raise invalid(f"Expected `{_wanted(type, shape, known)}`, got `{tensor}`", path)
    return value


def _wanted(type: str | None, shape: tuple[int | str | None, ...], known: Sizes) -> str:
    """A constraint in words: f32[n, k=3, _]."""
    sizes = ["_" if w is None else f"{w}={known[w]}" if w in known else w for w in shape]
    return f"{type or 'any'}[{dimensions(sizes) if shape else '…'}]"


def _as(type: type, value: Any) -> Any:
    """msgspec's question what a value is as a type that it does not know."""
    if type is Tensor:
        tensor = tensor_of(value)
    elif _is_ndarray(type):
        tensor = value if isinstance(value, Tensor) else None
        if is_array(value):
            return value
    else:
        raise NotImplementedError(f"args of type {type.__name__}")
    if tensor is None:
        raise ValueError(f"Expected `tensor`, got `{value.__class__.__name__}`")
    return tensor if type is Tensor else tensor.numpy()
