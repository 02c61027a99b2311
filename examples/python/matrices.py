"""Arrays as args and results, without a copy in either direction:

python -m bridge worker --adapter matrices:adapter     (with this folder on PYTHONPATH)
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy

from bridge import Adapter, Context, array

adapter = Adapter("matrices")


class Product(msgspec.Struct):
    a: Annotated[numpy.ndarray, array("f32", "n", "k")]
    b: Annotated[numpy.ndarray, array("f32", "k", "m")]


@adapter.command("multiply", Product, idempotent=True)
def multiply(args: Product, context: Context) -> dict[str, numpy.ndarray]:
    """Multiply two matrices. Args of other types or shapes are refused before this runs."""
    return {"product": args.a @ args.b}
