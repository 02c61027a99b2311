"""Reads the file of an experiment: a JSON document, with examples in it or in files next to it."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

# What msgspec raises for bytes that are not JSON.
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class DocumentError(ValueError):
    """Raised if a file cannot be used; the message names the file and what is wrong."""


class Document(msgspec.Struct, forbid_unknown_fields=True):
    """An experiment.

    program: the args of create_program, or `{"document": …}` with an exported program, or `{"path": …}` of a file that
    has one. models: the args of configure_lm, for each model. devset, trainset, valset: examples, or the path of a file
    that has them: JSON Lines, or a JSON list. metric, optimizer, options: as in the commands. flags: of the worker.
    """

    program: dict[str, Any]
    metric: str | dict[str, Any] | None = None
    models: list[dict[str, Any]] = []
    devset: list[Any] | str | None = None
    trainset: list[Any] | str | None = None
    valset: list[Any] | str | None = None
    optimizer: str | None = None
    options: dict[str, Any] = {}
    flags: list[str] = []


def read(path: Path, examples: Collection[str] = ("devset", "trainset", "valset")) -> Document:
    """Return the experiment in a file, with the program and the examples that it names. Raises DocumentError.

    examples: which of them are read if they are in files.
    """
    try:
        document = msgspec.json.decode(_bytes(path), type=Document)
    except msgspec.ValidationError as error:
        raise DocumentError(f"{path}: {error}") from None
    except NOT_JSON:
        raise DocumentError(f"{path}: {_problem(_bytes(path))}") from None
    for name in examples:
        given = getattr(document, name)
        if isinstance(given, str):
            setattr(document, name, read_list(path.parent / given))
    exported = document.program.get("path")
    if isinstance(exported, str) and len(document.program) == 1:
        document.program = {"document": _json(path.parent / exported)}
    return document


def read_program(path: Path) -> Document:
    """Return the experiment in a file, without its examples, or one of only the program whose document the file is.

    Raises DocumentError.
    """
    value = _json(path)
    if isinstance(value, dict) and ("metadata" in value or "program" not in value):
        return Document({"document": value})
    return read(path, examples=())


def read_list(path: Path) -> list[Any]:
    """Return the rows of a file: of JSON Lines, or a JSON list if its name ends with .json. Raises DocumentError."""
    if path.suffix == ".json":
        rows = _json(path)
        if not isinstance(rows, list):
            raise DocumentError(f"{path}: expected a list of examples")
        return rows
    rows = []
    for number, line in enumerate(_bytes(path).split(b"\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError):
                raise DocumentError(f"{path}, line {number}: {_problem(line)}") from None
    return rows


def _json(path: Path) -> Any:
    data = _bytes(path)
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise DocumentError(f"{path}: {_problem(data)}") from None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DocumentError(f"{path}: {error.strerror}") from None


def _problem(data: bytes) -> str:
    """Return why `data` is not JSON."""
    try:
        json.loads(data)
    except UnicodeDecodeError:
        return "not UTF-8"
    except RecursionError:
        return "nested too deeply"
    except json.JSONDecodeError as error:
        return f"not JSON: {error}"
    return "not JSON"
