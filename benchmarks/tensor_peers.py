"""The other processes of `tensors.py`: an adapter's commands, and workers with other formats.

python benchmarks/tensor_peers.py pickle|pyarrow      a worker on stdin and stdout
"""

from __future__ import annotations

import pickle
import struct
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import numpy

from bridge import Adapter, Context
from bridge._framing import Reader, Writer

MAX_FRAME = 1 << 30  # bytes

adapter = Adapter("tensors")


class Array(msgspec.Struct):
    x: numpy.ndarray


class Values(msgspec.Struct):
    x: list[float]


class Size(msgspec.Struct):
    size: int  # bytes


@adapter.command("back", Array, lane="inline")
def back(args: Array, context: Context) -> dict[str, Any]:
    """Return the array."""
    return {"x": args.x}


@adapter.command("values_back", Values, lane="inline")
def values_back(args: Values, context: Context) -> dict[str, Any]:
    """Return the numbers of a list, after converting them to an array and back."""
    return {"x": numpy.array(args.x, "f4").tolist()}


@adapter.command("take", Array, lane="inline")
def take(args: Array, context: Context) -> dict[str, int]:
    """Return the size of the array."""
    return {"size": args.x.nbytes}


arrays: dict[int, numpy.ndarray] = {}


@adapter.command("give", Size, lane="inline")
def give(args: Size, context: Context) -> dict[str, Any]:
    """Return an array of that size, the same object each time."""
    if args.size not in arrays:
        arrays.clear()
        arrays[args.size] = numpy.ones(args.size // 4, "f4")
    return {"x": arrays[args.size]}


def pickled(x: numpy.ndarray) -> list[Any]:
    """Encode with pickle 5 and an out-of-band buffer: a length, the pickle, the array's bytes."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(x, protocol=5, buffer_callback=buffers.append)
    return [struct.pack(">I", len(head)), head, *(buffer.raw() for buffer in buffers)]


def unpickled(frame: Any) -> numpy.ndarray:
    view = memoryview(frame)
    (length,) = struct.unpack(">I", view[:4])
    return pickle.loads(view[4 : 4 + length], buffers=[view[4 + length :]])


def in_arrow(x: numpy.ndarray) -> list[Any]:
    """Encode as a tensor of pyarrow's IPC format."""
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    pyarrow.ipc.write_tensor(pyarrow.Tensor.from_numpy(x), sink)
    return [sink.getvalue()]


def from_arrow(frame: Any) -> numpy.ndarray:
    import pyarrow

    return pyarrow.ipc.read_tensor(pyarrow.py_buffer(frame)).to_numpy()


Way = tuple[Callable[[numpy.ndarray], list[Any]], Callable[[Any], numpy.ndarray]]
WAYS: dict[str, Way] = {"pickle": (pickled, unpickled), "pyarrow": (in_arrow, from_arrow)}


def main() -> None:
    encode, decode = WAYS[sys.argv[1]]
    reader, writer = Reader(0, MAX_FRAME), Writer(1)
    while (frame := reader.read()) is not None:
        x = decode(frame)
        writer.send(*encode(x))
        del frame, x


if __name__ == "__main__":
    main()
