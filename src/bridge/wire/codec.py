"""The formats a frame may be in: a table, one entry each. How a frame begins tells which."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from bridge.errors import InvalidArgs, Overloaded
from bridge.wire import _etf, _walk, arrays, lenient, tensors
from bridge.wire.empty_maps import EmptyMaps
from bridge.wire.messages import Request
from bridge.wire.unknown_args import unknown_args

_preparing = threading.Lock()


class Format:
    """One format. Decoders and encoders are made once and kept.

    beginnings: the first bytes of a message in this format, one byte each; two where the first
    byte may begin a message in another format too.
    find_id: reads the id of a message that does not decode (None: it cannot).
    repair(message, replace): rewrites one whose strings are not all UTF-8, see `decode_args`.
    carries_nan: it has NaN and infinities.
    lossy: its encoder writes null for those, without a word.
    tells_text: strings and bytes differ in it. Where they do not, what is UTF-8 is a string.
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
        lossy: bool = False,
        tells_text: bool = True,
    ) -> None:
        self.name = name
        self.beginnings = beginnings
        self.find_id = find_id
        self.repair = repair
        self.carries_nan = carries_nan
        self.lossy = lossy
        self.tells_text = tells_text
        self.decode_request: Callable[[Any], Request] = module.Decoder(Request).decode
        self.encode_into: Callable[[Any, bytearray, int], None] = encoder.encode_into
        self.encode: Callable[[Any], bytes] = encoder.encode
        self._no_args: bytes = encoder.encode({})
        nothing = module.Decoder(list[msgspec.Raw]).decode(encoder.encode([None, []]))
        self._absent = (msgspec.Raw(), *nothing)
        self._empty_maps = EmptyMaps(self.decode, encoder.encode)
        self._decoder = module.Decoder
        self._decoders: dict[Any, Callable[[Any], Any]] = {}

    def decode(self, data: Any, type: Any = Any) -> Any:
        """`data` (a buffer) as `type`. Raises what msgspec raises."""
        decode = self._decoders.get(type)
        if decode is None:
            decode = self._prepare(type)
        return decode(data)

    def _prepare(self, type: Any) -> Callable[[Any], Any]:
        """The decoder of `type`, made. msgspec completes what it knows of a type, for all formats
        together, step by step where other threads see it already: so one at a time."""
        with _preparing:
            msgspec.msgpack.Decoder(type)
            return self._decoders.setdefault(type, self._decoder(type).decode)

    def decode_args(
        self,
        raw: msgspec.Raw,
        type: Any,
        *,
        path: str = "args",
        undecodable: str = "bytes",
        buffers: Sequence[Any] | None = None,
        has_arrays: bool = False,
    ) -> Any:
        """The args of a request as `type`; missing ones and null are an empty map, and so is an
        empty list where the type has a map.

        buffers: those of the frame, if it is a multipart one. has_arrays: the type holds some.
        undecodable: what becomes of strings that are not UTF-8: "bytes" (where the format has
        them), "replace" (what can be read of them stays), "refuse". Raises InvalidArgs, with the
        place below `path`.
        """
        data = self._no_args if raw in self._absent else raw
        try:
            if undecodable == "replace" and not self.tells_text:
                data = self.repair(bytes(data), True)
            try:
                return self._decode_as(data, type, undecodable, buffers, has_arrays)
            except msgspec.ValidationError:
                replaced = self._empty_maps.replaced(data, type)
                if replaced is None:
                    raise
                return self._decode_as(replaced, type, undecodable, buffers, has_arrays)
        except msgspec.ValidationError as error:
            raise self._unknown(data, type, path) or _invalid_args(str(error), path) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidArgs(f"{path} is not valid {self.name}: {error}", path=path) from None
        except RecursionError:
            raise InvalidArgs(f"{path} is nested too deeply", path=path) from None
        except MemoryError:
            raise Overloaded.without_memory(f"to decode {path}") from None

    def _decode_as(
        self,
        data: Any,
        type: Any,
        undecodable: str,
        buffers: Sequence[Any] | None,
        has_arrays: bool,
    ) -> Any:
        as_it_is = type is msgspec.Raw or buffers is None or not _refers(data)
        if as_it_is and not has_arrays:
            return self._decode_repaired(data, type, undecodable)
        value = self._decode_repaired(data, Any, undecodable)
        if arrays.keeps_bytes(type):  # then the bytes have to hold all
            return self.decode(self.encode(tensors.resolve(value, buffers)), type)
        if type not in self._decoders:
            self._prepare(type)
        return arrays.convert(value, type, buffers, str_keys=self.lossy, tells_text=self.tells_text)

    def _unknown(self, data: Any, type: Any, path: str) -> InvalidArgs | None:
        """The error for keys in the args that the type does not have, if there are any."""
        try:
            value = self._decode_repaired(data, Any, "bytes")
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None
        return unknown_args(value, type, path)

    def _decode_repaired(self, data: Any, type: Any, undecodable: str) -> Any:
        try:
            return self.decode(data, type)
        except UnicodeDecodeError:
            if undecodable == "refuse":
                raise
            return self.decode(self.repair(bytes(data), undecodable == "replace"), type)


def _refers(data: Any) -> bool:
    """Whether there may be a reference to a buffer in encoded args."""
    encoded = bytes(data)
    return _walk.BUFFER.encode() in encoded or b"\\u" in encoded  # which may hide one in JSON


JSON = Format(
    "json",
    msgspec.json,
    msgspec.json.Encoder(enc_hook=tensors.encode_json_hook),
    (b"{", b" ", b"\t", b"\r", b"\n"),
    lenient.json_id,
    lenient.json_repair,
    lossy=True,
)
MSGPACK = Format(
    "msgpack",
    msgspec.msgpack,
    msgspec.msgpack.Encoder(enc_hook=tensors.encode_hook),
    tuple(bytes([first]) for first in (*range(0x80, 0x90), 0xDE, 0xDF)),
    lenient.msgpack_id,
    lenient.msgpack_repair,
    carries_nan=True,
)
ETF = Format(
    "etf",
    _etf,
    _etf.Encoder(tensors.ATOMS, enc_hook=tensors.encode_etf_hook),
    (b"\x83t", b"\x83P"),  # a map, a compressed term; 0x83 also begins a MessagePack map, but a string follows there
    lenient.etf_id,
    lenient.etf_repair,
    tells_text=False,
)
FORMATS = (JSON, MSGPACK, ETF)


def by_name(name: str) -> Format | None:
    """Return the format called `name` in negotiation and on the command line, or None."""
    return next((known for known in FORMATS if known.name == name), None)


# Not compiled here: that would be a part of every worker's start.
_EXPECTED = r"Expected `(?P<expected>[^`]+)`"
_PATH = r" - at (?P<key>`key` in )?`\$(?P<path>[^`]*)`$"
_FIELD = r"field `(?P<field>[^`]+)`"


def _invalid_args(message: str, root: str) -> InvalidArgs:
    """msgspec's words with the path in the wire's terms: `args.signature.inputs[0]`."""
    expected, path, field = (re.search(p, message) for p in (_EXPECTED, _PATH, _FIELD))
    where = root + (path["path"] if path else "") + (f".{field['field']}" if field else "")
    details = {"path": where, **({"expected": expected["expected"]} if expected else {})}
    kind = "a key: " if path and path["key"] else ""
    return InvalidArgs(f"{where}: {kind}{re.sub(_PATH, '', message)}", **details)
