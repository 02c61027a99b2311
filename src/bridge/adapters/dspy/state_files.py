"""Files of programs in the folder that the operator allows (`--state-dir`)."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any

import msgspec

from bridge import errors

LARGEST = 16 << 20  # bytes of a file
_LONGEST_PATH = 1000  # characters


def write(folder: str | None, path: str, data: bytes) -> int:
    """Write `data` to a file, whole or not at all, and return its size in bytes.

    path: relative to `folder`, where missing folders are created. Raises NotAllowed without a folder, InvalidArgs for a
    path outside of it or one that cannot be written, and for more than LARGEST bytes, which could not be read.
    """
    *parents, name = _parts(folder, path)
    if len(data) > LARGEST:
        raise _refused(f"the program takes {len(data)} bytes, the limit of a file is {LARGEST}")
    try:
        directory = _open_folder(folder, parents, create=True)
        try:
            _replace(directory, name, data)
        finally:
            os.close(directory)
    except OSError as error:
        raise _failed("written", error) from error
    return len(data)


def read(folder: str | None, path: str) -> Any:
    """Return the data of a JSON file. Raises NotAllowed, and InvalidArgs for a file that cannot be read."""
    *parents, name = _parts(folder, path)
    try:
        directory = _open_folder(folder, parents)
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        finally:
            os.close(directory)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise _refused("not a regular file")
        with open(descriptor, "rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise _failed("read", error) from error
    if len(data) > LARGEST:
        raise _refused(f"the file has more than {LARGEST} bytes")
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise _refused(f"not a JSON document: {reason}") from None


def _parts(folder: str | None, path: str) -> tuple[str, ...]:
    """Return the parts of a relative path. Raises NotAllowed without a folder, InvalidArgs for an invalid path."""
    if folder is None:
        raise errors.NotAllowed("this worker has no folder for files of programs; start it with --state-dir")
    parts = PurePosixPath(path).parts
    if not parts or len(path) > _LONGEST_PATH or not path.isprintable() or not path.endswith(".json"):
        raise _refused(f"expected the path of a .json file, of at most {_LONGEST_PATH} characters")
    if path.startswith("/") or ".." in parts or parts[-1] == ".json":
        raise _refused("expected a path relative to --state-dir, without ..")
    return parts


def _open_folder(folder: str | None, parents: list[str], *, create: bool = False) -> int:
    """Return a descriptor of a folder below `folder`. Symbolic links are not followed: they may lead out of it."""
    assert folder is not None
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    directory = os.open(folder, flags)
    for name in parents:
        above = directory
        try:
            if create:
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=above)
            directory = os.open(name, flags | os.O_NOFOLLOW, dir_fd=above)
        finally:
            os.close(above)
    return directory


def _replace(directory: int, name: str, data: bytes) -> None:
    temporary = f".{secrets.token_hex(8)}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with open(os.open(temporary, flags, 0o600, dir_fd=directory), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise
    os.fsync(directory)


def _failed(how: str, error: OSError) -> errors.InvalidArgs:
    return _refused(f"the file cannot be {how}: {error.strerror}")


def _refused(reason: str) -> errors.InvalidArgs:
    return errors.InvalidArgs(f"args.path: {reason}", path="args.path")
