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
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import msgspec

from bridge._etf import Atom
from bridge._framing import APART, LONG, MOST_BUFFERS, apart_in

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


# "$", or what a value is part of and its name or place there.
Path = str | tuple[Any, Any]


class Tensor:
    """An array of any type of the wire, those that numpy does not have too.

    type: a key of TYPES. shape: sizes. data: any buffer of just the right length; held, not
    copied. Raises ValueError.
    """

    __slots__ = ("data", "shape", "type")

    def __init__(self, type: str, shape: Sequence[int], data: Any) -> None:
        if not isinstance(type, str) or type not in TYPES:
            raise ValueError(f"no tensor type {_shown(type)}; known: {', '.join(TYPES)}")
        if len(shape) > MOST_DIMENSIONS:
            raise ValueError(f"{len(shape)} dimensions are more than {MOST_DIMENSIONS}")
        for size in shape:
            is_whole = isinstance(size, int) and not isinstance(size, bool)
            if not is_whole or not 0 <= size <= LARGEST_SIZE:
                raise ValueError(f"a shape is of sizes from 0 to 2^63-1, not {_shown(size)}")
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
        return f"{self.type}[{_dimensions(self.shape)}]"


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
    """What encoders of JSON and MessagePack make of a tensor. Raises TypeError for what is none."""
    if isinstance(value, Apart):
        return value.form()
    tensor = _tensor(value)
    if tensor is None:
        return _plain(value)
    form = {"type": tensor.type, "shape": tensor.shape, "data": _data(tensor.data)}
    return {"$tensor": form}


def encode_etf_hook(value: Any) -> Any:
    """The same of ETF's."""
    if isinstance(value, Apart):
        return value.form()
    tensor = _tensor(value)
    if tensor is None:
        return _plain(value)
    kind, bits = _TERMS[tensor.type]
    return (Atom("tensor"), (Atom(kind), bits), tensor.shape, _data(tensor.data))


def without_arrays(value: Any) -> Any:
    """None for what stands apart or is an array, the number for one of numpy's. Raises TypeError
    for the rest."""
    if isinstance(value, Apart | Tensor) or _is_numpy(value):
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
    any."""
    return _wrapped(value) if apart_in(value) & LONG else value


def _wrapped(value: Any) -> Any:
    kind = type(value)
    if kind in (bytes, bytearray, memoryview):
        return Apart(value) if memoryview(value).nbytes > APART else value
    if kind is dict:
        changed = {key: entry for key, old in value.items() if (entry := _wrapped(old)) is not old}
        return {**value, **changed} if changed else value
    if issubclass(kind, msgspec.Struct):
        fields = {name: getattr(value, name) for name in kind.__struct_fields__}
        changed = {
            name: entry for name, old in fields.items() if (entry := _wrapped(old)) is not old
        }
        return msgspec.structs.replace(value, **changed) if changed else value
    if kind is list or kind is tuple:
        entries = [_wrapped(entry) for entry in value]
        is_same = all(new is old for new, old in zip(entries, value, strict=True))
        return value if is_same else kind(entries)
    return value


def resolve(value: Any, buffers: Sequence[Any] | None, path: Path = "$") -> Any:
    """`value` with arrays, and memoryviews of `buffers`, in place of what stands for them on the
    wire; Tensors of types that numpy does not have. Raises msgspec.ValidationError, with the place.
    """
    kind = type(value)
    if kind is dict:
        if len(value) == 1:
            ((name, form),) = value.items()
            if name == "$buffer":
                return _buffer(form, buffers, path)
            if name == "$tensor":
                return _from_form(form, buffers, path)
        return {
            str(name) if type(name) is Atom else name: resolve(entry, buffers, (path, name))
            for name, entry in value.items()
        }
    if kind is list:
        return [resolve(entry, buffers, (path, index)) for index, entry in enumerate(value)]
    if kind is tuple:
        if len(value) == 4 and value[0] == "tensor":
            return _from_term(value, buffers, path)
        return tuple(resolve(entry, buffers, (path, index)) for index, entry in enumerate(value))
    return str(value) if kind is Atom else value  # msgspec knows no text by descent


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
    tensor = _tensor(value)
    if tensor is None:
        return value
    known = dict(sizes)
    fits = not shape or len(shape) == len(tensor.shape)
    for wanted, size in zip(shape, tensor.shape, strict=False):
        if isinstance(wanted, str):
            wanted = sizes.setdefault(wanted, size)
        fits = fits and wanted in (None, size)
    if not fits or type not in (None, tensor.type):
        raise _invalid(f"Expected `{_wanted(type, shape, known)}`, got `{tensor}`", path)
    return value


def _wanted(type: str | None, shape: tuple[int | str | None, ...], known: Sizes) -> str:
    """A constraint in words: f32[n, k=3, _]."""
    sizes = ["_" if w is None else f"{w}={known[w]}" if w in known else w for w in shape]
    return f"{type or 'any'}[{_dimensions(sizes) if shape else '…'}]"


def _as(type: type, value: Any) -> Any:
    """msgspec's question what a value is as a type that it does not know."""
    if type is Tensor:
        tensor = _tensor(value)
    elif _is_ndarray(type):
        tensor = value if isinstance(value, Tensor) else None
        if _is_numpy(value):
            return value
    else:
        raise NotImplementedError(f"args of type {type.__name__}")
    if tensor is None:
        raise ValueError(f"Expected `tensor`, got `{value.__class__.__name__}`")
    return tensor if type is Tensor else tensor.numpy()


