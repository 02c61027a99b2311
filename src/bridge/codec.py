"""The formats a frame may be in: a table, one entry each. The first byte of a frame tells which."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from bridge import salvage
from bridge.errors import NotEncodable
from bridge.messages import Request


class Format:
    """One format. Decoders and encoders are made once and kept.

    first_bytes: those that begin a message in this format, disjoint from all other formats'.
    find_id: reads the id of a message that does not decode (None: it cannot).
    repair: rewrites a message whose strings are not all UTF-8 (None: the format has no way).
    lossy: what this format's encoder writes in place of values it cannot carry, without a word.
    """

    def __init__(
        self,
        name: str,
        module: Any,
        first_bytes: bytes,
        find_id: Callable[[Any], int | str | None],
        repair: Callable[[bytes], bytes] | None = None,
        lossy: bytes | None = None,
    ) -> None:
        self.name = name
        self.first_bytes = first_bytes
        self.find_id = find_id
        self.repair = repair
        self.lossy = lossy
        self.decode_request: Callable[[Any], Request] = module.Decoder(Request).decode
        self.encode_into: Callable[[Any, bytearray, int], None] = module.Encoder().encode_into
        self.encode: Callable[[Any], bytes] = module.encode
        self._no_args: bytes = module.encode({})
        self._absent = (msgspec.Raw(), msgspec.Raw(module.encode(None)))
        self._decoder = module.Decoder
        self._decoders: dict[Any, Callable[[Any], Any]] = {}

    def decode(self, data: Any, type: Any = Any) -> Any:
        """`data` (a buffer) as `type`. Raises what msgspec raises."""
        decode = self._decoders.get(type)
        if decode is None:
            decode = self._decoders[type] = self._decoder(type).decode
        return decode(data)

    def decode_args(self, raw: msgspec.Raw, type: Any) -> Any:
        """The args of a request as `type`; missing ones and null are an empty map.

        Strings that are not UTF-8 become bytes where the format has bytes.
        """
        data = self._no_args if raw in self._absent else raw
        try:
            return self.decode(data, type)
        except UnicodeDecodeError:
            if self.repair is None:
                raise
            return self.decode(self.repair(bytes(raw)), type)


JSON = Format("json", msgspec.json, b"{ \t\r\n", salvage.json_id, lossy=b"null")
MSGPACK = Format(
    "msgpack",
    msgspec.msgpack,
    bytes([*range(0x80, 0x90), 0xDE, 0xDF]),
    salvage.msgpack_id,
    repair=salvage.msgpack_repair,
)
FORMATS = (JSON, MSGPACK)


def by_first_byte() -> list[Format | None]:
    """256 entries: the format that a frame with that first byte is in, if any."""
    table: list[Format | None] = [None] * 256
    for known in FORMATS:
        for byte in known.first_bytes:
            table[byte] = known
    return table


def by_name(name: str) -> Format | None:
    """The format called `name` in negotiation and on the command line."""
    return next((known for known in FORMATS if known.name == name), None)


def refuse_non_finite(value: Any, path: str = "result") -> None:
    """Raise NotEncodable if `value` holds NaN or an infinity, which JSON cannot carry."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise NotEncodable(f"{path} is {value}, which JSON cannot carry", path=path)
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            refuse_non_finite(entry, f"{path}.{key}")
    elif isinstance(value, msgspec.Struct):
        refuse_non_finite(msgspec.structs.asdict(value), path)
    elif isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes):
        for index, entry in enumerate(value):
            refuse_non_finite(entry, f"{path}[{index}]")
