"""What counts as a secret, and the forms in which a secret appears in texts.

This is a separate module because the start of a worker does not need it.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping

from bridge.security.unescaped import views

SHORTEST = 8  # characters of a secret, and of each of its forms
LEAST_BITS = 22.0  # of Shannon entropy in a secret's characters
SHORTEST_WORDS = 20  # characters, of a secret that consists of words
SHORTEST_NUMBER = 16  # characters, of a secret without letters

_WORDS = re.compile(r"(?:[A-Z]+|[A-Z]?[a-z]+(?:[A-Z][a-z]{2,})*)(?:[ _.,:/-]+[A-Za-z][a-z]*|[A-Z]+)*")


def is_secret(value: str) -> bool:
    """Return whether `value` is too long and too random to be part of a text by chance.

    A secret has at least 8 characters with 22 bits of Shannon entropy in total. Words joined by spaces or punctuation
    need 20 characters, and values without a letter need 16.
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


def forms_of(secret: str) -> frozenset[str]:
    """Return the forms in which `secret` appears in the views of a text (unescaped.py): as it is, in hexadecimal, as
    the numbers of its bytes, and in base64, also if it is only a part of the encoded text (`user:secret`)."""
    forms: set[str] = set()
    # With + for spaces as in queries, with \xf6 for ö as in Python's representations, and as UTF-8 decoded as Latin-1.
    misread = secret.encode("utf-8", "surrogatepass").decode("latin-1")
    for text in {secret, secret.replace(" ", "+"), ascii(secret)[1:-1], misread}:
        forms |= {view.text for view in views(text)}
    for encoding in ("utf-8", "latin-1"):
        data = secret.strip().encode(encoding, "replace")
        forms |= {data.hex(), data.hex(":"), ",".join(map(str, data))}
        forms |= {each.lower() for each in _in_base64(data)}
    return frozenset(form for form in forms if len(form) >= SHORTEST)


def _in_base64(data: bytes) -> set[str]:
    from base64 import b64encode

    whole = b64encode(data).decode()
    found = {whole, whole.rstrip("=")}
    # Three bytes become four characters: the length of the text before `data` decides how `data` is divided.
    for shift, first in ((0, 0), (1, 2), (2, 3)):
        encoded = b64encode(b"\0" * shift + data).decode()
        found.add(encoded[first : (shift + len(data)) * 8 // 6])
    return found | {each.replace("+", "-").replace("/", "_") for each in found}


_SECRET_NAME = re.compile(
    r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|PASS|PWD|CREDENTIAL|DSN|JWT|COOKIE|WEBHOOK"
    r"|BEARER|CONNECTION_?STRING|CONN_?STR|(?:^|_)(?:PAT|AUTH|PIN|SALT|CERT|HEADER))S?(?=_|\d|$)"
    r"|API_?KEY"
)
_NO_SECRET_NAME = re.compile(r"_(?:FILE|PATH|DIR|SOCK|HOST|PORT|USER|USERNAME|NAME|TYPE|REGION)$")
_IN_CAMEL_CASE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_PARTS = re.compile(r"[^\s,;\"'{}\[\]]+")
_PASSWORD_IN_URL = re.compile(r"://([^\s/@:?#]*):([^\s/@]+)@")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^\s,;\"'{}\[\]]+", re.IGNORECASE)
_FILE = re.compile(r"(?:~|\.{0,2})/")
_LIKE_BASE64 = re.compile(r"(?=.*[0-9])(?=.*[a-z])(?=.*[A-Z])[A-Za-z0-9+/]{32,}={0,2}")
# The formats of keys of well-known issuers, which are secrets in a variable of any name.
_ISSUED = re.compile(
    r"\b(?:sk-|[sr]k_live_|gsk_|xai-|pplx-|r8_|hf_|ghp_|gho_|ghs_|github_pat_|glpat-|xox[abprs]-"
    r"|npm_|pypi-|SG\.|AIza|A[KS]IA|eyJ)[\w.~+/=-]{16,}"
)


def secrets_in_environment(variables: Mapping[str, str]) -> Iterator[str]:
    """Yield the values of environment variables that may be secrets, judged by name and form."""
    for name, value in variables.items():
        for user, password in _PASSWORD_IN_URL.findall(value):
            yield from _pair(user, password)
        for url in _URL.findall(value):
            yield from secrets_in_url(url)
        yield from _ISSUED.findall(value)
        if _names_secret(name) and not _is_file(value):
            yield from _in_secret_variable(value.strip())


def _in_secret_variable(value: str) -> Iterator[str]:
    if _URL.fullmatch(value):
        # For instance the URL of a webhook: its path is the key.
        yield from value.partition("?")[0].split("/")
        return
    yield value
    # Lists of keys, headers, connection strings, keys as JSON (with escaped line breaks), PEM.
    for part in _PARTS.findall(value):
        if not _URL.fullmatch(part):
            name, _, text = part.partition("=")
            yield from (text if text.strip("=") else name).split("\\n")


def _names_secret(name: str) -> bool:
    name = _IN_CAMEL_CASE.sub("_", name).upper()
    return _SECRET_NAME.search(name) is not None and _NO_SECRET_NAME.search(name) is None


def _is_file(value: str) -> bool:
    if not _FILE.match(value):
        return False
    return os.path.exists(value) or not _LIKE_BASE64.fullmatch(value.strip())


def secrets_in_url(url: str) -> Iterator[str]:
    """Yield the parts of a URL that may be secrets: user and password, and the values of its query."""
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
