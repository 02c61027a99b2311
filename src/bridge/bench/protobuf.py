"""Protobuf messages of an inferred schema: their descriptors, made at run time, and conversion from and to values."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from bridge.bench.format import Unsuitable
from bridge.bench.schema import Schema

Field = descriptor_pb2.FieldDescriptorProto
PACKAGE = "bridge_bench"
TYPES = {
    "bool": Field.TYPE_BOOL,
    "int": Field.TYPE_INT64,
    "float": Field.TYPE_DOUBLE,
    "str": Field.TYPE_STRING,
    "bytes": Field.TYPE_BYTES,
}
# Protobuf has no message for a bare list: a list of lists wraps each inner list in a message with this one field.
WRAPPED = "entries"

Convert = Callable[[Any], Any]


def message(schema: Schema) -> tuple[Any, Convert, Convert]:
    """Return the message class of `schema`, and functions from value to message and back. Raises Unsuitable."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{PACKAGE}.proto", package=PACKAGE, syntax="proto3")
    wrapped = schema.kinds == ["list"]
    if wrapped:
        schema = Schema(fields={WRAPPED: schema})
    if schema.kinds != ["record"] or schema.nullable:
        raise Unsuitable("protobuf's messages are records")
    _declare(file, schema, "Message")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.Message"))
    prepare, read = _preparer(schema) or (lambda value: value), _reader(schema)
    if wrapped:
        return (
            kind,
            lambda value: kind(**prepare({WRAPPED: value})),
            lambda native: read(native)[WRAPPED],
        )
    return kind, lambda value: kind(**prepare(value)), read


def _declare(file: Any, schema: Schema, name: str) -> None:
    record = file.message_type.add(name=name)
    for number, (key, field) in enumerate((schema.fields or {}).items(), 1):
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", key):
            raise Unsuitable(f"the key {key!r} cannot be the name of a protobuf field")
        entry = record.field.add(name=key, number=number, label=Field.LABEL_OPTIONAL)
        one = field
        if field.kinds == ["list"]:
            if field.nullable or key in schema.optional:
                raise Unsuitable(
                    f"{key!r} is sometimes missing, and protobuf cannot distinguish that from an empty list"
                )
            entry.label = Field.LABEL_REPEATED
            assert field.items is not None
            one = field.items
            if one.nullable:
                raise Unsuitable(f"null among the entries of {key!r}")
        elif not field.kinds and not field.nullable:
            raise Unsuitable(f"the type of {key!r} is unknown")
        elif (field.nullable or key in schema.optional) and field.kinds != ["record"]:
            # protoc writes `optional` as a oneof with one field.
            entry.proto3_optional = True
            entry.oneof_index = len(record.oneof_decl)
            record.oneof_decl.add(name=f"_{key}")
        _set_type(file, entry, one, f"{name}_{key}")


def _set_type(file: Any, entry: Any, schema: Schema, name: str) -> None:
    if len(schema.kinds) > 1:
        raise Unsuitable(f"{entry.name!r} is {' or '.join(schema.kinds)}")
    kind = schema.kinds[0] if schema.kinds else "str"  # always null, or a list always empty
    if kind in TYPES:
        entry.type = TYPES[kind]
        if kind == "int" and schema.negative:
            entry.type = Field.TYPE_SINT64
        return
    entry.type, entry.type_name = Field.TYPE_MESSAGE, f".{PACKAGE}.{name}"
    _declare(file, Schema(fields={WRAPPED: schema}) if kind == "list" else schema, name)


def _preparer(schema: Schema) -> Convert | None:
    """Return a function that wraps lists of lists for a message's constructor, or None if there are none."""
    if schema.fields is not None:
        changes = {k: p for k, field in schema.fields.items() if (p := _preparer(field))}
        if not changes:
            return None
        return lambda value: {
            key: changes[key](entry) if key in changes and entry is not None else entry for key, entry in value.items()
        }
    if schema.items is not None:
        entry = _preparer(schema.items)
        if schema.items.kinds == ["list"]:
            wrap = entry or (lambda value: value)
            return lambda value: [{WRAPPED: wrap(inner)} for inner in value]
        return None if entry is None else lambda value: [entry(inner) for inner in value]
    return None


def _reader(schema: Schema) -> Convert:
    """Return a function that reads every value of a message, field by field."""
    if schema.fields is None:
        return lambda value: value
    plain: list[tuple[str, Convert, bool]] = []
    present: list[tuple[str, Convert, bool]] = []
    for key, field in schema.fields.items():
        sometimes = field.nullable or key in schema.optional
        entry = (key, _field_reader(field), key in schema.optional)
        (present if sometimes else plain).append(entry)

    def read(native: Any) -> dict[str, Any]:
        value = {key: convert(getattr(native, key)) for key, convert, _ in plain}
        for key, convert, may_miss in present:
            if native.HasField(key):
                value[key] = convert(getattr(native, key))
            elif not may_miss:
                value[key] = None
        return value

    return read


def _field_reader(schema: Schema) -> Convert:
    if schema.items is None:
        return _reader(schema)
    if schema.items.fields is None and schema.items.items is None:
        return list
    entry = _field_reader(schema.items)
    if schema.items.kinds == ["list"]:
        return lambda values: [entry(getattr(inner, WRAPPED)) for inner in values]
    return lambda values: [entry(inner) for inner in values]
