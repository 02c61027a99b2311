"""Detects that a store's files were deleted or replaced: SQLite itself would go on writing to the old ones."""

from __future__ import annotations

import os
from pathlib import Path

from bridge import errors

SMALLEST = 100  # bytes: the header of a SQLite database

Identity = tuple[int, int]  # device, inode


class Files:
    """Represents the files of the database at `path`: the database, its journal and the index of the journal.

    Creates the database if it does not exist. Raises OSError if that fails, StoreFailed if the database is missing but
    its journal exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        real = os.path.realpath(path)  # SQLite puts the other files next to it
        self._journal = Path(real + "-wal")
        self._others = [self._journal, Path(real + "-shm")]
        self._opened: list[tuple[str, Identity]] = []
        self._refuse_lost()
        # Readable by its owner only, whereas SQLite would follow the umask.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        self._created = _identity(os.stat(self.path))

    @property
    def uri(self) -> str:
        """Return the URI that opens the database but never creates it."""
        return self.path.as_uri() + "?mode=rw"

    def opened(self) -> None:
        """Note which files SQLite has opened. Call this once all of them are open. Raises StoreFailed, OSError."""
        everything = [self.path, *self._others]
        self._opened = [(str(each), _identity(os.stat(each))) for each in everything]
        if self._opened[0][1] != self._created:
            raise self._moved(self.path.name)

    def check(self) -> None:
        """Raise StoreFailed if a file is no longer the one that was opened: writes to it would be lost."""
        for path, identity in self._opened:
            try:
                status = os.stat(path)
            except OSError:
                raise self._moved(os.path.basename(path)) from None
            if _identity(status) != identity:
                raise self._moved(os.path.basename(path))
            if status.st_size < SMALLEST and path == self._opened[0][0]:
                raise self._moved(os.path.basename(path), "emptied")

    def _refuse_lost(self) -> None:
        """Raise StoreFailed for a journal without a database: SQLite would create a database and delete the journal."""
        if not _size(self.path) and _size(self._journal):
            raise errors.StoreFailed(
                f"the store {self.path} is missing or empty, but its journal {self._journal.name} exists;"
                " restore the database, or move the journal away"
            )

    def _moved(self, name: str, what: str = "deleted, moved or replaced") -> errors.StoreFailed:
        return errors.StoreFailed(
            f"the store {self.path}: {name} was {what} while the worker had it open; restore it, or restart the worker"
        )


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
