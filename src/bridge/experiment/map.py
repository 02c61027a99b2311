"""The command line `python -m bridge map PROGRAM ROWS --out FILE`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridge.errors import BridgeError
from bridge.experiment import dataset
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
    calls = Runs(arguments.id, arguments.include)
    try:
        stopped = dataset.work(arguments, document, rows, total, results, calls)
    finally:
        results.finish(ordered=arguments.ordered)
    if stopped is not None:
        return dataset.stopped_early("map", results, total, stopped)
    cost = f", ${results.cost:.2f}" if results.cost else ""
    say(f"map: {results.done} rows, {results.failed} failed{cost}")
    return SOME_FAILED if results.failed else 0


class Runs:
    """Makes calls of the program for rows. id_field: of a row, for its result. include: what results have besides."""

    row_path = "args.inputs"
    in_error: Mapping[str, Any] = {}

    def __init__(self, id_field: str | None, include: list[str]) -> None:
        self._id_field = id_field
        self._include = ["cost", *include]

    def item(self, row: Row) -> dict[str, Any]:
        """Return the inputs of a row."""
        inputs = row.value()
        inputs.pop(self._id_field or "", None)
        if isinstance(inputs.get("inputs"), dict) and inputs.keys() <= {"inputs", "outputs"}:
            return dict(inputs["inputs"])
        return inputs

    def request(self, items: list[Any], threads: int) -> tuple[str, dict[str, Any]]:
        """Return the call of execute_batch for some rows."""
        args = {"program_id": PROGRAM, "inputs": items, "threads": threads, "include": self._include}
        return "execute_batch", args

    def read(self, reply: Any) -> tuple[list[dict[str, Any] | BridgeError], float]:
        """Return the results of the rows, and the time."""
        return dataset.results_of(reply, left_out=("execution_time", "model"))

    def label(self, row: Row) -> dict[str, Any]:
        """Return the id of a row, if it has one."""
        if self._id_field is None:
            return {}
        try:
            return {"id": row.value()[self._id_field]}
        except (BridgeError, KeyError):
            return {}
