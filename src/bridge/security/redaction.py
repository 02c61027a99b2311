"""Redaction of secrets in every text that leaves the process as an error, a log line or a span.

A secret is redacted as long as a `Hold` of it exists, within its scope: in all texts, or in texts of one session's
calls. What looks like a credential (`Authorization: …`, `://user:password@`) is always redacted. What counts as a
secret, and in which forms it is found, is defined in secret_values.py.
"""

from __future__ import annotations

import bisect
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any

from bridge.errors import QuotaExceeded

if TYPE_CHECKING:
    from re import Match

    from bridge.security.unescaped import View

MASK = "***"
SHORTEST = 8  # characters of a secret, and of each of its forms; as in secret_values.py, which is imported later
CERTAIN = 16  # characters: a beginning of a secret that is so long is always redacted
MOST_SECRETS = 50_000
FEW = 64  # beginnings of secrets: up to so many are faster to search for one by one
LONGEST_FORM = 1 << 16  # characters of it that are compared
SEARCHED = 1 << 16  # characters of a text that is shortened afterwards
DEEPEST = 64  # levels of lists and maps that are searched

ANY = object()
# The session whose secrets are redacted in addition to those of the process. ANY: those of all sessions.
session: ContextVar[object] = ContextVar("session", default=ANY)


class Hold:
    """Represents secrets that are redacted as long as this object exists."""

    __slots__ = ("_scope", "_values")

    def __init__(self, values: frozenset[str], scope: str | None) -> None:
        self._values = values
        self._scope = scope

    def __del__(self) -> None:
        # Without the lock: the thread that collects garbage may hold it already.
        if _released is not None:  # None while the interpreter ends
            _released.append((self._values, self._scope))

    def __repr__(self) -> str:
        return f"<Hold of {len(self._values)} secrets>"


def hold(values: Iterable[str], session_id: str | None = None) -> Hold:
    """Redact those of `values` that are secrets, as long as the returned object exists.

    session_id: redact them only in texts of this session's calls, and in texts that belong to no known session.
    None: in all texts. Raises QuotaExceeded for more secrets than MOST_SECRETS.
    """
    from bridge.security.secret_values import forms_of, is_secret  # not needed for the start of a worker

    found = frozenset(filter(is_secret, values))
    with _changing:
        _drop_released()
        if len(_secrets) + len(found) > MOST_SECRETS:
            raise QuotaExceeded(f"the worker already redacts {MOST_SECRETS} secrets, which is its limit")
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
    lower = text.lower()
    if any(mark in lower for mark in _MARKS):
        text = _credentials()(_masked, text)
    pieces: list[str] = []
    copied = 0
    for start, end in _found(text, session.get()):
        pieces += (text[copied:start], MASK)
        copied = end
    return "".join((*pieces, text[copied:])) if copied else text


