"""The formats that are compared, one small class each; a user's own is one more."""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec

from bridge.bench.payloads import Payload
from bridge.bench.schema import Schema


class Unsuitable(Exception):
    """This format cannot carry that payload; the message says why."""


class Format:
    """One way to put values into bytes, made for one payload, in its library's documented best use.

    A value is what `Payload.messages` holds. `native` is what a program that uses the library
    holds: the value itself, a struct, a message, a table. `build` makes one of a value, `read`
    makes a value of one. Whatever is raised anywhere makes the pair of format and payload N/A.

    name, about: for the tables. packages: distributions whose versions are recorded.
    flags: what differs from the library's defaults. typed: it works with a declared type.
    through_bridge: its round trips go to a worker of this project, see `BRIDGE`.
    foreign: natives are not Python's objects, so that `build` and `read` belong to what a message
    costs and are timed with it.
    encode, decode: bytes-like of a native, a native of a memoryview. As attributes that `__init__`
    sets, they may be the library's own functions.
    """

    name: ClassVar[str] = ""
    about: ClassVar[str] = ""
    packages: ClassVar[tuple[str, ...]] = ()
    flags: ClassVar[str] = ""
    typed: ClassVar[bool] = False
    foreign: ClassVar[bool] = False
    through_bridge: ClassVar[bool] = False
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]

    def __init__(self, payload: Payload) -> None:
        """Imports the library, makes what is made once. Raises Unsuitable."""

    def build(self, value: Any) -> Any:
        return value

    def read(self, native: Any) -> Any:
        return native


class Json(Format):
    name, about = "json", "the standard library"
    flags = "compact separators, ensure_ascii=False, encoder made once"

    def __init__(self, payload: Payload) -> None:
        import json

        encode = json.JSONEncoder(
            separators=(",", ":"), ensure_ascii=False, allow_nan=False, check_circular=False
        ).encode
        self.encode = lambda native: encode(native).encode()
        self.decode = lambda data: json.loads(bytes(data))


class Orjson(Format):
    name, about, packages = "orjson", "JSON", ("orjson",)

    def __init__(self, payload: Payload) -> None:
        import orjson

        self.encode, self.decode = orjson.dumps, orjson.loads


class MsgspecJson(Format):
    name, about, packages = "msgspec-json", "JSON", ("msgspec",)
    flags = "encoder and decoder made once"

    def __init__(self, payload: Payload) -> None:
        self.encode, self.decode = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode


class MsgspecMessagePack(Format):
    name, about, packages = "msgspec-msgpack", "MessagePack", ("msgspec",)
    flags = "encoder and decoder made once"

    def __init__(self, payload: Payload) -> None:
        self.encode = msgspec.msgpack.Encoder().encode
        self.decode = msgspec.msgpack.Decoder().decode


class Etf(Format):
    name, about = "etf", "Erlang's external term format, this project's"
    packages, flags = ("dspex-bridge",), "encoder and decoder made once"

    def __init__(self, payload: Payload) -> None:
        from bridge.wire import _etf

        self.encode, self.decode = _etf.Encoder().encode, _etf.Decoder().decode


class Typed(Format):
    """Natives are msgspec structs."""

    typed = True

    def __init__(self, payload: Payload) -> None:
        super().__init__(payload)
        self.type = payload.type

    def build(self, value: Any) -> Any:
        return msgspec.convert(value, self.type)

    def read(self, native: Any) -> Any:
        return msgspec.to_builtins(native, builtin_types=(bytes,))


class MsgspecJsonTyped(Typed):
    name, about, packages = "msgspec-json-typed", "JSON, structs", ("msgspec",)
    flags = "encoder and decoder made once; bytes as base64"

    def __init__(self, payload: Payload) -> None:
        super().__init__(payload)
        self.encode = msgspec.json.Encoder().encode
        self.decode = msgspec.json.Decoder(self.type).decode


class MsgspecMessagePackTyped(Typed):
    name, about, packages = "msgspec-msgpack-typed", "MessagePack, structs", ("msgspec",)
    flags = "encoder and decoder made once"

    def __init__(self, payload: Payload) -> None:
        super().__init__(payload)
        self.encode = msgspec.msgpack.Encoder().encode
        self.decode = msgspec.msgpack.Decoder(self.type).decode


class EtfTyped(Typed):
    name, about = "etf-typed", "Erlang's external term format, structs"
    packages, flags = ("dspex-bridge", "msgspec"), "encoder and decoder made once"

    def __init__(self, payload: Payload) -> None:
        from bridge.wire import _etf

        super().__init__(payload)
        self.encode, self.decode = _etf.Encoder().encode, _etf.Decoder(self.type).decode


class MessagePack(Format):
    name, about, packages = "msgpack", "MessagePack", ("msgpack",)

    def __init__(self, payload: Payload) -> None:
        import msgpack

        self.encode, self.decode = msgpack.Packer().pack, msgpack.unpackb


