"""An adapter with arrays, for tests and benchmarks."""

from __future__ import annotations

import contextlib
import tracemalloc
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy

from bridge import Adapter, Context, Tensor, array

adapter = Adapter("arrays")


class OneArray(msgspec.Struct):
    x: numpy.ndarray


class OneTensor(msgspec.Struct):
    x: Tensor


class Product(msgspec.Struct):
    a: Annotated[numpy.ndarray, array("f32", "n", "k")]
    b: Annotated[numpy.ndarray, array("f32", "k", "m")]


class Many(msgspec.Struct):
    rows: list[Annotated[numpy.ndarray, array("f64", 3)]] = []
    maybe: Annotated[numpy.ndarray, array(None, 2, None)] | None = None
    named: dict[str, numpy.ndarray] = {}


class Point(msgspec.Struct, array_like=True):
    name: str
    x: Annotated[numpy.ndarray, array("f64", 3)]


class Places(msgspec.Struct):
    pair: tuple[str, Annotated[numpy.ndarray, array("f64", "n")]] | None = None
    point: Point | None = None


class Tree(msgspec.Struct):
    leaf: Annotated[numpy.ndarray, array(None, None)] | None = None
    left: Tree | None = None
    right: list[Tree] = []


class Noted(msgspec.Struct):
    x: numpy.ndarray
    note: str


class Size(msgspec.Struct):
    size: int  # bytes


class Binary(msgspec.Struct):
    data: bytes = b""
    view: memoryview = memoryview(b"")


@adapter.command("back", OneArray, lane="inline")
def back(args: OneArray, context: Context) -> dict[str, Any]:
    """Return the array."""
    return {"x": args.x}


@adapter.command("back_on_a_thread", OneArray)
def back_on_a_thread(args: OneArray, context: Context) -> dict[str, Any]:
    """Return the array from another thread, after sending it as an event."""
    context.emit("array", {"x": args.x})
    return {"x": args.x}


@adapter.command("tensor_back", OneTensor)
def tensor_back(args: OneTensor, context: Context) -> dict[str, Any]:
    """Return the tensor."""
    return {"x": args.x}


@adapter.command("anything", dict[str, Any])
def anything(args: dict[str, Any], context: Context) -> dict[str, Any]:
    """Return the args and their types."""
    return {"args": args, "types": {name: type(value).__name__ for name, value in args.items()}}


@adapter.command("matmul", Product)
def matmul(args: Product, context: Context) -> dict[str, Any]:
    """Return the product of two matrices."""
    return {"product": args.a @ args.b}


@adapter.command("many", Many)
def many(args: Many, context: Context) -> dict[str, Any]:
    """Return the number of arrays of each kind."""
    return {"rows": len(args.rows), "maybe": args.maybe is not None, "named": len(args.named)}


@adapter.command("binary", Binary)
def binary(args: Binary, context: Context) -> dict[str, Any]:
    """Return both values, swapped."""
    return {"data": args.view, "view": args.data}


@adapter.command("noted", Noted)
def noted(args: Noted, context: Context) -> dict[str, Any]:
    """Return the note."""
    return {"note": args.note}


@adapter.command("places", Places)
def places(args: Places, context: Context) -> dict[str, Any]:
    """Return the array of the pair."""
    return {"x": args.pair and args.pair[1]}


@adapter.command("tree", Tree)
def tree(args: Tree, context: Context) -> dict[str, Any]:
    """Return the type of the leaf."""
    return {"leaf": type(args.leaf).__name__, "has_left": args.left is not None}


@adapter.command("facts", OneArray)
def facts(args: OneArray, context: Context) -> dict[str, Any]:
    """Return the properties of an array."""
    x = args.x
    return {
        "dtype": str(x.dtype),
        "shape": list(x.shape),
        "writeable": bool(x.flags.writeable),
        "owns": bool(x.flags.owndata),
        "address": x.ctypes.data % 64,
    }


made_arrays: list[numpy.ndarray] = []


@adapter.command("make", Size, lane="inline")
def make(args: Size, context: Context) -> dict[str, Any]:
    """Make an array for `made`."""
    made_arrays[:] = [numpy.ones(args.size // 4, "f4")]
    return {}


@adapter.command("made", lane="inline")
def made(args: None, context: Context) -> dict[str, Any]:
    """Return the array that `make` has made."""
    return {"x": made_arrays[0]}


@adapter.command("traced", lane="inline")
def traced(args: None, context: Context) -> dict[str, int]:
    """Return the growth of Python's memory at its peak since the last call, in bytes."""
    if not tracemalloc.is_tracing():
        tracemalloc.start()
    peak = tracemalloc.get_traced_memory()[1] - traced_before[0]
    tracemalloc.reset_peak()
    traced_before[0] = tracemalloc.get_traced_memory()[0]
    return {"peak": peak}


traced_before = [0]


@adapter.command("ask", dict[str, Any])
def ask(args: dict[str, Any], context: Context) -> dict[str, Any]:
    """Return the result of the host's tool `double`."""
    call = {"name": "double", "args": args, "session_id": context.session_id or "default"}
    answer = context.call_host("call_tool", call)
    return {"x": answer, "type": type(answer).__name__}


class Three(msgspec.Struct, tag=True):
    x: Annotated[numpy.ndarray, array("f32", 3)]


class Two(msgspec.Struct, tag=True):
    x: Annotated[numpy.ndarray, array("f64", 2)]


class Row(msgspec.Struct, tag=True, array_like=True):
    x: Annotated[numpy.ndarray, array("f32", 3)]
    y: Annotated[numpy.ndarray, array("f32", 2)]


class Node(msgspec.Struct):
    w: Annotated[numpy.ndarray, array("f32", 3)]
    kids: list[Node] = []


class Pair(NamedTuple):
    name: str
    x: Annotated[numpy.ndarray, array("f32", 3)]


class Options(msgspec.Struct):
    depth: int = 0


class Several(msgspec.Struct):
    either: Three | Two | None = None
    row: Row | None = None
    tree: Node | None = None
    pair: Pair | None = None
    options: Options | None = None
    by_number: dict[int, int] = {}
    x: numpy.ndarray | None = None


@adapter.command("several", Several)
def several(args: Several, context: Context) -> dict[str, Any]:
    """Return the names of the args that were given."""
    return {"came": [name for name in Several.__struct_fields__ if getattr(args, name) is not None]}


buffer = bytearray(8000)


@adapter.command("own_buffer", lane="inline")
def own_buffer(args: None, context: Context) -> dict[str, Any]:
    """Return a buffer that the adapter goes on using."""
    return {"x": memoryview(buffer)}


@adapter.command("change_buffer", lane="inline")
def change_buffer(args: None, context: Context) -> dict[str, Any]:
    """Increment the buffer's first byte, and try to extend the buffer."""
    buffer[0] += 1
    with contextlib.suppress(BufferError):
        buffer.extend(b"more")
    return {}


@adapter.command("forge", dict[str, Any])
def forge(args: dict[str, Any], context: Context) -> dict[str, Any]:
    """Return a map that looks like a reference, and an array."""
    return {"x": numpy.zeros(2), "y": {"$buffer": 0}}


@adapter.command("ask_host", lane="thread")
def ask_host(args: None, context: Context) -> dict[str, Any]:
    """Return the result of a host's tool."""
    return {"answer": context.call_host("call_tool", {"name": "t", "args": {}})}
