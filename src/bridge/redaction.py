"""Redaction: keeps secrets out of every text that leaves the process as an error, a log or a span.

A value counts as a secret by `is_secret`. It is redacted while somebody holds it (`hold`), in each
form that `forms_of` lists, within its scope: everywhere, or in texts of one session's calls. What
only looks like a credential (`Authorization: …`, `://user:password@`) is redacted without that.
"""

from __future__ import annotations

import bisect
import math
import os
import re
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from bridge.errors import QuotaExceeded

MASK = "***"
SHORTEST = 8  # characters of a secret, and of each of its forms
LEAST_BITS = 24.0  # of Shannon entropy in a secret's characters
SHORTEST_WORDS = 20  # characters, of a secret that consists of words
SHORTEST_NUMBER = 16  # characters, of a secret without letters
CERTAIN = 16  # characters: a beginning of a secret that long is redacted wherever it stands
MOST_SECRETS = 50_000
LONGEST_FORM = 1 << 16  # characters of it that are compared
SEARCHED = 1 << 16  # characters of a text that is shortened afterwards
DEEPEST = 64  # levels of lists and maps that are searched

ANY = object()
# The session whose secrets are redacted besides those of the process. ANY: all sessions'.
session: ContextVar[object] = ContextVar("session", default=ANY)

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


class Hold:
    """Secrets that are redacted as long as this object lives."""

    __slots__ = ("_scope", "_values")

    def __init__(self, values: frozenset[str], scope: str | None) -> None:
        self._values = values
        self._scope = scope

    def __del__(self) -> None:
        # Without the lock: the thread that collects garbage may have it.
        if _released is not None:  # as it is when the interpreter ends
            _released.append((self._values, self._scope))

    def __repr__(self) -> str:
        return f"<Hold of {len(self._values)} secrets>"


def hold(values: Iterable[str], session_id: str | None = None) -> Hold:
    """Redact those of `values` that are secrets, as long as the result lives; in the texts of that
    session's calls, and where it is not known whose a text is. session_id None: in all texts.

    Raises QuotaExceeded for more secrets than MOST_SECRETS.
    """
    found = frozenset(filter(is_secret, values))
    with _changing:
        _drop_released()
        if len(_secrets) + len(found) > MOST_SECRETS:
            raise QuotaExceeded(
                f"the worker has {MOST_SECRETS} secrets to redact and takes no more"
            )
        for value in found:
            secret = _secrets.get(value)
            if secret is None:
                secret = _secrets[value] = _Secret(forms_of(value))
                for form in secret.forms:
                    _add_form(form, secret)
            secret.scopes[session_id] += 1
    return Hold(found, session_id)


def redact(text: str) -> str:
    """Return `text` with each secret replaced by `***`."""
    read_environment(once=True)
    if _MARKS.search(text):
        text = _CREDENTIALS.sub(_masked, text)
    pieces: list[str] = []
    copied = 0
    for start, end in _found(text, session.get()):
        pieces += (text[copied:start], MASK)
        copied = end
    return "".join((*pieces, text[copied:])) if copied else text


def redact_in(value: Any, _depth: int = 0) -> Any:
    """Return `value` with all texts redacted in lists and maps, the maps' keys too."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, bytes):
        return redact(value.decode("latin-1")).encode("latin-1")
    if isinstance(value, dict | list | tuple) and _depth == DEEPEST:
        return "…"
    if isinstance(value, dict):
        return {
            redact(key) if isinstance(key, str) else key: redact_in(entry, _depth + 1)
            for key, entry in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact_in(entry, _depth + 1) for entry in value]
    return value


def shorten(text: str, limit: int) -> str:
    """Return the first `limit` characters of `text` redacted. A secret is found also where the
    limit would cut it."""
    return redact(text[: max(SEARCHED, 2 * limit)])[:limit]


def first_line(text: str, limit: int) -> str:
    """Return the first line of `text` as `shorten` does; a secret may have several lines."""
    return redact(text.strip()[:SEARCHED]).partition("\n")[0][:limit]


# Where secrets stand.


class _Secret:
    __slots__ = ("forms", "scopes")

    def __init__(self, forms: frozenset[str]) -> None:
        self.forms = forms
        self.scopes: Counter[str | None] = Counter()

    def applies(self, scope: object) -> bool:
        return scope is ANY or None in self.scopes or scope in self.scopes


_changing = threading.RLock()
_secrets: dict[str, _Secret] = {}
_owners: dict[str, list[_Secret]] = {}  # by form
_index: dict[str, list[str]] = {}  # first SHORTEST characters -> forms, sorted
_released: deque[tuple[frozenset[str], str | None]] = deque()


def _add_form(form: str, secret: _Secret) -> None:
    owners = _owners.setdefault(form, [])
    if not owners:
        bisect.insort(_index.setdefault(form[:SHORTEST], []), form)
    owners.append(secret)


def _remove_form(form: str, secret: _Secret) -> None:
    owners = _owners[form]
    owners.remove(secret)
    if owners:
        return
    del _owners[form]
    forms = _index[form[:SHORTEST]]
    del forms[bisect.bisect_left(forms, form)]
    if not forms:
        del _index[form[:SHORTEST]]


def _drop_released() -> None:
    while _released:
        values, scope = _released.popleft()
        for value in values:
            secret = _secrets[value]
            secret.scopes[scope] -= 1
            if secret.scopes[scope] == 0:
                del secret.scopes[scope]
            if not secret.scopes:
                del _secrets[value]
                for form in secret.forms:
                    _remove_form(form, secret)


def _found(text: str, scope: object) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of each stretch of `text` that is covered by secrets."""
    if _released:
        with _changing:
            _drop_released()
    index, size = _index, SHORTEST
    places = [at for at in range(len(text) - size + 1) if text[at : at + size] in index]
    start = end = -1
    # Also inside of what was found: where two secrets overlap, both are covered.
    for position in places:
        with _changing:
            length = _length_at(text, position, scope)
        if not length:
            continue
        if position > end:
            if end > 0:
                yield start, end
            start = position
        end = max(end, position + length)
    if end > 0:
        yield start, end


