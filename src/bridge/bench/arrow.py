"""Arrow: record batches, whose types come from the payload's schema."""

from __future__ import annotations

from typing import Any

from bridge.bench.format import Format, Unsuitable
from bridge.bench.payloads import Payload
from bridge.bench.schema import Schema


class Arrow(Format):
    """A record batch as an IPC stream: a table, or one column for an array of numbers."""

    name, about, packages = "arrow", "a record batch as an IPC stream", ("pyarrow",)
    typed, foreign = True, True

    def __init__(self, payload: Payload) -> None:
        import pyarrow as pa

        rows = payload.schema.items
        if rows is None or payload.schema.kinds != ["list"]:
            raise Unsuitable("not a table or an array, and Arrow has columns only")
        self.table = rows.kinds == ["record"]
        if not self.table and not set(rows.kinds) <= {"int", "float"}:
            raise Unsuitable("not a table or an array of numbers")
        column = _arrow_type(pa, rows)
        self.schema = pa.schema(column if self.table else [("value", column)])
        self.pa, self.column = pa, column

    def build(self, value: Any) -> Any:
        if self.table:
            return self.pa.RecordBatch.from_pylist(value, schema=self.schema)
        return self.pa.record_batch([self.pa.array(value, self.column)], schema=self.schema)

    def encode(self, native: Any) -> Any:
        sink = self.pa.BufferOutputStream()
        with self.pa.ipc.new_stream(sink, self.schema) as stream:
            stream.write_batch(native)
        return sink.getvalue()

    def decode(self, data: Any) -> Any:
        return self.pa.ipc.open_stream(data).read_next_batch()

    def read(self, native: Any) -> Any:
        return native.to_pylist() if self.table else native.column(0).to_pylist()


def _arrow_type(pa: Any, schema: Schema) -> Any:
    if len(schema.kinds) != 1:
        raise Unsuitable(f"a column of {' and '.join(schema.kinds) or 'unknown type'}")
    (kind,) = schema.kinds
    if schema.items is not None:
        return pa.list_(_arrow_type(pa, schema.items))
    if schema.fields is not None:
        return pa.struct([(key, _arrow_type(pa, field)) for key, field in schema.fields.items()])
    names = {
        "int": "int64",
        "float": "float64",
        "str": "string",
        "bytes": "binary",
        "bool": "bool_",
    }
    return getattr(pa, names[kind])()
