"""The BEAM as the host, if Elixir is installed: `beam.exs` does there what `contender.py` does here."""

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

# The format of the BEAM, and the one that the Python worker at the other end uses.
FORMATS = {"beam-etf": ("etf", "etf"), "beam-json": ("json", "msgspec-json")}
ABOUT = {
    "beam-etf": "from a BEAM: term_to_binary; the worker's ETF",
    "beam-json": "from a BEAM: Elixir's JSON; the worker's msgspec",
}
# A scheduler that spins before it sleeps would block the worker, which runs on the same core.
FLAGS = "+sbwt none +sbwtdcpu none +sbwtdio none"


def names() -> list[str]:
    """Return the formats that can be measured: none if Elixir is not installed."""
    return list(FORMATS) if shutil.which("elixir") else []


def info(name: str) -> FormatInfo:
    """Return the description of a format for the report."""
    return FormatInfo(name, ABOUT[name], "beam", FLAGS, versions_of(("dspex-bridge", "msgspec")))


def command(name: str, folder: str, data: Sequence[str]) -> list[str]:
    """Return the command line of the host. folder: made by `files`. data: the user's own files."""
    script = str(Path(__file__).with_name("beam.exs"))
    spoken, worker = FORMATS[name]
    return ["elixir", "--erl", FLAGS, script, spoken, folder, sys.executable, worker, *data]


@contextlib.contextmanager
def files(payloads: Sequence[Payload]) -> Iterator[str]:
    """Write payloads by number to a folder that `beam.exs` reads. Yields its path."""
    with tempfile.TemporaryDirectory(prefix="bridge-bench-") as folder:
        for index, payload in enumerate(payloads):
            Path(folder, f"{index}.etf").write_bytes(_etf.encode(payload.messages))
            Path(folder, f"{index}.name").write_bytes(msgspec.json.encode(payload.name))
        yield folder
