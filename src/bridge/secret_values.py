"""What counts as a secret, and the forms in which one gets into texts.

Apart from redaction.py because a worker's start does not need it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping

SHORTEST = 8  # characters of a secret, and of each of its forms
LEAST_BITS = 24.0  # of Shannon entropy in a secret's characters
SHORTEST_WORDS = 20  # characters, of a secret that consists of words
SHORTEST_NUMBER = 16  # characters, of a secret without letters

_WORDS = re.compile(
    r"(?:[A-Z]+|[A-Z]?[a-z]+(?:[A-Z][a-z]{2,})*)(?:[ _.,:/-]+[A-Za-z][a-z]*|[A-Z]+)*"
)


def is_secret(value: str) -> bool:
    """Return whether `value` is too long and too random to be part of a text by chance.

    It has at least 8 characters with 24 bits of Shannon entropy together; words joined by spaces
    or punctuation count from 20 characters, and what has no letter from 16.
    """
    if len(value) < SHORTEST:
        return False
    if _WORDS.fullmatch(value):
        return len(value) >= SHORTEST_WORDS
    if len(value) < SHORTEST_NUMBER and not any(map(str.isalpha, value)):
        return False
    length = len(value)
    counts = Counter(value).values()
    return -sum(count * math.log2(count / length) for count in counts) >= LEAST_BITS


_PLAIN = re.compile(r"[A-Za-z0-9._~-]+")  # characters that nobody escapes
_PERCENT = re.compile(r"%[0-9A-F]{2}")
_UNICODE = re.compile(r"\\[ux][0-9a-f]{2,4}")
_SAFE = ("", "/", "!$&'()*+,;=:@/", "!$&'()*+,;=:@/?")  # what different libraries leave as it is


def forms_of(secret: str) -> frozenset[str]:
    """Return the texts that `secret` appears as: itself, with white space squeezed or left out,
    escaped as in Python, JSON (twice, too), HTML or a URL, and in base64, also as a part of what
    was encoded (`user:secret`)."""
    forms: set[str] = set()
    for text in {secret, secret.strip(), " ".join(secret.split()), "".join(secret.split())}:
        forms.add(text)
        if not _PLAIN.fullmatch(text):
            quoted = _quoted(text)
            forms |= quoted | _in_url(text)
            forms |= {html for once in quoted for html in _quoted(once)}
    for encoding in ("utf-8", "latin-1"):
        forms |= _in_base64(secret.strip().encode(encoding, "replace"))
    return frozenset(form for form in forms if len(form) >= SHORTEST)


def _quoted(text: str) -> set[str]:
    import html
    import json

    data = text.encode("utf-8", "surrogatepass")
    quoted = {
        json.dumps(text)[1:-1],
        json.dumps(text, ensure_ascii=False)[1:-1],
        repr(text)[1:-1],
        repr(f"\"{text}'")[2:-3],  # as in a text with both kinds of quotes
        ascii(text)[1:-1],
        repr(data)[2:-1],
        text.encode("unicode_escape").decode(),
        html.escape(text),
        html.escape(text, quote=False),
    }
    quoted |= {each.replace("/", "\\/") for each in quoted}
    return quoted | {_UNICODE.sub(lambda m: m[0][:2] + m[0][2:].upper(), each) for each in quoted}


def _in_url(text: str) -> set[str]:
    from urllib.parse import quote, quote_plus

    data = text.encode("utf-8", "surrogatepass")
    quoted = {quote(data, safe) for safe in _SAFE} | {quote_plus(data)}
    quoted |= {_PERCENT.sub(lambda match: match[0].lower(), each) for each in quoted}
    return quoted | {quote(each, "") for each in quoted}


def _in_base64(data: bytes) -> set[str]:
    from base64 import b64encode
    from urllib.parse import quote

    whole = b64encode(data).decode()
    found = {whole, whole.rstrip("=")}
    # Three bytes become four characters: what stands before decides how `data` is divided.
    for shift, first in ((0, 0), (1, 2), (2, 3)):
        encoded = b64encode(b"\0" * shift + data).decode()
        found.add(encoded[first : (shift + len(data)) * 8 // 6])
    found |= {each.replace("+", "-").replace("/", "_") for each in found}
    return found | {quote(each, "") for each in found}


_SECRET_NAME = re.compile(
    r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|PASS|PWD|CREDENTIAL|DSN|JWT|COOKIE|WEBHOOK"
    r"|(?:^|_)(?:PAT|AUTH|PIN|SALT|CERT))S?(?=_|\d|$)"
)
_NO_SECRET_NAME = re.compile(r"_(?:FILE|PATH|DIR|SOCK|HOST|PORT|USER|USERNAME|NAME|TYPE|REGION)$")
_PARTS = re.compile(r"[^\s,;\"'{}\[\]=]+")
_PASSWORD_IN_URL = re.compile(r"://([^\s/@:?#]*):([^\s/@]+)@")


def secrets_in_environment(variables: Mapping[str, str]) -> Iterator[str]:
    """Yield what may be secret in the variables of an environment, by their names and forms."""
    for name, value in variables.items():
        for user, password in _PASSWORD_IN_URL.findall(value):
            yield from _pair(user, password)
        if "://" in value:
            yield from secrets_in_url(value)
        elif _names_secret(name.upper()) and not value.startswith(("/", "~", "./")):
            yield value.strip()
            # Lists of keys, connection strings, keys as JSON, lines of PEM.
            yield from _PARTS.findall(value)


def _names_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None and _NO_SECRET_NAME.search(name) is None


def secrets_in_url(url: str) -> Iterator[str]:
    """Yield what may be secret in an address: user and password, and the values of its query."""
    from urllib.parse import parse_qsl, unquote, urlsplit

    try:
        parts = urlsplit(url)
    except ValueError:
        return
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    yield from (user, unquote(user), parts.query)
    yield from _pair(user, password)
    for _, value in parse_qsl(parts.query):
        yield value


def _pair(user: str, password: str) -> Iterator[str]:
    from urllib.parse import unquote

    if password:
        yield password
        yield unquote(password)
        yield f"{unquote(user)}:{unquote(password)}"
