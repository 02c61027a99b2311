"""The formats of frames: a table with one row for each. A new format is one more row.

Its functions for broken messages belong in `lenient.py`, and the one that counts its values in
`_limits.pyx`. `_frames.format_of` recognizes a frame's format by its beginning; `arrays.py` decodes
args with arrays.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import msgspec

from bridge.errors import InvalidArgs, Overloaded
from bridge.wire import _etf, lenient, tensors
from bridge.wire.messages import Envelope

_preparing = threading.Lock()


class Format:
    """Represents a format of messages, with its decoders and encoders, which are created once.

    module: has Decoder(type). beginnings: how a message in this format may begin: one byte each, or two
    where the first byte may begin a message in another format too.
    find_id: returns the id of a message that does not decode, or None.
    repair(message, replace): rewrites a message with strings that are not UTF-8, see `decode_args`.
    carries_nan: whether it can carry NaN and infinities.
    has_text_keys: whether keys of maps are always text.
    has_bytes: whether it distinguishes text from bytes; if not, a binary that is UTF-8 is decoded as text.
    longest_binary: bytes of a binary that stays in the envelope; longer ones get a buffer if the peer accepts them.
    """

    def __init__(
        self,
        name: str,
        module: Any,
        encoder: Any,
        beginnings: tuple[bytes, ...],
        find_id: Callable[[Any], int | str | None],
        repair: Callable[[bytes, bool], bytes],
        carries_nan: bool = False,
        has_text_keys: bool = False,
        has_bytes: bool = True,
        longest_binary: int = 4096,
    ) -> None:
        self.name = name
        self.beginnings = beginnings
        self.find_id = find_id
        self.repair = repair
        self.carries_nan = carries_nan
        self.has_text_keys = has_text_keys
        self.has_bytes = has_bytes
        self.longest_binary = longest_binary
        self.decode_envelope: Callable[[Any], Envelope] = module.Decoder(Envelope).decode
        self.encode_into: Callable[[Any, bytearray], None] = encoder.encode_into
        self.encode: Callable[[Any], bytes] = encoder.encode
        self._no_args: bytes = encoder.encode({})
        empty = module.Decoder(list[msgspec.Raw]).decode(encoder.encode([None, [], {}]))
        self._empty = (msgspec.Raw(), *empty)
        self._decoder = module.Decoder
        self._decoders: dict[Any, Callable[[Any], Any]] = {}

    def decode(self, data: Any, type: Any = Any) -> Any:
        """Return `data` (a buffer) as `type`. Raises what msgspec raises."""
        decode = self._decoders.get(type)
        if decode is None:
            decode = self._prepare(type)
        return decode(data)

    def decode_or_none(self, data: Any, type: Any) -> Any:
        """Return `data` (a buffer) as `type`, or None if it cannot be decoded as that."""
        try:
            return self.decode(data, type)
        except (msgspec.MsgspecError, ValueError):
            return None

    def prepare(self, type: Any) -> None:
        """Make the decoder of `type`, unless there is one."""
        if type not in self._decoders:
            self._prepare(type)

    def _prepare(self, type: Any) -> Callable[[Any], Any]:
        # Under a lock, because msgspec's description of a type, which all formats share, is visible to other threads
        # before it is complete.
        with _preparing:
            msgspec.msgpack.Decoder(type)
            return self._decoders.setdefault(type, self._decoder(type).decode)

    def is_empty(self, raw: msgspec.Raw) -> bool:
        """Return whether an undecoded value is missing, null, an empty list or an empty map."""
        return raw in self._empty

    def decode_args(
        self,
        raw: msgspec.Raw,
        type: Any,
        *,
        path: str = "args",
        undecodable: str = "bytes",
        decode: Callable[[Any, Any, str], Any] | None = None,
    ) -> Any:
        """Return the args of a request as `type`. Missing args and null count as an empty map, and so does
        an empty list where the type has a map.

        undecodable: what becomes of strings that are not UTF-8: "bytes" (if the format has them),
        "replace" (their invalid bytes become U+FFFD), "refuse". decode(data, type, undecodable):
        decodes args with arrays or buffers (`arrays.args_decoder`). Raises InvalidArgs with the path
        below `path`.
        """
        data = self._no_args if raw in self._empty else raw
        if decode is None:
            decode = self.decode_lenient
        try:
            if undecodable == "replace" and not self.has_bytes:
                data = self.repair(bytes(data), True)
            try:
                return decode(data, type, undecodable)
            except msgspec.ValidationError:
                replaced = self._with_empty_maps(data, type)
                if replaced is None:
                    raise
                return decode(replaced, type, undecodable)
        except msgspec.ValidationError as error:
            raise self._unknown(data, type, path) or _invalid_args(str(error), path) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidArgs(f"{path} is not valid {self.name}: {error}", path=path) from None
        except RecursionError:
            raise InvalidArgs(f"{path} is nested too deeply", path=path) from None
        except MemoryError:
            raise Overloaded.without_memory(f"to decode {path}") from None

    def decode_lenient(self, data: Any, type: Any, undecodable: str) -> Any:
        """Return `data` (a buffer) as `type`; strings that are not UTF-8 as `decode_args` describes."""
        try:
            return self.decode(data, type)
        except UnicodeDecodeError:
            if undecodable == "refuse":
                raise
            return self.decode(self.repair(bytes(data), undecodable == "replace"), type)

    # Both import modules that are needed only for args that do not match their type.

    def _with_empty_maps(self, data: Any, type: Any) -> msgspec.Raw | None:
        from bridge.wire.empty_maps import EmptyMaps

        return EmptyMaps(self.decode, self.encode).replaced(data, type)

    def _unknown(self, data: Any, type: Any, path: str) -> InvalidArgs | None:
        """Return the error for args that the type does not have, or None if there are none."""
        from bridge.wire.unknown_args import unknown_args

        try:
            value = self.decode_lenient(data, Any, "bytes")
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None
        return unknown_args(value, type, path)


JSON = Format(
    "json",
    msgspec.json,
    encoder=msgspec.json.Encoder(enc_hook=tensors.encode_json_hook),
    beginnings=(b"{", b" ", b"\t", b"\r", b"\n"),
    find_id=lenient.json_id,
    repair=lenient.json_repair,
    has_text_keys=True,
)
MSGPACK = Format(
    "msgpack",
    msgspec.msgpack,
    encoder=msgspec.msgpack.Encoder(enc_hook=tensors.encode_hook),
    beginnings=tuple(bytes([first]) for first in (*range(0x80, 0x90), 0xDE, 0xDF)),
    find_id=lenient.msgpack_id,
    repair=lenient.msgpack_repair,
    carries_nan=True,
    longest_binary=1 << 16,  # copying them costs less than a multipart frame
)
ETF = Format(
    "etf",
    _etf,
    encoder=_etf.Encoder(tensors.ATOMS, enc_hook=tensors.encode_etf_hook),
    # A map, a compressed term. 0x83 also begins a MessagePack map, but a string follows it there.
    beginnings=(b"\x83t", b"\x83P"),
    find_id=lenient.etf_id,
    repair=lenient.etf_repair,
    has_bytes=False,
)
FORMATS = (JSON, MSGPACK, ETF)


def by_name(name: str) -> Format | None:
    """Return the format called `name` in negotiation and on the command line, or None."""
    return next((known for known in FORMATS if known.name == name), None)


# Compiled at first use, because compiling takes part of a worker's start.
_EXPECTED = r"Expected `(?P<expected>[^`]+)`"
_PATH = r" - at (?P<key>`key` in )?`\$(?P<path>[^`]*)`$"
_FIELD = r"field `(?P<field>[^`]+)`"


def _invalid_args(message: str, root: str) -> InvalidArgs:
    """Return msgspec's error with the path as hosts know it: `args.signature.inputs[0]`."""
    expected, path, field = (re.search(p, message) for p in (_EXPECTED, _PATH, _FIELD))
    where = root + (path["path"] if path else "") + (f".{field['field']}" if field else "")
    details = {"path": where, **({"expected": expected["expected"]} if expected else {})}
    kind = "a key: " if path and path["key"] else ""
    return InvalidArgs(f"{where}: {kind}{re.sub(_PATH, '', message)}", **details)
