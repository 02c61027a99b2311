"""The file of results: a line of JSON for each row, appended as soon as there is one, so that a run can be continued.

A file OUT.job beside it says what the results are of. Both are written so that a process that ends at any moment leaves
at most an incomplete last line, which the next run removes.
"""

from __future__ import annotations

import fcntl
import os
import stat
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from bridge.experiment.document import NOT_JSON, DocumentError
from bridge.experiment.rows import Row, Rows, Survey

MISSING = (1 << 64) - 1  # the offset of a line that is not there
STDOUT = 1


class Line(msgspec.Struct):
    """Represents what is read of a line of the file. score: of `evaluate`. cost: in US dollars."""

    row: int
    score: float = 0.0
    cost: float = 0.0
    error: msgspec.Raw = msgspec.Raw()


class Job(msgspec.Struct, forbid_unknown_fields=True):
    """Identifies what the results in a file are of.

    program: a digest of the program and its models. metric: one of the metric, or nothing. rows: how many there were;
    digest: of them. More may have been added since.
    """

    command: str
    program: str
    metric: str = ""
    rows: int = 0
    digest: str = ""


class WriteError(Exception):
    """Raised if results cannot be written; the message says why."""


class Results:
    """The results of a job, in a file that may have some of them already.

    done: how many rows have a result. failed: how many of these are errors. score: the sum of their scores. cost: of
    all, in US dollars. is_stream: they go to stdout, a pipe or a device, so no run can continue them.
    """

    def __init__(self, path: Path | None, *, collected: bool = False) -> None:
        """Open the file, and create it if it is not there. Raises DocumentError.

        path: "-" is stdout, None a temporary file. collected: what goes to a stream is written there by `finish`, and
        until then to a temporary file.
        """
        self.path = path
        self.done = self.failed = 0
        self.score = self.cost = 0.0
        self._is_done = bytearray()
        self._stream: int | None = None
        try:
            self._fd = _temporary() if path is None else _opened(path)
            self.is_stream = path is None or self._fd == STDOUT or not stat.S_ISREG(os.fstat(self._fd).st_mode)
            self._size = 0 if path is None or self.is_stream else self._lock(path)
            if self.is_stream and path is not None and collected:
                self._stream, self._fd = self._fd, _temporary()
        except BlockingIOError:
            raise DocumentError(f"{path}: another process is writing it") from None
        except OSError as error:
            raise DocumentError(f"{path}: {error.strerror}") from None

    def start(self, job: Job, rows: Rows, visit: Callable[[Row], object] | None = None) -> int | None:
        """Find out which rows have a result already, and return the number of all rows; None if it is not known.

        job: without rows and digest. visit: called with each row. Raises DocumentError if the results in the file are
        not those of the job.
        """
        if rows.is_stream and self._size:
            raise DocumentError(f"{self.path} has results already; rows from a pipe cannot be continued")
        known = None if self.is_stream else self._known_job()
        if rows.is_stream:
            if known is not None:  # of results that were removed
                self._job_path().unlink()
            return None
        if not self._size:
            known = None
        survey = rows.survey(0 if known is None else known.rows, visit)
        if known is not None:
            self._check(known, job, survey)
            self._read(survey.count)
        if not self.is_stream:
            self._write_job(msgspec.structs.replace(job, rows=survey.count, digest=survey.digest))
        return survey.count

    def has(self, row: Row) -> bool:
        """Return whether a row had a result when the run started."""
        return row.index < len(self._is_done) and bool(self._is_done[row.index])

    def add(self, lines: list[dict[str, Any]]) -> None:
        """Append results: maps with `row`, and `outputs` or `error`. Raises WriteError; a file ends with a whole line
        then."""
        self._write(b"".join([msgspec.json.encode(line) + b"\n" for line in lines]))
        self.done += len(lines)
        for line in lines:
            self.failed += "error" in line
            self.score += line.get("score", 0.0)
            self.cost += line.get("cost", 0.0)

    def drop_errors(self) -> None:
        """Remove the lines of rows that have failed, so that they are asked again. Raises WriteError."""
        if self.failed:
            try:
                self._replace(data for data in self._lines() if not _is_error(data))
            except OSError as error:
                raise self._failed(error) from None
            self.done = self.failed = 0
            self.score = self.cost = 0.0
            self._read(len(self._is_done))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Return the results as maps, in the order of the file."""
        return map(msgspec.json.decode, self._lines())

    def finish(self, *, ordered: bool = False) -> None:
        """Put the lines into the order of the rows if wanted, and close the file. Raises WriteError."""
        try:
            if ordered and (offsets := self._offsets()) is not None:
                self._replace(self._lines_at(offsets))
            if self._stream is not None:
                for data in self._lines():
                    _write_all(self._stream, data)
            if not self.is_stream:
                os.fsync(self._fd)
                os.close(self._fd)
        except OSError as error:
            raise self._failed(error) from None

    def _lock(self, path: Path) -> int:
        """Let no other process write the file, and return its size. Raises OSError."""
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._file = path.resolve()
        status = os.fstat(self._fd)
        if not os.path.samestat(status, self._file.stat()):  # the process that has just ended has replaced it
            raise BlockingIOError
        return status.st_size

    def _known_job(self) -> Job | None:
        """Return what OUT.job says, or None if there is none. Raises DocumentError if results have none, and if it is
        something else."""
        path = self._job_path()
        try:
            return msgspec.json.decode(path.read_bytes(), type=Job)
        except FileNotFoundError:
            if not self._size:
                return None
            problem = f"{self.path} is not empty, and there is no {path.name} that says what it has results of"
        except OSError as error:
            problem = f"{path}: {error.strerror}"
        except NOT_JSON:
            problem = f"{path} does not say what {self.path} has results of"
        raise DocumentError(f"{problem}: name another file, or remove it")

    def _check(self, known: Job, job: Job, survey: Survey) -> None:
        """Raise DocumentError unless the results in the file, of the job `known`, are those of `job` and its rows."""
        for what, ours, theirs in (
            ("the command", job.command, known.command),
            ("this program and these models", job.program, known.program),
            ("this metric", job.metric, known.metric),
            ("these rows", survey.first_digest, known.digest),
        ):
            if ours != theirs:
                what = f"{what} {ours}" if what == "the command" else what
                raise DocumentError(
                    f"{self.path} does not have results of {what}: name another file, or remove it to begin anew"
                )

    def _read(self, count: int) -> None:
        """Read which rows have results. Remove an incomplete last line. Raises DocumentError."""
        self._is_done = bytearray(count)
        size = 0
        for number, data in enumerate(self._lines(), 1):
            try:
                # Of bytes, msgspec does not check texts in fields that it skips.
                line = msgspec.json.decode(data.decode(), type=Line)
                is_new = line.row >= 0 and not self._is_done[line.row]
            except (*NOT_JSON, IndexError):
                is_new = False
            if not data.endswith(b"\n"):
                break
            if not is_new:
                raise DocumentError(f"{self.path}, line {number}: this is not the result of one more row")
            self._is_done[line.row] = True
            self.done += 1
            self.failed += bool(line.error)
            self.score += line.score
            self.cost += line.cost
            size += len(data)
        os.ftruncate(self._fd, size)
        self._size = size

    def _lines(self) -> Iterator[bytes]:
        with open(os.dup(self._fd), "rb") as file:
            file.seek(0)
            yield from file

    def _lines_at(self, offsets: array[int]) -> Iterator[bytes]:
        with open(os.dup(self._fd), "rb") as file:
            for offset in offsets:
                if offset != MISSING:
                    file.seek(offset)
                    yield file.readline()

    def _offsets(self) -> array[int] | None:
        """Return where the line of each row begins; None if the lines are in order."""
        offsets, offset, is_ordered = array("Q"), 0, True
        for data in self._lines():
            row = msgspec.json.decode(data, type=Line).row
            is_ordered = is_ordered and row >= len(offsets)
            if row >= len(offsets):
                offsets.extend([MISSING] * (row + 1 - len(offsets)))
            offsets[row] = offset
            offset += len(data)
        return None if is_ordered else offsets

    def _replace(self, lines: Iterator[bytes]) -> None:
        """Put a file with these lines, that the same users may read, in the place of the file: as a whole, or not at
        all."""
        if self.is_stream:
            fd = _temporary()
        else:
            new = self._file.with_name(f".{self._file.name}.new")
            fd = os.open(new, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            with open(os.dup(fd), "wb") as file:
                file.writelines(lines)
            if not self.is_stream:
                os.fchmod(fd, stat.S_IMODE(os.fstat(self._fd).st_mode))
                os.fsync(fd)
                new.replace(self._file)
        except BaseException:
            os.close(fd)
            if not self.is_stream:
                new.unlink(missing_ok=True)
            raise
        os.close(self._fd)
        self._fd, self._size = fd, os.fstat(fd).st_size

    def _write(self, data: bytes) -> None:
        try:
            _write_all(self._fd, data)
        except OSError as error:
            if not self.is_stream:
                os.ftruncate(self._fd, self._size)
            raise self._failed(error) from None
        self._size += len(data)

    def _failed(self, error: OSError) -> WriteError:
        where = "stdout" if self._fd == STDOUT or self._stream == STDOUT else self.path or "a temporary file"
        is_closed = isinstance(error, BrokenPipeError)
        return WriteError(f"{where}: {'nobody reads it any more' if is_closed else error.strerror}")

    def _job_path(self) -> Path:
        return self._file.with_name(f"{self._file.name}.job")

    def _write_job(self, job: Job) -> None:
        path = self._job_path()
        new = path.with_name(f".{path.name}.new")
        try:
            new.write_bytes(msgspec.json.format(msgspec.json.encode(job)) + b"\n")
            new.replace(path)
        except OSError as error:
            raise DocumentError(f"{path}: {error.strerror}") from None


def _opened(path: Path) -> int:
    """Return a descriptor that appends to the file, which it creates if it is not there, or to stdout."""
    if str(path) == "-":
        if sys.stdout is None:
            raise DocumentError("stdout is closed")
        os.set_blocking(STDOUT, True)
        return STDOUT
    if path.exists() and not path.is_file():  # a device, or a pipe, whose reader is waited for
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _temporary() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _is_error(data: bytes) -> bool:
    return bool(msgspec.json.decode(data, type=Line).error)
