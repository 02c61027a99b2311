"""The BEAM as a host, where elixir is installed: `beam.exs` does what `contender.py` does."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from bridge.bench.payloads import Payload
from bridge.bench.report import FormatInfo, versions_of
from bridge.wire import _etf

# What the BEAM speaks, and which format the Python worker at the other end answers with.
FORMATS = {"beam-etf": ("etf", "etf"), "beam-json": ("json", "msgspec-json")}
ABOUT = {
    "beam-etf": "from a BEAM: term_to_binary; the worker's ETF",
    "beam-json": "from a BEAM: Elixir's JSON; the worker's msgspec",
}
# On one core with its worker, a scheduler that spins before it sleeps would keep the worker off it.
FLAGS = "+sbwt none +sbwtdcpu none +sbwtdio none"


def names() -> list[str]:
    """Those that can be tried: none where elixir is not installed."""
    return list(FORMATS) if shutil.which("elixir") else []


def info(name: str) -> FormatInfo:
    return FormatInfo(name, ABOUT[name], "beam", FLAGS, versions_of(("dspex-bridge", "msgspec")))


def command(name: str, folder: str, data: Sequence[str]) -> list[str]:
    """The command of its process; `files` made `folder`."""
    script = str(Path(__file__).with_name("beam.exs"))
    spoken, worker = FORMATS[name]
    return ["elixir", "--erl", FLAGS, script, spoken, folder, sys.executable, worker, *data]


@contextlib.contextmanager
def files(payloads: Sequence[Payload]) -> Iterator[str]:
    """A folder of what `beam.exs` reads, by the payloads' numbers."""
    with tempfile.TemporaryDirectory(prefix="bridge-bench-") as folder:
        for index, payload in enumerate(payloads):
            Path(folder, f"{index}.etf").write_bytes(_etf.encode(payload.messages))
            Path(folder, f"{index}.name").write_bytes(msgspec.json.encode(payload.name))
        yield folder
