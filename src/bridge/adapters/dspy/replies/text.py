"""What the readers of replies share: their interface, white space around a text, and text that UTF-8 can encode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeVar

WHITE_SPACE = " \t\r\n"
LONGEST_NAME = 100  # characters of a field's name


class Reply(Protocol):
    """Reads the fields of a reply that arrives in pieces.

    headers: the names of all fields that the reply has, in order, also of those that were not asked for.
    """

    headers: list[str]

    def __init__(self, names: Iterable[str]) -> None:
        """Create a reader of the fields `names`; all others are skipped."""

    @property
    def texts(self) -> dict[str, str]:
        """Return each field's text so far, as it is streamed."""

    def feed(self, text: str) -> list[tuple[str, str]]:
        """Read the next piece. Return (field, text) for the text that is certain by now."""

    def finish(self) -> list[tuple[str, str]]:
        """End the reply. Return the text that was held back."""

    def value(self, name: str, type: Any) -> Any:
        """Return the field `name` as a value of `type`. Raises ValueError with a message of one line."""

    @classmethod
    def written(cls, fields: Mapping[str, Any]) -> str:
        """Return a reply with these fields."""


AnyReply = TypeVar("AnyReply", bound=Reply)


def read_fields(kind: type[AnyReply], reply: str, names: Iterable[str]) -> AnyReply:
    """Return the reader of a whole reply."""
    reader = kind(names)
    reader.feed(reply)
    reader.finish()
    return reader


class Trimmed:
    """A text that arrives in pieces, without blank lines at its start and white space at its end."""

    def __init__(self) -> None:
        self._spaces: list[str] = []  # white space that belongs to the text if more text follows
        self._begun = False

    def add(self, piece: str) -> str:
        """Return the next part of the text that is certain."""
        body = piece.rstrip(WHITE_SPACE)
        if not body:
            self._spaces.append(piece)
            return ""
        spaces, self._spaces = "".join(self._spaces), [piece[len(body) :]]
        if self._begun:
            return spaces + body
        self._begun = True
        return _without_blank_lines(spaces + body)


def _without_blank_lines(text: str) -> str:
    """Return the text without leading blank lines and, if it has none, without blanks at its start."""
    start = len(text) - len(text.lstrip(WHITE_SPACE))
    line = text.rfind("\n", 0, start) + 1
    return text[line or start :]


def well_formed(text: str) -> str:
    """Return `text` with surrogate pairs joined, and U+FFFD for half a pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def well_formed_in(value: Any) -> Any:
    """Return `value` with all texts in lists and maps well formed."""
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, dict):
        return {well_formed_in(key): well_formed_in(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(well_formed_in, value))
    return value
