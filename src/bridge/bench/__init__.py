"""A tool that compares serialization formats on your machine, with your data.

It measures the time, bytes and memory of each format, over a real pipe. `benchmarks/` in the
repository is something else: it measures how fast this project is.

`run(Options(…))` returns a `Report`, `compare` the real differences between two. To add a format,
subclass `Format` and name it `module:attr`. `python -m bridge bench` is the command line.
"""

from bridge.bench.comparison import compare
from bridge.bench.format import Format, Unsuitable
from bridge.bench.measure import QUICK, Options, run
from bridge.bench.payloads import BadData, Payload
from bridge.bench.report import Report, load

__all__ = [
    "QUICK",
    "BadData",
    "Format",
    "Options",
    "Payload",
    "Report",
    "Unsuitable",
    "compare",
    "load",
    "run",
]