def _length_at(text: str, position: int, scope: object) -> int:
    """Return how many characters of a secret stand in `text` from `position` on: of the longest
    form, or of the beginning of one that was cut off."""
    forms = _index.get(text[position : position + SHORTEST])
    if forms is None:
        return 0
    longest = 0
    rest = text[position : position + LONGEST_FORM]
    place = bisect.bisect_right(forms, rest)
    # The forms that have most in common with the text are its neighbours in the sorted list.
    for form in forms[max(0, place - 2) : place + 2]:
        if any(owner.applies(scope) for owner in _owners[form]):
            common = _common(form, rest)
            if common == len(form) or common >= CERTAIN or _is_cut(text, position + common):
                longest = max(longest, common)
    # A form that the text begins with stands before it, with only longer ones between.
    while place:
        form = forms[place - 1]
        if rest.startswith(form):
            if any(owner.applies(scope) for owner in _owners[form]):
                return max(longest, len(form))
            place -= 1
        else:
            place = min(place - 1, bisect.bisect_right(forms, rest[: _common(form, rest)]))
    return longest


def _common(first: str, second: str) -> int:
    """Return how many characters both begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(first), len(second)))


def _is_cut(text: str, end: int) -> bool:
    """Return whether `text` was cut at `end`."""
    return end == len(text) or text.startswith(("…", "..."), end)


_MARKS = re.compile(r"://|[?&]|(?i:api-key|authori|bearer|basic)")
_CREDENTIALS = re.compile(
    r"""
    (://[^\s/@:?\#'"]*:)[^\s/@'"]+(?=@)
    | (\b(?:proxy-)?authorization["']?\s*[:=]\s*(?:[bu]?["'])?(?:(?:bearer|basic|token)\s+)?)
      [^\s"',;(){}]{4,}
    | (\b(?:x-|x-goog-)?api-key["']?\s*[:=]\s*(?:[bu]?["'])?)[^\s"',;(){}]{4,}
    | (\b(?:bearer|basic)\s+)(?=[^\s"']*[0-9=])[\w.~+/=-]{8,}
    | ([?&](?:api[_-]?key|key|access[_-]?token|token|sig|signature|secret|password)=)[^&\s"'\#<>]+
    """,
    re.VERBOSE | re.IGNORECASE,
)


def _masked(match: re.Match[str]) -> str:
    return f"{match[match.lastindex or 0]}{MASK}"


# What a secret looks like.

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


# Secrets of the environment and in addresses.

_SECRET_NAME = re.compile(
    r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|PASS|PWD|CREDENTIAL|DSN|JWT|COOKIE|WEBHOOK"
    r"|(?:^|_)(?:PAT|AUTH|PIN|SALT|CERT))S?(?=_|\d|$)"
)
_NO_SECRET_NAME = re.compile(r"_(?:FILE|PATH|DIR|SOCK|HOST|PORT|USER|USERNAME|NAME|TYPE|REGION)$")
_PARTS = re.compile(r"[^\s,;\"'{}\[\]=]+")
_PASSWORD_IN_URL = re.compile(r"://([^\s/@:?#]*):([^\s/@]+)@")

_environment: Hold | None = None


def read_environment(*, once: bool = False) -> None:
    """Hold the secrets in this process's environment, as it is now. once: unless that was done."""
    global _environment
    if _environment is None or not once:
        _environment = hold(_in_environment(dict(os.environ)))


def _in_environment(variables: dict[str, str]) -> Iterator[str]:
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
