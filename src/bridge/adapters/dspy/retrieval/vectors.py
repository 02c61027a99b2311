"""Vectors from outside as a matrix: of hosts, as arrays or lists of numbers, and of embedders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from bridge import errors
from bridge.errors import shown
from bridge.wire.tensors import Tensor, dimensions, is_array, substitute

MOST_DIMENSIONS = 65_536
LARGEST_NUMBER = 1e15  # so that products of vectors are finite
_SHORTEST_NORM = 1e-10  # DSPy's: a shorter vector is divided by this
_ACCEPTED = ("f16", "f32", "f64")


def matrix_of(value: Any, path: str, buffers: Sequence[Any] | None = None, *, rank: int = 2) -> Any:
    """Return vectors as a matrix of 32-bit floats; an array of these is not copied.

    value: an array of floats, or a list of lists of numbers. rank: 1 for a single vector, which becomes a matrix of one
    row. path: of the value, for errors. buffers: of the frame that it is from. Raises InvalidArgs for other types and
    shapes, and for numbers that are not finite or too large.
    """
    if not isinstance(value, list) and not is_array(value):
        value = _array(value, path, buffers)
    matrix = _of_array(value, path, rank) if is_array(value) else _of_lists(value, path, rank)
    matrix = np.atleast_2d(matrix)
    if not 0 < matrix.shape[1] <= MOST_DIMENSIONS:
        raise _wrong(path, f"vectors have 1 to {MOST_DIMENSIONS} numbers, not {matrix.shape[1]}")
    is_usable = np.abs(matrix) <= LARGEST_NUMBER
    if not is_usable.all():
        row, column = np.argwhere(~is_usable)[0]
        place = f"{path}[{column}]" if rank == 1 else f"{path}[{row}][{column}]"
        raise _wrong(place, f"{matrix[row, column]:g}, where a finite number of at most {LARGEST_NUMBER:g} is expected")
    return matrix


def unit_rows(matrix: Any) -> Any:
    """Return the rows of `matrix` with length 1."""
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    return matrix / np.maximum(norms, _SHORTEST_NORM)


def _array(value: Any, path: str, buffers: Sequence[Any] | None) -> Any:
    """Return the array that `value` encodes: the form of a tensor is decoded only where args declare one."""
    try:
        value = substitute(value, buffers)
    except msgspec.ValidationError as error:
        raise _wrong(path, str(error).partition(" - at `")[0]) from None
    if isinstance(value, Tensor):  # of a type that numpy lacks
        raise _wrong(path, f"{_expected()}, not {value}")
    if not is_array(value):
        raise _wrong(path, f"expected an array or a list of numbers, not {shown(value)}")
    return value


def _of_array(array: Any, path: str, rank: int) -> Any:
    name = f"{array.dtype.kind}{8 * array.dtype.itemsize}"
    if name not in _ACCEPTED:
        raise _wrong(path, f"{_expected()}, not {array.dtype}[{dimensions(array.shape)}]")
    if array.ndim != rank:
        wanted = "one vector [dimensions]" if rank == 1 else "a matrix [texts, dimensions]"
        raise _wrong(path, f"expected {wanted}, not {name}[{dimensions(array.shape)}]")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=np.float32)


def _of_lists(value: Any, path: str, rank: int) -> Any:
    try:
        rows = msgspec.convert([value] if rank == 1 else value, list[list[float]])
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        where = where.rstrip("`").removeprefix("[0]") if rank == 1 else where.rstrip("`")
        raise _wrong(f"{path}{where}", what) from None
    size = len(rows[0]) if rows else 0
    for number, row in enumerate(rows):
        if len(row) != size:
            raise _wrong(f"{path}[{number}]", f"{len(row)} numbers, where the vectors before it have {size}")
    with np.errstate(over="ignore"):
        return np.array(rows, dtype=np.float32).reshape(len(rows), size)


def _expected() -> str:
    return f"expected floats ({', '.join(_ACCEPTED)})"


def _wrong(path: str, why: str) -> errors.InvalidArgs:
    return errors.InvalidArgs(f"{path}: {why}", path=path)
