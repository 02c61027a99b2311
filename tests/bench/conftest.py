"""Fixtures of the tests of the benchmark."""

from __future__ import annotations

import contextlib

import pytest

from bench_runs import OWN, SUPPORT, TINY
from bridge.bench import Options, formats, run
from bridge.bench.report import Report


@pytest.fixture(scope="module")
def report() -> Report:
    """Return a tiny run of every format, including a user-defined one, and a BEAM if Elixir is installed."""
    own = [f"bench_formats:{name}" for name in OWN]
    chosen = {"formats": (*formats.BUILTIN, *formats.BRIDGE, *own)}
    with contextlib.chdir(SUPPORT):
        return run(Options(**TINY, **chosen, payloads=("ping", "rows", "floats-768")))
