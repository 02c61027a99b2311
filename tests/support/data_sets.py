"""Data sets for the commands map and evaluate, and runs of these commands."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from model_server import ModelServer, OpenAI

SIGNATURE = {"inputs": [{"name": "question"}, {"name": "passage"}], "outputs": [{"name": "answer"}]}
ROW = {"question": "Where was Mozart born?", "passage": "Mozart was born in Salzburg in 1756."}


def write_program(path: Path, **changes: Any) -> Path:
    """Write an experiment of the offline model, with other keys."""
    document = {"program": {"signature": SIGNATURE}, "models": [{"provider": "offline"}], **changes}
    path.write_text(json.dumps(document))
    return path


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def numbered(count: int, start: int = 0) -> list[dict[str, str]]:
    """Return rows that a `Model` knows by their numbers."""
    return [{**ROW, "question": f"number <{index}>"} for index in range(start, start + count)]


def results(path: Path) -> dict[int, dict[str, Any]]:
    """Return the results by the numbers of the rows. Each row has one."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = {line.pop("row"): line for line in lines}
    assert len(found) == len(lines)
    return found


def command(*arguments: Any, workers: int = 1) -> list[str]:
    return [sys.executable, "-m", "bridge", "map", "--workers", str(workers), *map(str, arguments)]


def run_map(*arguments: Any, workers: int = 1, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments, workers=workers), capture_output=True, text=True, timeout=120, **options)


def start_map(*arguments: Any, workers: int = 1, **options: Any) -> subprocess.Popen[str]:
    """Start the command in a process group of its own."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen(command(*arguments, workers=workers), **{**pipes, **options})


class Model(ModelServer):
    """A provider that answers with the number in the question, and counts how often each was asked.

    It takes as long as one at least does, so that no call gets several rows.

    refuse(number): returns a response in place of the answer, or None.
    """

    def __init__(self, refuse: Any = lambda number: None) -> None:
        super().__init__(self._answer)
        self.refuse = refuse
        self.asked: Counter[int] = Counter()

    def settings(self, **changes: Any) -> dict[str, Any]:
        return {"model": "openai/x", "api_base": f"{self.url}/v1", "api_key": "sk-x", "retries": 0, **changes}

    def _answer(self, body: dict[str, Any]) -> Any:
        number = int(body["messages"][-1]["content"].partition("<")[2].partition(">")[0])
        self.asked[number] += 1
        time.sleep(0.05)
        answer = (200, {}, OpenAI.whole(f"[[ ## answer ## ]]\nanswer {number}"))
        return self.refuse(number) or answer
