"""Helpers for tests of session data that is written in one format and read in another."""

from __future__ import annotations

import itertools
import math

from bridge import Atom, Dispatcher, Opaque
from bridge.adapters.echo import adapter
from bridge.wire._etf import Encoder
from bridge.wire.codec import ETF, JSON, MSGPACK
from bridge.worker.stores.sqlite import SQLiteStore

FORMATS = (JSON, MSGPACK, ETF)


ids = itertools.count(1)


# Sends atoms as a host on the BEAM does.
as_a_beam = Encoder(["a", "b", "f", "hello", "k", "ok", "tensor", "u", "x"]).encode


class Workers:
    """Workers that share a store. `steal` and `restart` change which of them answers."""

    def __init__(self, path):
        self.path = path
        self.stores = []
        self.start()
        self.ask(JSON, "create_session", {"durable": True})

    def start(self):
        self.stores.append(SQLiteStore(self.path))
        self.worker = Dispatcher(adapter, store=self.stores[-1])

    steal = start

    def restart(self):
        self.close()
        self.start()

    def close(self):
        for store in self.stores:
            store.close()
        self.stores = []

    def call(self, format, command, args):
        request = {"id": next(ids), "command": command, "args": args, "session_id": "s"}
        frame = as_a_beam(request) if format is ETF else format.encode(request)
        return self.send(format, frame)

    def send(self, format, frame):
        reply = self.worker.call(frame, 60)
        if format is ETF:
            assert not foreign_atoms(ETF.decode(reply))
        return format.decode(reply)

    def ask(self, format, command, args):
        reply = self.call(format, command, args)
        assert reply["success"], reply
        return reply["result"]

    def write(self, format, value, key="k"):
        return self.call(format, "update_session_data", {"key": key, "value": value})

    def read(self, format, key="k"):
        reply = self.call(format, "get_session_data", {"key": key})
        return reply["result"]["data"][key] if reply["success"] else reply


def foreign_atoms(value):
    """Return the atoms in a value that `binary_to_term(_, [:safe])` may refuse, and terms that contain them."""
    if isinstance(value, Atom | Opaque):
        return [value]
    if isinstance(value, dict):
        return foreign_atoms([*value.keys(), *value.values()])
    if isinstance(value, tuple) and value[:1] == ("tensor",):
        return []
    return [atom for each in value for atom in foreign_atoms(each)] if is_many(value) else []


def is_many(value):
    return isinstance(value, list | tuple)


NOT_UTF8 = b"\xff\x00\x80"


def same(read, expected):
    """Return whether two values are equal and have equal types at every level."""
    if type(read) is not type(expected):
        return False
    if isinstance(read, dict):
        pairs = zip(sorted(read, key=repr), sorted(expected, key=repr), strict=False)
        are_same = all(same(a, b) and same(read[a], expected[b]) for a, b in pairs)
        return len(read) == len(expected) and are_same
    if is_many(read):
        return len(read) == len(expected) and all(map(same, read, expected))
    if isinstance(read, float) and math.isnan(read):
        return math.isnan(expected)
    return read == expected
