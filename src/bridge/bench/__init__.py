"""The benchmark of formats: what each costs in time, bytes and memory, and over a real pipe.

`run(Options(…))` makes a `Report`; `compare` says what is really different between two. A format of
one's own is a subclass of `Format`, named `module:attr`. `python -m bridge bench` is the same.
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
