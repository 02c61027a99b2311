"""Session data: how values are stored, and how they are converted between formats.

A value is stored in the format of the request that set it, without parts that only one host could read. A host that
uses the same format gets exactly that value back; for other formats it is converted.
"""

from __future__ import annotations

import datetime
import math
from typing import Any

import msgspec

from bridge.errors import InvalidArgs, NotEncodable, shown
from bridge.wire import lenient, tensors
from bridge.wire._etf import Atom, Opaque
from bridge.wire.codec import ETF, JSON, MSGPACK, Format, by_name
from bridge.wire.tensors import Tensor

SHOWN = 100  # characters of a key in an error
SHOWN_PATH = 400  # of a whole path

# The errors of decoders and encoders.
_FAILURES = (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError)

_NAMES = {datetime.datetime: "a timestamp", msgspec.msgpack.Ext: "an extension type"}


class Value(msgspec.Struct, frozen=True):
    """Represents a stored value.

    data: its encoded bytes. format: the name of their format. is_checked: whether `of` created it; earlier versions
    stored values unchecked.
    """

    data: bytes
    format: str
    is_checked: bool = False

    @classmethod
    def of(cls, raw: msgspec.Raw, format: Format, path: str) -> Value:
        """Return the value for the encoded bytes `raw` at `path` of a request.

        Raises InvalidArgs, with the path, for what cannot be stored.
        """
        data = bytes(raw)
        if format is MSGPACK:
            data = _with_bin(data)
        format.decode_args(msgspec.Raw(data), Any, path=path, undecodable="refuse")  # raises InvalidArgs
        if format is ETF:
            data = ETF.encode(_without_atoms(ETF.decode(data), path))
        return cls(data, format.name, True)

    def in_format(self, format: Format, path: str) -> msgspec.Raw:
        """Return the value for a reply in `format`. Raises NotEncodable, with the path of what it cannot carry."""
        own = by_name(self.format)
        if own is None:
            raise NotEncodable(f"{path} was stored by a later version of this program", path=path)
        try:
            checked = self if self.is_checked else Value.of(msgspec.Raw(self.data), own, path)
            if own is format:
                return msgspec.Raw(checked.data)
            value = own.decode(checked.data)
            pairs = _Pairs()
            converted = _Conversion(own, format, pairs).of(value, path)
            if own is MSGPACK and pairs.has_other_keys:
                pairs.check(checked.data, path)
            return msgspec.Raw(format.encode(converted))
        except NotEncodable:
            raise
        except RecursionError:
            reason = "is nested too deeply"
        except InvalidArgs as error:  # the value was stored unchecked
            raise NotEncodable(error.message, **error.details) from None
        except _FAILURES as error:
            reason = f"cannot be encoded as {format.name}: {error}"
        path = _shortened(path)
        raise NotEncodable(f"{path} {reason}", path=path)

    def as_map(self) -> Value | None:
        """Return the value if it is a map, an empty map for an empty list, None for anything else.

        Some hosts encode an empty map as an empty list.
        """
        format = by_name(self.format)
        if format is None:
            return None
        try:
            format.decode(self.data, dict[Any, msgspec.Raw])
            return self
        except _FAILURES:
            pass
        try:
            is_empty = format.decode(self.data, list[msgspec.Raw]) == []
        except _FAILURES:
            return None
        return Value(format.encode({}), self.format, True) if is_empty else None

    def entries(self) -> dict[Any, msgspec.Raw]:
        """Return the entries of this map with their values still encoded."""
        format = by_name(self.format)
        return {} if format is None else format.decode(self.data, dict[Any, msgspec.Raw])

    def merged(self, other: Value, path: str) -> Value:
        """Return this map with the entries of another one. Raises InvalidArgs if no format can carry both."""
        for name in (self.format, other.format):
            format = by_name(name)
            if format is None:
                continue
            try:
                both = [Value(bytes(each.in_format(format, path)), name) for each in (self, other)]
            except NotEncodable:
                continue
            before, after = (each.entries() for each in both)
            kinds = {key: type(key) for key in before}
            if all(kinds.get(key, type(key)) is type(key) for key in after):
                return Value(format.encode(before | after), name, True)
        raise InvalidArgs(f"{path}: no format can carry both this value and the stored one", path=path)


def below(path: str, key: Any) -> str:
    """Return the path of the entry `key` of the map at `path`."""
    try:
        return f"{path}.{key if isinstance(key, str) else repr(key)}"[: len(path) + SHOWN]
    except ValueError:  # an integer of more than 4300 digits, or a tuple with one
        return f"{path}.{shown(key)}"


def _shortened(path: str) -> str:
    return path if len(path) <= SHOWN_PATH else path[:SHOWN_PATH] + "…"


