"""The command line `python -m bridge map PROGRAM ROWS --out FILE`."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from bridge.errors import BridgeError
from bridge.experiment import dataset
from bridge.experiment.dataset import Calls
from bridge.experiment.display import say
from bridge.experiment.document import read_program
from bridge.experiment.results import Results
from bridge.experiment.rows import Row, Rows
from bridge.experiment.workers import PROGRAM

SOME_FAILED = 3  # an exit status
INCLUDES = ("usage", "completions", "trajectory", "prompt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `map`."""
    add = parser.add_argument
    add(
        "program",
        metavar="PROGRAM",
        type=Path,
        help="the document of a program, or an experiment (docs/experiments.md)",
    )
    add("rows", metavar="ROWS", type=Path, help="a file of JSON Lines with the inputs; - is stdin")
    add("--out", metavar="FILE", type=Path, required=True, help="file of results, which is continued; - is stdout")
    add("--model", metavar="NAME", help="e.g. openai/gpt-4o-mini, or offline; its key is in the environment")
    add("--id", metavar="FIELD", help="a field of the rows that is no input, for the results")
    add("--include", action="append", default=[], choices=INCLUDES, help="add this to the results; repeatable")
    add("--ordered", action="store_true", help="put the results into the order of the rows at the end")
    dataset.add_arguments(parser)
    parser.set_defaults(timeout=None)


def main(arguments: argparse.Namespace) -> int:
    """Run `map`, and return the exit status."""
    return dataset.status_of("map", lambda: _map(arguments))


def _map(arguments: argparse.Namespace) -> int:
    document = read_program(arguments.program)
    if arguments.model is not None:
        document.models.append({"provider" if arguments.model == "offline" else "model": arguments.model})
    rows = Rows.of_file(arguments.rows)
    results = Results(arguments.out, collected=arguments.ordered)
    total = results.start(dataset.job_of("map", document), rows)
    if arguments.retry_errors:
        results.drop_errors()
    calls = Calls(_Request(arguments.id, arguments.include), "args.inputs", _read, partial(_label, arguments.id))
    try:
        stopped = dataset.work(arguments, document, rows, total, results, calls)
    finally:
        results.finish(ordered=arguments.ordered)
    if stopped is not None:
        return dataset.stopped_early("map", results, total, stopped)
    cost = f", ${results.cost:.2f}" if results.cost else ""
    say(f"map: {results.done} rows, {results.failed} failed{cost}")
    return SOME_FAILED if results.failed else 0


class _Request:
    """Makes the args of execute_program of a row."""

    def __init__(self, id_field: str | None, include: list[str]) -> None:
        self._id_field = id_field
        self._include = ["cost", *include]

    def __call__(self, row: Row) -> tuple[str, dict[str, Any]]:
        inputs = row.value()
        inputs.pop(self._id_field or "", None)
        if isinstance(inputs.get("inputs"), dict) and inputs.keys() <= {"inputs", "outputs"}:
            inputs = inputs["inputs"]
        return "execute_program", {"program_id": PROGRAM, "inputs": inputs, "include": self._include}


def _read(reply: dict[str, Any]) -> dict[str, Any]:
    """Return what a result has of the reply to execute_program."""
    left_out = ("program_id", "execution_time", "model")
    return {name: value for name, value in reply.items() if name not in left_out and (name, value) != ("cost", None)}


def _label(id_field: str | None, row: Row) -> dict[str, Any]:
    """Return what the result of a row has to tell it from others besides its number."""
    if id_field is None:
        return {}
    try:
        return {"id": row.value()[id_field]}
    except (BridgeError, KeyError):
        return {}
