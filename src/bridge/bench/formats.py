"""The formats that are compared, and the table of them: a class, and a row in `BUILTIN`, add one."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import msgspec

from bridge.bench.arrow import Arrow
from bridge.bench.avro import Avro
from bridge.bench.format import Format
from bridge.bench.payloads import Payload


class Json(Format):
    """The standard library's JSON."""

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
    """orjson's JSON."""

    name, about, packages = "orjson", "JSON", ("orjson",)

    def __init__(self, payload: Payload) -> None:
        import orjson

        self.encode, self.decode = orjson.dumps, orjson.loads


class MsgspecJson(Format):
    """msgspec's JSON."""

    name, about, packages = "msgspec-json", "JSON", ("msgspec",)
    flags = "encoder and decoder made once"

    def __init__(self, payload: Payload) -> None:
        self.encode, self.decode = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode


class MsgspecMessagePack(Format):
    """msgspec's MessagePack."""

    name, about, packages = "msgspec-msgpack", "MessagePack", ("msgspec",)
    flags = "encoder and decoder made once"

    def __init__(self, payload: Payload) -> None:
        self.encode = msgspec.msgpack.Encoder().encode
        self.decode = msgspec.msgpack.Decoder().decode


class Etf(Format):
    """Erlang's external term format, as this project encodes it."""

    name, about = "etf", "Erlang's external term format, this project's"
    packages, flags = ("dspex-bridge",), "encoder and decoder made once"

    def __init__(self, payload: Payload) -> None:
        from bridge.wire import _etf

        self.encode, self.decode = _etf.Encoder().encode, _etf.Decoder().decode


class Typed(Format):
    """A format whose natives are msgspec structs."""

    typed = True

    def __init__(self, payload: Payload) -> None:
        super().__init__(payload)
        self.type = payload.type

    def build(self, value: Any) -> Any:
        return msgspec.convert(value, self.type)

    def read(self, native: Any) -> Any:
        return msgspec.to_builtins(native, builtin_types=(bytes,))


class MsgspecJsonTyped(Typed):
    """msgspec's JSON, to and from structs."""

    name, about, packages = "msgspec-json-typed", "JSON, structs", ("msgspec",)
    flags = "encoder and decoder made once; bytes as base64"

    def __init__(self, payload: Payload) -> None:
        super().__init__(payload)
        self.encode = msgspec.json.Encoder().encode
        self.decode = msgspec.json.Decoder(self.type).decode


class MsgspecMessagePackTyped(Typed):
    """msgspec's MessagePack, to and from structs."""

    name, about, packages = "msgspec-msgpack-typed", "MessagePack, structs", ("msgspec",)
    flags = "encoder and decoder made once"

    def __init__(self, payload: Payload) -> None:
        super().__init__(payload)
        self.encode = msgspec.msgpack.Encoder().encode
        self.decode = msgspec.msgpack.Decoder(self.type).decode


class EtfTyped(Typed):
    """Erlang's external term format, to and from structs."""

    name, about = "etf-typed", "Erlang's external term format, structs"
    packages, flags = ("dspex-bridge", "msgspec"), "encoder and decoder made once"

    def __init__(self, payload: Payload) -> None:
        from bridge.wire import _etf

        super().__init__(payload)
        self.encode, self.decode = _etf.Encoder().encode, _etf.Decoder(self.type).decode


class MessagePack(Format):
    """The MessagePack of the msgpack package."""

    name, about, packages = "msgpack", "MessagePack", ("msgpack",)

    def __init__(self, payload: Payload) -> None:
        import msgpack

        self.encode, self.decode = msgpack.Packer().pack, msgpack.unpackb


class Ormsgpack(Format):
    """ormsgpack's MessagePack."""

    name, about, packages = "ormsgpack", "MessagePack", ("ormsgpack",)

    def __init__(self, payload: Payload) -> None:
        import ormsgpack

        self.encode, self.decode = ormsgpack.packb, ormsgpack.unpackb


class Cbor(Format):
    """cbor2's CBOR."""

    name, about, packages = "cbor2", "CBOR", ("cbor2",)

    def __init__(self, payload: Payload) -> None:
        import cbor2

        self.encode, self.decode = cbor2.dumps, cbor2.loads


class Pickle(Format):
    """The standard library's pickle."""

    name, about = "pickle", "Python's own; executes what it reads, so for trusted peers only"
    flags = "protocol 5"

    def __init__(self, payload: Payload) -> None:
        import pickle

        self.encode = lambda native: pickle.dumps(native, 5)
        self.decode = pickle.loads


class ProtobufStruct(Format):
    """struct_pb2.Value, protobuf's message for values without a schema."""

    name, about, packages = "protobuf-struct", "google.protobuf.Value", ("protobuf",)
    flags, foreign = "json_format.ParseDict and MessageToDict", True

    def __init__(self, payload: Payload) -> None:
        from google.protobuf import json_format, struct_pb2

        parse, to_dict, kind = json_format.ParseDict, json_format.MessageToDict, struct_pb2.Value
        self.build = lambda value: parse(value, kind())  # type: ignore[method-assign]
        self.read = to_dict  # type: ignore[method-assign]
        self.encode, self.decode = kind.SerializeToString, kind.FromString


class Protobuf(Format):
    """Messages of a proto3 schema, made at run time with the descriptors that protoc would write."""

    name, about, packages = "protobuf", "messages of a schema", ("protobuf",)
    flags, typed, foreign = "proto3, upb, descriptors made at run time", True, True

    def __init__(self, payload: Payload) -> None:
        from bridge.bench.protobuf import message

        kind, build, read = message(payload.schema)
        self.build, self.read = build, read  # type: ignore[method-assign,assignment]
        self.encode, self.decode = kind.SerializeToString, kind.FromString


BUILTIN: dict[str, type[Format]] = {
    kind.name: kind
    for kind in (
        Json,
        Orjson,
        MsgspecJson,
        MessagePack,
        Ormsgpack,
        MsgspecMessagePack,
        Cbor,
        Etf,
        Pickle,
        ProtobufStruct,
        MsgspecJsonTyped,
        MsgspecMessagePackTyped,
        EtfTyped,
        Protobuf,
        Avro,
        Arrow,
    )
}


class BridgeJson(MsgspecJson):
    """JSON through a worker of this project."""

    name, about, through_bridge = "bridge-json", "a worker of this project, echo adapter", True


class BridgeMessagePack(MsgspecMessagePack):
    """MessagePack through a worker of this project."""

    name, about, through_bridge = "bridge-msgpack", "a worker of this project, echo adapter", True


class BridgeEtf(Etf):
    """ETF through a worker of this project."""

    name, about, through_bridge = "bridge-etf", "a worker of this project, echo adapter", True


# These go through a whole worker of this project: envelope, dispatch, statistics.
BRIDGE: dict[str, type[Format]] = {kind.name: kind for kind in (BridgeJson, BridgeMessagePack, BridgeEtf)}


def load(name: str) -> type[Format]:
    """Return a format by its name, or by `module:attr`, which is searched in the current folder too.

    Raises ValueError with one line.
    """
    if (kind := BUILTIN.get(name) or BRIDGE.get(name)) is not None:
        return kind
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(f"unknown format {name!r}; known: {', '.join(BUILTIN)}, and module:attr")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise ValueError(f"--format {name}: {type(error).__name__}: {error}") from None
    if not (isinstance(kind, type) and issubclass(kind, Format)):
        raise ValueError(f"--format {name}: not a subclass of bridge.bench.Format")
    return kind
