"""The rows of a data set: a file of JSON Lines, read one line at a time however long it is."""

from __future__ import annotations

import gzip
import hashlib
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any, BinaryIO, cast

import msgspec

from bridge import errors
from bridge.experiment.document import DocumentError
from bridge.options import DEFAULT_MAX_FRAME

LONGEST = DEFAULT_MAX_FRAME  # bytes of a line: more cannot be sent
AHEAD = 8  # rows of a stream that are read before they are asked for
BOM = b"\xef\xbb\xbf"
STDIN = 0


@dataclass(frozen=True, slots=True)
class Row:
    """Represents a row. index: its number, from 0, without blank lines. line: its JSON; is_whole: that is all of it."""

    index: int
    line: bytes
    is_whole: bool = True

    def value(self) -> dict[str, Any]:
        """Return the map that the row is. Raises InvalidArgs, and FrameTooLarge."""
        if not self.is_whole:
            raise errors.FrameTooLarge(f"the row is longer than {LONGEST} bytes", limit=LONGEST)
        try:
            value = msgspec.json.decode(self.line)
        except (ValueError, RecursionError) as error:
            raise errors.InvalidArgs(f"the row is not JSON: {errors.text_of(error)}") from None
        if not isinstance(value, dict):
            is_list = self.index == 0 and isinstance(value, list)
            hint = ": a file of rows has one map on each line, and is not a list" if is_list else ""
            raise errors.InvalidArgs(f"the row is not a map{hint}")
        return value


@dataclass(frozen=True, slots=True)
class Survey:
    """Tells how many rows there are, and a digest of them; and that of the first ones, if there are as many."""

    count: int
    digest: str
    first_digest: str | None


class Rows:
    """The rows of a data set. Iterating reads them, and raises DocumentError.

    lines: returns the lines, and whether each is whole. is_stream: whether they can be read only once.
    """

    def __init__(self, lines: Callable[[], Iterator[tuple[bytes, bool]]], *, is_stream: bool = False) -> None:
        self._lines = lines
        self.is_stream = is_stream

    @classmethod
    def of_file(cls, path: Path) -> Rows:
        """Return the rows of a file of JSON Lines, or of stdin ("-").

        Lines end with LF or CRLF; blank ones are no rows. A file whose name ends with .gz is compressed.
        """
        is_stream = str(path) == "-" or path.is_fifo() or path.is_char_device()
        return cls(partial(_lines, path), is_stream=is_stream)

    @classmethod
    def of_list(cls, values: list[Any]) -> Rows:
        """Return the rows of a list."""
        return cls(lambda: ((msgspec.json.encode(value), True) for value in values))

    def __iter__(self) -> Iterator[Row]:
        for index, (line, is_whole) in enumerate(self._lines()):
            yield Row(index, line, is_whole)

    def arriving(self, on_arrival: Callable[[], object]) -> Iterator[Row | None]:
        """Return an iterator over the rows of a stream that never waits: None means that there is no further row yet.

        on_arrival: called, on another thread, when there is one, or no more.
        """
        arrived: Queue[Row | Exception | None] = Queue(AHEAD)

        def read() -> None:
            end = None
            try:
                for row in self:
                    arrived.put(row)
                    on_arrival()
            except Exception as error:
                end = error
            arrived.put(end)
            on_arrival()

        Thread(target=read, name="bridge-rows", daemon=True).start()
        while True:
            try:
                row = arrived.get_nowait()
            except Empty:
                yield None
                continue
            if row is None:
                return
            if isinstance(row, Exception):
                raise row
            yield row

    def survey(self, first: int = 0, visit: Callable[[Row], object] | None = None) -> Survey:
        """Read all rows once. first: how many rows the first digest is of. visit: called with each row."""
        digest, count = hashlib.blake2b(digest_size=16), 0
        first_digest = digest.hexdigest() if first == 0 else None
        for row in self:
            digest.update(row.line)
            digest.update(b"\n")
            count += 1
            if count == first:
                first_digest = digest.hexdigest()
            if visit is not None:
                visit(row)
        return Survey(count, digest.hexdigest(), first_digest)


def _lines(path: Path) -> Iterator[tuple[bytes, bool]]:
    """Yield the lines of a file that are not blank, and whether each is whole: of one longer than LONGEST only the
    beginning. Raises DocumentError."""
    is_first = True
    try:
        with _opened(path) as file:
            while line := file.readline(LONGEST + 2):
                is_whole = len(line) <= LONGEST or line.endswith(b"\n")
                end = line
                while not is_whole and end and not end.endswith(b"\n"):
                    end = file.readline(1 << 20)
                if is_first:
                    line, is_first = line.removeprefix(BOM), False
                line = line.strip()
                if line:
                    yield line, is_whole
    except (OSError, EOFError, zlib.error) as error:  # the latter two of a file that is not what gzip writes
        raise DocumentError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def _opened(path: Path) -> BinaryIO:
    if str(path) != "-":
        return cast("BinaryIO", gzip.open(path)) if path.suffix == ".gz" else path.open("rb")
    if sys.stdin is None:  # the shell has closed it
        raise DocumentError("stdin is closed")
    return open(STDIN, "rb", closefd=False)  # not sys.stdin: the interpreter cannot end while a thread reads that