def _buffer(index: Any, buffers: Sequence[Any] | None, path: Path) -> memoryview:
    if buffers is None:
        raise _invalid("a reference to a buffer in a frame that has none", path)
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(buffers):
        raise _invalid(f"no buffer {_shown(index)}: the frame has {len(buffers)}", path)
    return memoryview(buffers[index])


def _from_form(form: Any, buffers: Sequence[Any] | None, path: Path) -> Any:
    if not isinstance(form, dict) or not {"type", "shape", "data"} <= form.keys():
        raise _invalid("a $tensor has type, shape and data", path)
    return _made(form["type"], form["shape"], form["data"], buffers, path)


def _from_term(term: tuple[Any, ...], buffers: Sequence[Any] | None, path: Path) -> Any:
    _, type, shape, data = term
    if isinstance(type, tuple) and len(type) == 2:
        kind, bits = type
        if isinstance(kind, str) and isinstance(bits, int):
            type = _FROM_TERMS.get((kind, bits), f"{{{_shown(kind)}, {_shown(bits)}}}")
    return _made(type, list(shape) if isinstance(shape, tuple) else shape, data, buffers, path)


def _made(type: Any, shape: Any, data: Any, buffers: Sequence[Any] | None, path: Path) -> Any:
    if isinstance(data, dict) and data.keys() == {"$buffer"}:
        data = _buffer(data["$buffer"], buffers, path)
    elif isinstance(data, str):
        try:
            data = binascii.a2b_base64(data, strict_mode=True)
        except ValueError as error:
            raise _invalid(f"the data of a tensor is not base64: {error}", path) from None
    elif not isinstance(data, bytes | memoryview):
        raise _invalid("the data of a tensor is no binary", path)
    if not isinstance(shape, list):
        raise _invalid("the shape of a tensor is a list of sizes", path)
    try:
        tensor = Tensor(type, shape, data)
        return tensor if type in _RAW else tensor.numpy()
    except (ValueError, OverflowError) as error:
        raise _invalid(str(error), path) from None


def _invalid(message: str, path: Path) -> msgspec.ValidationError:
    place = ""
    while isinstance(path, tuple):
        path, key = path
        place = (f"[{key}]" if isinstance(key, int) else f".{key}") + place
    return msgspec.ValidationError(f"{message} - at `{path}{place}`")


def _dimensions(sizes: Sequence[Any]) -> str:
    return ", ".join(map(str, sizes[:8])) + (", …" if len(sizes) > 8 else "")


def _shown(value: Any) -> str:
    """What an error says of a value, however large it is."""
    if isinstance(value, str):
        return repr(str(value[:40]))
    if isinstance(value, int) and value.bit_length() <= 64:
        return repr(value)
    return f"that {type(value).__name__}"


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    return Tensor.of(value) if _is_numpy(value) else None


def _is_numpy(value: Any) -> bool:
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