class Ormsgpack(Format):
    name, about, packages = "ormsgpack", "MessagePack", ("ormsgpack",)

    def __init__(self, payload: Payload) -> None:
        import ormsgpack

        self.encode, self.decode = ormsgpack.packb, ormsgpack.unpackb


class Cbor(Format):
    name, about, packages = "cbor2", "CBOR", ("cbor2",)

    def __init__(self, payload: Payload) -> None:
        import cbor2

        self.encode, self.decode = cbor2.dumps, cbor2.loads


class Pickle(Format):
    name, about = "pickle", "Python's own; runs what it reads, so for trusted peers only"
    flags = "protocol 5"

    def __init__(self, payload: Payload) -> None:
        import pickle

        self.encode = lambda native: pickle.dumps(native, 5)
        self.decode = pickle.loads


class ProtobufStruct(Format):
    """struct_pb2.Value, what protobuf has for values without a schema."""

    name, about, packages = "protobuf-struct", "google.protobuf.Value", ("protobuf",)
    flags, foreign = "json_format.ParseDict and MessageToDict", True

    def __init__(self, payload: Payload) -> None:
        from google.protobuf import json_format, struct_pb2

        parse, to_dict, kind = json_format.ParseDict, json_format.MessageToDict, struct_pb2.Value
        self.build = lambda value: parse(value, kind())  # type: ignore[method-assign]
        self.read = to_dict  # type: ignore[method-assign]
        self.encode, self.decode = kind.SerializeToString, kind.FromString


class Protobuf(Format):
    """Messages of a proto3 schema, made at run time as protoc would make it."""

    name, about, packages = "protobuf", "messages of a schema", ("protobuf",)
    flags, typed, foreign = "proto3, upb, descriptors made at run time", True, True

    def __init__(self, payload: Payload) -> None:
        from bridge.bench.protobuf import message

        kind, build, read = message(payload.schema)
        self.build, self.read = build, read  # type: ignore[method-assign,assignment]
        self.encode, self.decode = kind.SerializeToString, kind.FromString


class Arrow(Format):
    """A table is a record batch, an array of numbers one column of it."""

    name, about, packages = "arrow", "a record batch as an IPC stream", ("pyarrow",)
    typed, foreign = True, True

    def __init__(self, payload: Payload) -> None:
        import pyarrow as pa

        rows = payload.schema.items
        if rows is None or payload.schema.kinds != ["list"]:
            raise Unsuitable("not a table or an array: Arrow's messages are columns")
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
        raise Unsuitable(f"a column of {' and '.join(schema.kinds) or 'nothing known'}")
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


class Avro(Format):
    """fastavro's schemaless reader and writer: the peers share the schema."""

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
            raise Unsuitable(f"some records have no {min(schema.optional)!r}: Avro's have all fields")
        fields = [{"name": key, "type": _avro_schema(field, f"{name}_{key}")} for key, field in schema.fields.items()]
        branches.append({"type": "record", "name": name, "fields": fields})
    branches.sort(key=lambda branch: branch != "null")
    return branches[0] if len(branches) == 1 else branches or "null"


BUILTIN: dict[str, type[Format]] = {
    kind.name: kind
    for kind in (
        *(Json, Orjson, MsgspecJson, MessagePack, Ormsgpack, MsgspecMessagePack, Cbor, Etf, Pickle),
        *(
            ProtobufStruct,
            MsgspecJsonTyped,
            MsgspecMessagePackTyped,
            EtfTyped,
            Protobuf,
            Avro,
            Arrow,
        ),
    )
}


class BridgeJson(MsgspecJson):
    name, about, through_bridge = "bridge-json", "a worker of this project, echo adapter", True


class BridgeMessagePack(MsgspecMessagePack):
    name, about, through_bridge = "bridge-msgpack", "a worker of this project, echo adapter", True


class BridgeEtf(Etf):
    name, about, through_bridge = "bridge-etf", "a worker of this project, echo adapter", True


# The same formats over the whole of this project's worker: envelope, dispatch, statistics.
BRIDGE: dict[str, type[Format]] = {kind.name: kind for kind in (BridgeJson, BridgeMessagePack, BridgeEtf)}


def load(name: str) -> type[Format]:
    """A built-in one, or `module:attr` of the operator's own, looked for in the current folder
    too. Raises ValueError with one line."""
    if (kind := BUILTIN.get(name) or BRIDGE.get(name)) is not None:
        return kind
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(f"no format {name!r}; there are {', '.join(BUILTIN)}, and module:attr")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise ValueError(f"--format {name}: {type(error).__name__}: {error}") from None
    if not (isinstance(kind, type) and issubclass(kind, Format)):
        raise ValueError(f"--format {name}: not a subclass of bridge.bench.Format")
    return kind
