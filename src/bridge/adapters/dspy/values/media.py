"""Images, recordings and files that hosts send: as bytes, as base64, or, where the operator allows it, as addresses.

Nothing is fetched. The bytes go to the model in the parts that its requests have for them.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, NamedTuple

from bridge import errors
from bridge.adapters.type_names import Audio, File, Image
from bridge.security.destinations import Address

LARGEST = 20 << 20  # bytes of one image, recording or file
LONGEST_NAME = 255  # characters
_MIME = re.compile(r"[a-z]+/[a-z0-9][a-z0-9.+-]{0,126}")
_DATA_URI = re.compile(r"data:([^;,]{1,150});base64,")


class Kind(NamedTuple):
    """What a type of media accepts. mime_types: those that models take, or None for any."""

    name: str
    mime_types: tuple[str, ...] | None


KINDS = {
    Image: Kind("image", ("image/png", "image/jpeg", "image/gif", "image/webp", "image/heic", "image/heif")),
    Audio: Kind("audio", ("audio/wav", "audio/mpeg")),
    File: Kind("file", None),
}
_SYNONYMS = {
    "image/jpg": "image/jpeg",
    **dict.fromkeys(("audio/x-wav", "audio/wave", "audio/vnd.wave"), "audio/wav"),
    **dict.fromkeys(("audio/mp3", "audio/x-mp3", "audio/x-mpeg"), "audio/mpeg"),
}
# How the bytes of a type begin; a dot stands for any byte.
_BEGINNINGS = (
    ("image/png", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("image/jpeg", re.compile(rb"\xff\xd8\xff")),
    ("image/gif", re.compile(rb"GIF8[79]a")),
    ("image/webp", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    ("image/heic", re.compile(rb"....ftyp(?:heic|heix|hevc)", re.DOTALL)),
    ("image/heif", re.compile(rb"....ftyp(?:mif1|msf1)", re.DOTALL)),
    ("audio/wav", re.compile(rb"RIFF....WAVE", re.DOTALL)),
    ("audio/mpeg", re.compile(rb"ID3|\xff[\xfb\xf3\xf2]")),
    ("audio/ogg", re.compile(rb"OggS")),
    ("audio/flac", re.compile(rb"fLaC")),
    ("application/pdf", re.compile(rb"%PDF-")),
    ("application/zip", re.compile(rb"PK\x03\x04")),
)


def read_media(value: Any, type: Any, path: str) -> Any:
    """Return `value`, as a host sent it, as an image, a recording or a file. Raises InvalidArgs with the path."""
    kind = KINDS[type]
    if isinstance(value, str) and value.startswith("data:"):
        value = {"url": value}
    if isinstance(value, bytes | bytearray | memoryview):
        value = {"data": value}
    if not isinstance(value, dict) or not ("data" in value) ^ ("url" in value):
        raise _invalid(path, "expected a map with data (bytes or base64) and mime_type, or with url", kind)
    unknown = [key for key in value if key not in ("data", "url", "mime_type", "filename")]
    if unknown:
        raise _invalid(f"{path}.{str(unknown[0])[:100]}", "not one of data, mime_type, filename, url", kind)
    mime_type, data = value.get("mime_type"), value.get("data")
    if "url" in value:
        url = value["url"]
        if not isinstance(url, str):
            raise _invalid(f"{path}.url", "expected an address", kind)
        if not url.startswith("data:"):
            return _at_address(url, value, kind, path)
        found = _DATA_URI.match(url)
        if found is None:
            raise _invalid(f"{path}.url", "a data: address must be like data:image/png;base64,…", kind)
        mime_type, data = mime_type or found[1], url[found.end() :]
    text, beginning = _encoded(data, path, kind)
    return _media(
        path=path,
        kind=kind.name,
        mime_type=_mime_type(mime_type, beginning, kind, path),
        data=text,
        filename=_filename(value.get("filename"), path, kind),
    )


def _media(**fields: str) -> Any:
    from bridge.adapters.dspy.native_types import Media  # checks work without DSPy

    return Media(**fields)


def _at_address(url: str, value: dict[str, Any], kind: Kind, path: str) -> Any:
    if kind.name != "image":
        raise _invalid(
            f"{path}.url",
            f"requests have no place for the address of a{'n' * (kind.name == 'audio')} {kind.name}; send its data",
            kind,
        )
    if len(value) > 1:
        raise _invalid(path, "url cannot be combined with other keys", kind)
    try:
        return _media(path=path, kind="image", url=str(Address.parse(url)))
    except ValueError as error:
        raise _invalid(f"{path}.url", str(error), kind) from None


def _encoded(data: Any, path: str, kind: Kind) -> tuple[str, bytes]:
    """Return the data as base64, and its first bytes. Raises InvalidArgs."""
    where = f"{path}.data"
    if isinstance(data, str):
        text = "".join(data.split()) if any(map(str.isspace, data[:200])) or "\n" in data else data
        size = len(text) * 3 // 4 - text[-2:].count("=")
    elif isinstance(data, bytes | bytearray | memoryview):
        text, size = "", len(data)
    else:
        raise _invalid(where, "expected bytes or base64", kind)
    if size <= 0:
        raise _invalid(where, "0 bytes", kind)
    if size > LARGEST:
        raise _invalid(where, f"{size} bytes, the limit is {LARGEST} ({LARGEST >> 20} MiB)", kind)
    if not text:
        return base64.b64encode(data).decode(), bytes(data[:16])
    try:
        return text, binascii.a2b_base64(text, strict_mode=True)[:16]
    except (binascii.Error, ValueError) as error:
        raise _invalid(where, f"not base64: {error}", kind) from None


def _mime_type(given: Any, beginning: bytes, kind: Kind, path: str) -> str:
    """Return the type of the data: as given, which must not contradict the data, or as the data begins."""
    found = next((name for name, pattern in _BEGINNINGS if pattern.match(beginning)), None)
    where = f"{path}.mime_type"
    if given is None and found is None:
        if kind.name != "file":
            raise _invalid(where, "missing, and the data begins like none of the known types", kind)
        return "application/octet-stream"
    name = found if given is None else given
    name = _SYNONYMS.get(name.strip().lower(), name.strip().lower()) if isinstance(name, str) else ""
    if not _MIME.fullmatch(name):
        raise _invalid(where, "expected a type like image/png", kind)
    if kind.mime_types is not None and name not in kind.mime_types:
        raise _invalid(where, f"{name} is not one of {', '.join(kind.mime_types)}", kind)
    if kind.mime_types is not None and found is not None and found != name:
        raise _invalid(where, f"{name}, but the data is {found}", kind)
    return name


def _filename(name: Any, path: str, kind: Kind) -> str:
    if name is None:
        return ""
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= LONGEST_NAME:
        raise _invalid(f"{path}.filename", f"expected a name of 1 to {LONGEST_NAME} printable characters", kind)
    return name


def _invalid(path: str, reason: str, kind: Kind) -> errors.InvalidArgs:
    return errors.InvalidArgs(f"{path}: {reason}", path=path, expected=kind.name)
