"""Patterns and formats of texts.

Patterns run on what models write, so they are those of Rust's regex crate, which pydantic has: it takes time
proportional to the text for every pattern, and has neither look-around nor references to groups.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

LONGEST_PATTERN = 1000  # characters
_HOST = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})(?:\.[A-Za-z0-9][A-Za-z0-9-]{0,62})*\.?")
_LOCAL = re.compile(r"[^\s@\"(),:;<>\[\]\\]{1,64}")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[^\s<>\"{}|\\^`]+")
_DURATION = re.compile(
    r"-?P(?=[\dT])(?:\d+W|(?:\d+Y)?(?:\d+M)?(?:\d+D)?(?:T(?=\d)(?:\d+H)?(?:\d+M)?(?:\d+(?:\.\d+)?S)?)?)"
)


def pattern_problem(pattern: str) -> str | None:
    """Return why `pattern` cannot be used, in one line, or None."""
    if len(pattern) > LONGEST_PATTERN:
        return f"a pattern of {len(pattern)} characters, the limit is {LONGEST_PATTERN}"
    from pydantic_core import SchemaError

    try:
        _compiled(pattern)
    except SchemaError as error:
        return str(error).strip().rpartition("\n")[2].strip().removeprefix("error: ").removeprefix("SchemaError: ")
    return None


def matches(text: str, pattern: str) -> bool:
    """Return whether a part of `text` matches."""
    valid: bool = _compiled(pattern).isinstance_python(text)
    return valid


@lru_cache(maxsize=64)  # each takes up to 10 MiB
def _compiled(pattern: str) -> Any:
    # Imported here because few signatures have patterns.
    from pydantic_core import SchemaValidator, core_schema

    return SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex"))


def is_of_format(text: str, format: str) -> bool:
    """Return whether `text` has a format of FORMATS."""
    return FORMATS[format](text)


def _is_email(text: str) -> bool:
    local, at, domain = text.rpartition("@")
    return bool(at and _LOCAL.fullmatch(local) and _HOST.fullmatch(domain))


def _is_address(parse: Callable[[str], object]) -> Callable[[str], bool]:
    def is_address(text: str) -> bool:
        try:
            parse(text)
        except ValueError:
            return False
        return True

    return is_address


def _fits(pattern: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda text: pattern.fullmatch(text) is not None


def _anything(text: str) -> bool:
    return True


# Of texts that stay texts. The formats of dates, times, UUIDs and decimals are types of their own.
FORMATS: dict[str, Callable[[str], bool]] = {
    **dict.fromkeys(
        ("base64", "byte"), _fits(re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"))
    ),
    "base64url": _fits(re.compile(r"[A-Za-z0-9_-]*={0,2}")),
    "duration": _fits(_DURATION),
    "email": _is_email,
    "hostname": _fits(_HOST),
    "ipv4": _is_address(ipaddress.IPv4Address),
    "ipv4network": _is_address(ipaddress.IPv4Network),
    "ipv6": _is_address(ipaddress.IPv6Address),
    "ipv6network": _is_address(ipaddress.IPv6Network),
    "ipvanyaddress": _is_address(ipaddress.ip_address),
    "ipvanynetwork": _is_address(ipaddress.ip_network),
    "uri": _fits(_URI),
    # These say what a text is for, not what it looks like.
    **dict.fromkeys(("binary", "directory-path", "file-path", "password", "path"), _anything),
}