def redact_in(value: Any, _depth: int = 0) -> Any:
    """Return `value` with all texts in it redacted, in lists and maps and in the keys of maps."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, bytes):
        return redact(value.decode("latin-1")).encode("latin-1")
    if isinstance(value, dict | list | tuple) and _depth == DEEPEST:
        return "…"
    if isinstance(value, dict):
        return {
            redact(key) if isinstance(key, str) else key: redact_in(entry, _depth + 1) for key, entry in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact_in(entry, _depth + 1) for entry in value]
    return value


def shorten(text: str, limit: int) -> str:
    """Return the first `limit` characters of `text`, redacted. A secret that crosses the limit is redacted too."""
    return redact(text[: max(SEARCHED, 2 * limit)])[:limit]


def first_line(text: str, limit: int) -> str:
    """Return at most `limit` characters of the first line of `text`, redacted; a secret may have several lines."""
    return redact(text.strip()[:SEARCHED]).partition("\n")[0][:limit]


# Finding secrets in a text.


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


def _found(text: str, scope: object) -> list[tuple[int, int]]:
    """Return (start, end) of each stretch of `text` that is covered by secrets, in order."""
    from bridge.security.unescaped import views

    if _released:
        with _changing:
            _drop_released()
    spans = []
    for view in views(text) if _index else ():
        # Also inside of secrets already found: where two overlap, both are covered.
        for position in _candidates(view.text):
            with _changing:
                length = _length_at(view, position, scope, text)
            if length:
                spans.append(view.span(position, position + length))
    covered: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if covered and start <= covered[-1][1]:
            start, last = covered.pop()
            end = max(end, last)
        covered.append((start, end))
    return covered


def _candidates(text: str) -> list[int]:
    """Return the positions in `text` where a secret may begin."""
    beginnings = list(_index)
    if len(beginnings) > FEW:
        index, size = _index, SHORTEST
        return [at for at in range(len(text) - size + 1) if text[at : at + size] in index]
    positions = []
    for beginning in beginnings:
        at = text.find(beginning)
        while at >= 0:
            positions.append(at)
            at = text.find(beginning, at + 1)
    return sorted(positions)


def _length_at(view: View, position: int, scope: object, original: str) -> int:
    """Return how many characters of a secret the view has at `position`: of the longest form, or of the beginning of
    one that was cut off. original: the text of which `view` is a view."""
    text = view.text
    forms = _index.get(text[position : position + SHORTEST])
    if forms is None:
        return 0
    longest = 0
    rest = text[position : position + LONGEST_FORM]
    index = bisect.bisect_right(forms, rest)
    # The forms that share the longest beginning with the text are its neighbours in the sorted list.
    for form in forms[max(0, index - 2) : index + 2]:
        if any(owner.applies(scope) for owner in _owners[form]):
            common = _common(form, rest)
            if common == len(form) or common >= CERTAIN or _is_cut(original, view.span(position, position + common)[1]):
                longest = max(longest, common)
    # A form that is a beginning of the text sorts before it, and only longer forms are between the two.
    while index:
        form = forms[index - 1]
        if rest.startswith(form):
            if any(owner.applies(scope) for owner in _owners[form]):
                return max(longest, len(form))
            index -= 1
        else:
            index = min(index - 1, bisect.bisect_right(forms, rest[: _common(form, rest)]))
    return longest


def _common(first: str, second: str) -> int:
    """Return the length of the common beginning of two texts."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(first), len(second)))


def _is_cut(text: str, end: int) -> bool:
    """Return whether `text`, or a text that it quotes, seems to have been cut off at `end`."""
    return end == len(text) or text.startswith(("…", "...", "'", '"', "`", '\\"'), end)


_MARKS = ("://", "authorization", "api-key", "bearer", "basic", "?", "&")


@cache
def _credentials() -> Callable[..., str]:
    """Return the function that replaces credentials that are recognized by the text before them."""
    import re

    return re.compile(
        r"""
        (://[^\s/@:?\#'"]*:)[^\s/@'"]+(?=@)
        | (\b(?:proxy-)?authorization["']?\s*[:=]\s*(?:[bu]?["'])?(?:(?:bearer|basic|token)\s+)?)
          [^\s"',;(){}]{4,}
        | (\b(?:x-|x-goog-)?api-key["']?\s*[:=]\s*(?:[bu]?["'])?)[^\s"',;(){}]{4,}
        | (\b(?:bearer|basic)\s+)(?=[^\s"']*[0-9=])[\w.~+/=-]{8,}
        | ([?&](?:api[_-]?key|key|access[_-]?token|token|sig|signature|secret|password)=)
          [^&\s"'\#<>]+
        """,
        re.VERBOSE | re.IGNORECASE,
    ).sub


def _masked(match: Match[str]) -> str:
    return f"{match[match.lastindex or 0]}{MASK}"


_environment: Hold | None = None


def read_environment(*, once: bool = False) -> None:
    """Redact the secrets in the current environment of this process. once: do nothing if that has been done before."""
    global _environment
    from bridge.security.secret_values import secrets_in_environment

    if _environment is None or not once:
        _environment = hold(secrets_in_environment(os.environ))
