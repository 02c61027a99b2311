"""The command `evaluate` on several workers: each example is a row, whose score is added to a file of results."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bridge import errors
from bridge.errors import BridgeError
from bridge.experiment import dataset, tables
from bridge.experiment.document import Document, DocumentError, read, read_list
from bridge.experiment.results import Results
from bridge.experiment.rows import Row, Rows
from bridge.experiment.workers import PROGRAM

MOST_KINDS = 100  # of rows, by their fields


def evaluate(arguments: argparse.Namespace, report: Callable[[dict[str, Any], list[str]], int]) -> int:
    """Evaluate the program of an experiment on several workers, and return the exit status.

    report: called with the result and its lines as text; returns the status.
    """
    return dataset.status_of("evaluate", lambda: _evaluate(arguments, report))


def _evaluate(arguments: argparse.Namespace, report: Callable[[dict[str, Any], list[str]], int]) -> int:
    document = read(arguments.file, examples=())
    rows = _rows(document, arguments.file)
    if str(arguments.out) == "-":
        raise DocumentError("--out: the score is printed to stdout, so name a file for the results")
    if rows.is_stream:
        raise DocumentError(f"{arguments.file}: the examples have to be in a file, not in a pipe")
    if document.metric is None:
        raise DocumentError(f"{arguments.file}: evaluate needs metric")
    kinds = Kinds()
    results = Results(arguments.out, collected=True)
    total = results.start(dataset.job_of("evaluate", document), rows, kinds.add)
    if not total:
        raise DocumentError(f"{arguments.file}: evaluate needs at least one example")
    if arguments.retry_errors:
        results.drop_errors()
    stopped = None
    try:
        stopped = dataset.work(arguments, document, rows, total, results, Scores(document.metric, kinds))
        if stopped is not None:
            return dataset.stopped_early("evaluate", results, total, stopped)
        result: dict[str, Any] = {"score": results.score / total, "total": total, "failed": results.failed}
        worst = tables.worst(results)
        wanted = {each["row"] for each in worst}
        examples = {row.index: _example(row) for row in rows if row.index in wanted}
        lines = list(tables.evaluation(result["score"], total, [(each, examples[each["row"]]) for each in worst]))
        if arguments.json and arguments.out is None:
            result["results"] = sorted(results, key=lambda each: int(each["row"]))
    finally:
        results.finish(ordered=True)
    return report(result, lines)


def _rows(document: Document, path: Path) -> Rows:
    given = document.devset if document.devset is not None else document.valset
    if given is None:
        raise DocumentError(f"{path}: evaluate needs devset")
    if isinstance(given, list):
        return Rows.of_list(given)
    file = path.parent / given
    return Rows.of_list(read_list(file)) if file.suffix == ".json" else Rows.of_file(file)


class Kinds:
    """Holds one row of each kind that a data set has. Rows with the same fields are of one kind."""

    def __init__(self) -> None:
        self._rows: dict[frozenset[str], dict[str, Any]] = {}

    def add(self, row: Row) -> None:
        """Note a row, if it is the first one of its kind."""
        try:
            value = row.value()
        except errors.BridgeError:
            return
        if len(self._rows) < MOST_KINDS:
            self._rows.setdefault(_kind(value), value)

    def others(self, values: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return a row of each kind that `values` lack."""
        if len(self._rows) == 1:
            return []
        kinds = {_kind(value) for value in values}
        return [row for each, row in self._rows.items() if each not in kinds]


def _kind(value: dict[str, Any]) -> frozenset[str]:
    sides = {side: value[side] for side in ("inputs", "outputs") if isinstance(value.get(side), dict)}
    return frozenset(f"{side}.{name}" for side in sides for name in sides[side]) | (value.keys() - sides.keys())


class Scores:
    """Makes calls of `evaluate` for rows. kinds: of all rows; their fields decide what the metric reads."""

    row_path = "args.devset[0]"
    in_error: Mapping[str, Any] = {"score": 0.0}

    def __init__(self, metric: Any, kinds: Kinds) -> None:
        self._metric = metric
        self._kinds = kinds

    def item(self, row: Row) -> dict[str, Any]:
        """Return the example that a row is."""
        return row.value()

    def request(self, items: list[Any], threads: int) -> tuple[str, dict[str, Any]]:
        """Return the call of evaluate for some rows."""
        args = {"program_id": PROGRAM, "metric": self._metric, "include": ["cost"], "threads": threads}
        others = self._kinds.others(items)
        return "evaluate", {**args, "devset": items, **({"others": others} if others else {})}

    def read(self, reply: Any) -> tuple[list[dict[str, Any] | BridgeError], float]:
        """Return the results of the rows, and the time."""
        return dataset.results_of(reply)

    def label(self, row: Row) -> dict[str, Any]:
        """Return nothing: an example has no other name than its number."""
        return {}


def _example(row: Row) -> Any:
    try:
        return row.value()
    except errors.BridgeError:
        return row.line[:200].decode(errors="replace")