def _with_bin(data: bytes) -> bytes:
    """Return MessagePack with the type bin for strings that are not UTF-8: some hosts pack all binaries as strings."""
    try:
        MSGPACK.decode(data)
    except UnicodeDecodeError:
        return lenient.msgpack_repair(data, False)
    except _FAILURES:
        pass  # the caller decodes it again and reports the error
    return data


def _without_atoms(value: Any, path: str) -> Any:
    """Return `value` with text in place of atoms, except in tensors.

    Raises InvalidArgs for terms that only one node can read.
    """
    kind = type(value)
    if kind is Atom:
        return str(value)
    if kind is list:
        items = []
        for index, item in enumerate(value):
            items.append(_without_atoms(item, f"{path}[{index}]"))
        return items
    if kind is dict:
        entries = {}
        for key, entry in value.items():
            entries[_without_atoms(key, path)] = _without_atoms(entry, below(path, key))
        return entries
    if kind is tuple:
        if _tensor_of_term(value) is not None:
            return value
        parts = []
        for index, item in enumerate(value):
            parts.append(_without_atoms(item, f"{path}[{index}]"))
        return tuple(parts)
    if kind is Opaque:
        path = _shortened(path)
        raise InvalidArgs(
            f"{path}: session data cannot hold pids, ports, references, functions, bit strings,"
            " improper lists, or maps whose keys are equal or are maps or lists",
            path=path,
        )
    return value


def _tensor_of_term(term: tuple[Any, ...]) -> Tensor | None:
    if len(term) != 4 or type(term[0]) is not Atom or term[0] != "tensor":
        return None
    return _tensor(term)


def _tensor_of_form(value: dict[Any, Any], own: Format) -> Tensor | None:
    form = value.get("$tensor")
    if len(value) != 1 or not isinstance(form, dict) or form.keys() != {"type", "shape", "data"}:
        return None
    is_encoded = isinstance(form["data"], str if own is JSON else bytes)
    return _tensor(value) if is_encoded else None


def _tensor(form: Any) -> Tensor | None:
    try:
        tensor = tensors.substitute(form, None, lambda tensor: tensor)
    except (msgspec.ValidationError, RecursionError):
        return None
    return tensor if isinstance(tensor, Tensor) else None


def _text_of(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


class _Pairs:
    """Counts the entries of all maps in a value.

    A decoded map has fewer entries than its bytes if keys are equal in Python, as 1, 1.0 and true are.
    """

    def __init__(self) -> None:
        self.count = 0
        self.has_other_keys = False

    def check(self, data: bytes, path: str) -> None:
        """Raise NotEncodable if the MessagePack value `data` has more entries than were counted."""
        if lenient.msgpack_pairs(data) != self.count:
            raise NotEncodable(f"{path}: a map has equal keys, as 1 and 1.0 are", path=path)


class _Conversion:
    """Converts values from one format to another."""

    def __init__(self, own: Format, wanted: Format, pairs: _Pairs) -> None:
        self._own = own
        self._wanted = wanted
        self._pairs = pairs

    def of(self, value: Any, path: str) -> Any:
        """Return `value` as the encoder of the wanted format accepts it. Raises NotEncodable."""
        kind = type(value)
        if value is None or kind in (str, bool, int):
            return value
        if kind is float:
            if self._wanted is not MSGPACK and not math.isfinite(value):
                raise self._refused(str(value), path)
            return value
        if kind is dict:
            tensor = None if self._own is ETF else _tensor_of_form(value, self._own)
            if tensor is not None:
                self._pairs.count += 1 + 3  # the map with the key $tensor, and its three entries
                return tensor
            self._pairs.count += len(value)
            entries = {}
            for key, entry in value.items():
                where = below(path, key)
                if type(key) is not str:
                    self._check_key(key, where)
                    if self._wanted is ETF and type(key) is bytes and _text_of(key) in value:
                        raise self._refused("the same key as text and as bytes", where)
                entries[key] = self.of(entry, where)
            return entries
        if kind is list or kind is tuple:
            tensor = _tensor_of_term(value) if kind is tuple else None
            if tensor is not None:
                return tensor
            items = []
            for index, item in enumerate(value):
                items.append(self.of(item, f"{path}[{index}]"))
            return items
        if kind is bytes or kind is memoryview:
            if self._wanted is JSON:
                raise self._refused("bytes", path)
            return value
        raise self._refused(_NAMES.get(kind, kind.__name__), path)

    def _check_key(self, key: Any, path: str) -> None:
        self._pairs.has_other_keys = True
        if self._wanted is JSON:
            raise self._refused("a key that is not a string", path)
        if type(key) is tuple:
            raise self._refused("a key that is a list or a tuple", path)
        self.of(key, path)

    def _refused(self, what: str, path: str) -> NotEncodable:
        path = _shortened(path)
        reason = f"{self._wanted.name} cannot carry {what}, which is stored as {self._own.name}"
        return NotEncodable(f"{path}: {reason}", path=path)
