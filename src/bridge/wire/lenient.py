"""Lenient reading of messages that do not decode.

Finds the id of a request whose envelope is broken, so that the error reaches its caller, and repairs
messages whose strings are not UTF-8 (some hosts pack all binaries as MessagePack strings). Nothing
here recurses without a limit, so deep nesting is harmless.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from bridge.wire import _etf

if TYPE_CHECKING:
    from typing_extensions import Buffer

SEARCHED = 64 * 1024  # bytes of a broken message that are searched for its id

# An unclosed quote is a token too, so that the search ends there.
_JSON_TOKEN = rb'(?s)"(?:[^"\\]|\\.)*"|[{}\[\]]|"'
_JSON_ID = rb'\s*:\s*(-?\d{1,40}(?=\s*[,}])|"(?:[^"\\]|\\.)*")'


def json_id(message: Buffer) -> int | str | None:
    """Return the value of the outermost key "id" if it is an integer or a string, otherwise None."""
    message = bytes(memoryview(message)[:SEARCHED])
    depth = 0
    for token in re.finditer(_JSON_TOKEN, message):
        if token[0] in b"{[":
            depth += 1
        elif token[0] in b"}]":
            depth -= 1
        elif token[0] == b'"':
            return None
        elif depth == 1 and token[0] == b'"id"':
            value = re.match(_JSON_ID, message[token.end() :])
            if value:
                return _json_scalar(value[1])
    return None


def _json_scalar(text: bytes) -> int | str | None:
    try:
        value = msgspec.json.decode(text)
    except (ValueError, msgspec.MsgspecError):
        return None
    return value if isinstance(value, int | str) else None


def msgpack_id(message: Buffer) -> int | str | None:
    """Return the value of the outermost key "id" if it is an integer or a string, otherwise None."""
    message = bytes(memoryview(message)[:SEARCHED])
    open_items: list[int] = []  # items still to come in each open container, outermost first
    at_id = False
    for start, body, end, items in _msgpack_tokens(message):
        if len(open_items) == 1 and open_items[0] % 2 == 0:
            at_id = message[body:end] == b"id"
        elif len(open_items) == 1 and at_id:
            return _msgpack_scalar(message[start:end])
        if open_items:
            open_items[-1] -= 1
        open_items.append(items)
        while open_items and open_items[-1] == 0:
            open_items.pop()
    return None


def _msgpack_scalar(token: bytes) -> int | str | None:
    try:
        value = msgspec.msgpack.decode(token)
    except (ValueError, msgspec.MsgspecError):
        return None
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def json_repair(message: bytes, replace: bool) -> bytes:
    """Return `message` with U+FFFD for invalid UTF-8 if `replace` is set, otherwise unchanged."""
    return message.decode("utf-8", "replace").encode() if replace else message


def msgpack_repair(message: bytes, replace: bool) -> bytes:
    """Return `message` with each string that is not UTF-8 as a bin of the same bytes, or with `replace` as
    a string with U+FFFD."""
    parts: list[bytes] = []
    for start, body, end, _ in _msgpack_tokens(message):
        token = message[start:end]
        if body < end and (0xA0 <= token[0] <= 0xBF or 0xD9 <= token[0] <= 0xDB):
            content = message[body:end]
            try:
                content.decode()
            except UnicodeDecodeError:
                token = msgspec.msgpack.encode(content.decode("utf-8", "replace") if replace else content)
        parts.append(token)
    return b"".join(parts)


def msgpack_pairs(message: bytes) -> int:
    """Return the number of entries of all maps in `message`."""
    shapes = ((message[start], items) for start, _, _, items in _msgpack_tokens(message))
    return sum(items // 2 for first, items in shapes if first <= 0x8F or first in (0xDE, 0xDF))


def etf_id(message: Buffer) -> int | str | None:
    """Return the value of the outermost key "id" if it is an integer or a string, otherwise None."""
    return _etf.find_id(memoryview(message)[:SEARCHED])


def etf_repair(message: bytes, replace: bool) -> bytes:
    """Return `message` with U+FFFD in binaries that are not UTF-8 and with atoms as binaries if `replace`
    is set, otherwise unchanged."""
    return _etf.encode(_etf.decode(message, binaries="replace")) if replace else message


# First byte -> bytes of the length after it; of a container, (bytes of the item count, values for each item).
_SIZED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_EXTENSION = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_CONTAINER = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
_FIXED = {
    **{0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8},
    **{0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8},
    **{0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17},
}


def _msgpack_tokens(message: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield (start, start of the body, end, number of values inside) of each value, in order.

    Containers end where their first item begins. Stops where the message is cut off or malformed.
    """
    position = 0
    while position < len(message):
        body, size, items = _msgpack_shape(message, position)
        if body + size > len(message):
            return
        yield position, body, body + size, items
        position = body + size


def _msgpack_shape(message: bytes, at: int) -> tuple[int, int, int]:
    first = message[at]
    if first <= 0x7F or first >= 0xE0:
        return at + 1, 0, 0
    if first <= 0x8F:
        return at + 1, 0, 2 * (first & 0x0F)
    if first <= 0x9F:
        return at + 1, 0, first & 0x0F
    if first <= 0xBF:
        return at + 1, first & 0x1F, 0
    if first in _FIXED:
        return at + 1, _FIXED[first], 0
    if first in _CONTAINER:
        width, factor = _CONTAINER[first]
        return at + 1 + width, 0, factor * int.from_bytes(message[at + 1 : at + 1 + width], "big")
    width = _SIZED.get(first) or _EXTENSION.get(first, 0)
    size = int.from_bytes(message[at + 1 : at + 1 + width], "big")
    return at + 1 + width, size + (first in _EXTENSION), 0
