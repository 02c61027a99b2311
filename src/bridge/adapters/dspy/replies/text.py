"""What the readers of replies share: their interface, the texts of fields, white space, and text in UTF-8."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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


Pieces = list[tuple[str, str]]  # field and text, as `feed` returns them


class FieldTexts:
    """The texts of the fields of a reply that has been read so far. The first field of a name counts."""

    def __init__(self, names: Iterable[str]) -> None:
        self.headers: list[str] = []
        self._names = frozenset(names)
        self._pieces: dict[str, list[str]] = {}
        self._field: str | None = None  # the one that is being read, None if it was not asked for
        self._trimmed = Trimmed()

    @property
    def texts(self) -> dict[str, str]:
        return {name: "".join(pieces) for name, pieces in self._pieces.items()}

    def finish(self) -> Pieces:
        return []

    def _begin(self, name: str) -> None:
        """Begin a field, or what has the form of one."""
        self.headers.append(name)
        self._trimmed = Trimmed()
        self._field = name if name in self._names and name not in self._pieces else None
        if self._field is not None:
            self._pieces[self._field] = []

    def _append(self, text: str, new: Pieces) -> None:
        """Append a text to the field, and to the pieces that are `new`."""
        if self._field is not None and text:
            self._pieces[self._field].append(text)
            new.append((self._field, text))


class SteppedTexts(FieldTexts):
    """The texts of fields that have an end, read in steps.

    Each step reads a part of the text from `_at` on. It returns False if more text is needed.
    """

    def __init__(self, names: Iterable[str], step: Callable[[Pieces], bool]) -> None:
        super().__init__(names)
        self._whole: set[str] = set()  # the fields whose end has been read
        self._text = ""
        self._at = 0  # what of the text has been read
        self._step = step

    def feed(self, text: str) -> Pieces:
        self._text = self._text[self._at :] + text
        self._at = 0
        new: Pieces = []
        while self._step(new):
            pass
        return new

    def _end(self, step: Callable[[Pieces], bool]) -> None:
        """End a field, and go on with `step`."""
        if self._field is not None:
            self._whole.add(self._field)
        self._step = step


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
