"""The command lines `python -m bridge evaluate FILE` and `python -m bridge optimize FILE`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from bridge import flags
from bridge.errors import BridgeError
from bridge.experiment import dataset, scores, tables
from bridge.experiment.display import progress
from bridge.experiment.document import Document, DocumentError, read
from bridge.experiment.workers import PROGRAM, prepare
from bridge.host.client import Client

FAILED, UNUSABLE, TOO_LOW, INTERRUPTED = 1, 2, 3, 130  # exit statuses


def add_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    """Add the flags of `evaluate` or `optimize`."""
    add = parser.add_argument
    add("file", metavar="FILE", type=Path, help="the experiment, a JSON document (docs/experiments.md)")
    add("--json", action="store_true", help="print the whole result as JSON")
    add("--timeout", type=_seconds, metavar="SECONDS", help="give up after that time")
    add("--least", type=_score, metavar="SCORE", help=f"exit with the status {TOO_LOW} if the score is lower")
    if command == "optimize":
        add("--out", metavar="FILE", type=Path, help="write the optimized program there, for import_program")
    else:
        add("--out", metavar="FILE", type=Path, help="file of the results of all rows, which is continued")
        dataset.add_arguments(parser)


def main(arguments: argparse.Namespace) -> int:
    """Run `evaluate` or `optimize`, and return the exit status."""
    command: str = arguments.command
    if command == "evaluate" and dataset.is_asked_for(arguments):
        return scores.evaluate(arguments, partial(_report, arguments))
    try:
        document = read(arguments.file)
        args = _args(command, document, arguments.file)
        out: Path | None = arguments.out
        if out is not None:  # before the work, not after it
            _check_writable(out)
        result = _run(command, args, document, arguments.timeout)
        if out is not None:
            _write(out, result["document"])
    except DocumentError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return UNUSABLE
    except BridgeError as error:
        print(f"{command}: {error.code}: {error}", file=sys.stderr)
        return UNUSABLE if error.code == "invalid_args" else FAILED
    except KeyboardInterrupt:
        print(f"{command}: cancelled", file=sys.stderr)
        return INTERRUPTED
    if command == "optimize":
        return _report(arguments, result, tables.optimization(result))
    results = [{"row": row, **each} for row, each in enumerate(result["results"])]
    shown = [(each, args["devset"][each["row"]]) for each in tables.worst(results)]
    return _report(arguments, result, tables.evaluation(result["score"], result["total"], shown))


def _report(arguments: argparse.Namespace, result: dict[str, Any], lines: Iterable[str]) -> int:
    """Print a result, as JSON or as `lines`, and return the exit status."""
    command: str = arguments.command
    if arguments.json:
        lines = [json.dumps(result, ensure_ascii=False, indent=2)]
    try:
        print(*lines, sep="\n", flush=True)
    except BrokenPipeError:  # the reader has seen enough
        _discard_output()
    except OSError as error:
        _discard_output()
        print(f"{command}: the result cannot be written: {error.strerror}", file=sys.stderr)
        return FAILED
    if arguments.least is not None and result["score"] < arguments.least:
        print(f"{command}: the score {result['score']:.3f} is lower than {arguments.least}", file=sys.stderr)
        return TOO_LOW
    return 0


def _discard_output() -> None:
    """Discard what is left in the buffer of stdout, which Python would try to write again when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _args(command: str, document: Document, path: Path) -> dict[str, Any]:
    """Return the args of the command. Raises DocumentError if the document lacks one."""
    given: dict[str, Any]
    if command == "evaluate":
        given = {"devset": document.devset if document.devset is not None else document.valset}
    else:
        given = {"optimizer": document.optimizer, "trainset": document.trainset}
    given["metric"] = document.metric
    for name, value in given.items():
        if value is None:
            raise DocumentError(f"{path}: {command} needs {name}")
    if command == "optimize":
        given |= {"valset": document.valset or [], "options": document.options}
    return {"program_id": PROGRAM, **given}


def _run(command: str, args: dict[str, Any], document: Document, timeout: float | None) -> dict[str, Any]:
    """Run the command on a worker of its own, and return its result."""
    with Client.start(flags=document.flags) as client:
        prepare(client, document)
        with progress() as show, client.stream(command, args, timeout=timeout) as stream:
            for event, data in stream:
                if event == "progress" and "phase" in data:
                    show(data)
            result: dict[str, Any] = stream.result()
            return result


def _check_writable(path: Path) -> None:
    """Raise DocumentError if no file can be written at `path`."""
    if path.exists() and not path.is_file():
        raise DocumentError(f"{path}: this is not a file" + (", name one in this folder" if path.is_dir() else ""))
    if not path.parent.is_dir():
        raise DocumentError(f"{path}: there is no such folder")
    if not os.access(path.parent, os.W_OK):
        raise DocumentError(f"{path}: no permission to write in its folder")


def _write(path: Path, document: Any) -> None:
    """Write a program's document, in place of the file that is there."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(document, ensure_ascii=False, indent=2) + "\n")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DocumentError(f"{path}: {error.strerror}") from None


def _seconds(text: str) -> float:
    return flags.number(text, "a number of seconds", 86_400)


def _score(text: str) -> float:
    return flags.number(text, "a number from 0 to 1", 1)
