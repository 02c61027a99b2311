"""Avro: records of a schema that is made from the payload's."""

from __future__ import annotations

import io
from typing import Any

from bridge.bench.format import Format, Unsuitable
from bridge.bench.payloads import Payload
from bridge.bench.schema import Schema


class Avro(Format):
    """Records by fastavro's schemaless reader and writer: both peers know the schema."""

    name, about, packages = "avro", "records of a schema", ("fastavro",)
    flags, typed = "schemaless, schema parsed once", True

    def __init__(self, payload: Payload) -> None:
        import fastavro

        schema = fastavro.parse_schema(_avro_schema(payload.schema, "Message"))
        read, write = fastavro.schemaless_reader, fastavro.schemaless_writer

        def encode(native: Any) -> bytes:
            out = io.BytesIO()
            write(out, schema, native)
            return out.getvalue()

        self.encode = encode
        self.decode = lambda data: read(io.BytesIO(data), schema, None)


def _avro_schema(schema: Schema, name: str) -> Any:
    names = {"null": "null", "bool": "boolean", "int": "long", "float": "double", "str": "string"}
    branches: list[Any] = [{**names, "bytes": "bytes"}[scalar] for scalar in sorted(schema.scalars)]
    if schema.items is not None:
        branches.append({"type": "array", "items": _avro_schema(schema.items, f"{name}_entry")})
    if schema.fields is not None:
        if schema.optional:
            raise Unsuitable(f"some records lack {min(schema.optional)!r}, and Avro's have all fields")
        fields = [{"name": key, "type": _avro_schema(field, f"{name}_{key}")} for key, field in schema.fields.items()]
        branches.append({"type": "record", "name": name, "fields": fields})
    branches.sort(key=lambda branch: branch != "null")
    return branches[0] if len(branches) == 1 else branches or "null"
