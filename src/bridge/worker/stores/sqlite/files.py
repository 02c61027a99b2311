"""The files of a store, watched: SQLite goes on writing to a file that was deleted or replaced."""

from __future__ import annotations

import os
from pathlib import Path

from bridge import errors

SMALLEST = 100  # bytes: the header of a database

Identity = tuple[int, int]  # device, inode


class Files:
    """The database at `path` with its journal and the journal's index.

    Creates the database if it is missing. Raises OSError where that fails, StoreFailed where it is
    missing but its journal is not.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        real = os.path.realpath(path)  # SQLite has its other files beside that
        self._journal = Path(real + "-wal")
        self._others = [self._journal, Path(real + "-shm")]
        self._opened: list[tuple[str, Identity]] = []
        self._refuse_lost()
        # Its owner's alone: SQLite would create it by the umask.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        self._created = _identity(os.stat(self.path))

    @property
    def uri(self) -> str:
        """For SQLite, which must never create the database itself."""
        return self.path.as_uri() + "?mode=rw"

    def opened(self) -> None:
        """Watch the files that are there now, once SQLite has all of them open.

        Raises StoreFailed, OSError.
        """
        everything = [self.path, *self._others]
        self._opened = [(str(each), _identity(os.stat(each))) for each in everything]
        if self._opened[0][1] != self._created:
            raise self._moved(self.path.name)

    def check(self) -> None:
        """Raise StoreFailed if a file is no longer the one that was opened: what is written to it
        would be gone after a restart."""
        for path, identity in self._opened:
            try:
                found = os.stat(path)
            except OSError:
                raise self._moved(os.path.basename(path)) from None
            if _identity(found) != identity:
                raise self._moved(os.path.basename(path))
            if found.st_size < SMALLEST and path == self._opened[0][0]:
                raise self._moved(os.path.basename(path), "emptied")

    def _refuse_lost(self) -> None:
        """Raise StoreFailed for a journal alone: SQLite takes a missing or an empty file for a
        new one, and throws its journal away."""
        if not _size(self.path) and _size(self._journal):
            raise errors.StoreFailed(
                f"the store {self.path}: the file is missing or empty, but its journal"
                f" {self._journal.name} is there; bring it back, or move the journal away"
            )

    def _moved(self, name: str, what: str = "deleted, moved or replaced") -> errors.StoreFailed:
        return errors.StoreFailed(
            f"the store {self.path}: {name} was {what} while the worker had it open; put it back, or restart the worker"
        )


def _identity(found: os.stat_result) -> Identity:
    return found.st_dev, found.st_ino


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
