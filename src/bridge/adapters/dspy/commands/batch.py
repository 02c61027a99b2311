"""The command that runs a program on many inputs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from bridge import errors
from bridge.adapters.dspy.chosen_model import configured
from bridge.adapters.dspy.commands import adapter
from bridge.adapters.dspy.commands.execution import Run, RunArgs
from bridge.adapters.dspy.include import NOTHING, Include
from bridge.adapters.dspy.programs import find_program
from bridge.adapters.dspy.rows import DEFAULT_THREADS, RowResults, ThreadCount, error_of, run_rows

if TYPE_CHECKING:
    from bridge._dispatch import Context


class BatchArgs(RunArgs, kw_only=True):
    """The args of execute_batch.

    inputs: those of each run. threads: how many runs there are at once. include: what each result has in addition.
    results: whether the reply has the results; events have them, too.
    """

    inputs: list[Any]
    threads: ThreadCount = DEFAULT_THREADS
    include: Include = NOTHING
    results: bool = True


@adapter.command("execute_batch", BatchArgs, lane="run")
def execute_batch(args: BatchArgs, context: Context) -> dict[str, Any]:
    """Run a program on many inputs at once. A run that fails has an error as its result."""
    from bridge.adapters.dspy import run

    return execute(args, context, run.execute)


def execute(args: BatchArgs, context: Context, run: Run) -> dict[str, Any]:
    """Run a program for `execute_batch`. run: called as `run.execute` of this adapter is."""
    setup = args.setup(find_program(args.program_id, context), context, args.include)
    configured(setup.models)  # raises LMNotConfigured
    started = time.monotonic()
    rows = args.inputs
    results = RowResults("batch", len(rows), context, keep=args.results)

    def work(index: int, row_context: Context) -> Any:
        path = f"args.inputs[{index}]"
        try:
            done = run(setup, _inputs(rows[index], path), row_context, path)
            del done["program_id"]
        except errors.CallEnded:
            raise
        except BaseException as error:  # a module of the operator may raise anything
            done = {"error": error_of(error)}
        return results.encoded(index, done)

    run_rows(len(rows), work, lambda index, done: results.add(index, *done), args.threads, context)
    reply = {
        "program_id": setup.program.id,
        "total": len(rows),
        "succeeded": len(rows) - results.failed,
        "failed": results.failed,
        "execution_time": round(time.monotonic() - started, 6),
    }
    return reply if results.rows is None else {**reply, "results": results.rows}


def _inputs(row: Any, path: str) -> dict[str, Any]:
    if row == []:  # how some hosts write an empty map
        return {}
    if not isinstance(row, dict):
        raise errors.InvalidArgs(f"{path}: expected a map of inputs", path=path, expected="map")
    return row
