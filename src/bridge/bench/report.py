"""The results of a run, which can be written to JSON and read again."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import msgspec

from bridge.bench.estimates import Estimate
from bridge.version import __version__

VERSION = 1  # of the file format; `load` accepts no other
METHOD = 2  # of measuring; method 1 encoded text outside ASCII from strings whose UTF-8 was cached

# The keys of a cell's `times`, in ns per message. The parts of a round trip begin with `trip_`.
STEPS = {
    "encode": "native to bytes",
    "decode": "bytes to native",
    "typed": "bytes to an object of a declared type",
    "build": "value to native, if natives are not Python objects",
    "read": "native to value, if natives are not Python objects",
    "trip_total": "a round trip to a worker and back",
    "trip_build": "build in both processes",
    "trip_encode": "encode in both processes",
    "trip_pipe": "pipes, framing, process switches",
    "trip_decode": "decode in both processes",
    "trip_read": "read in both processes",
}
NOT_INSTALLED = "not installed"  # instead of a version
PARTS = ("trip_build", "trip_encode", "trip_pipe", "trip_decode", "trip_read")


class FormatInfo(msgspec.Struct):
    """A format of a run.

    group: "untyped" or "typed"; "bridge" (a worker of this project) or "beam" (the host is a BEAM),
    whose round trips include other work and are not compared with those of the first two.
    """

    name: str
    about: str
    group: str
    flags: str
    versions: dict[str, str]


class PayloadInfo(msgspec.Struct):
    """A payload of a run. digest, ascii: see `payloads.Payload`; None in reports of method 1."""

    name: str
    about: str
    messages: int
    digest: str | None = None
    ascii: bool | None = None


class Cell(msgspec.Struct):
    """The figures of one format with one payload.

    reason: why the pair is N/A; then there are no figures. bytes, zstd, memory: the mean of a message,
    see `case.Case`. typed_reason: why `times` has no `typed`. times: by the keys of STEPS.
    """

    format: str
    payload: str
    reason: str | None = None
    typed_reason: str | None = None
    bytes: float | None = None
    zstd: float | None = None
    memory: float | None = None
    times: dict[str, Estimate] = {}

    def median(self, step: str) -> float | None:
        """Return the median time of a step in ns, or None if it was not measured."""
        return self.times[step].median if step in self.times else None

    @property
    def total(self) -> float | None:
        """Return the median time of the whole round trip in ns."""
        return self.median("trip_total")


class Report(msgspec.Struct, kw_only=True):
    """The results of one run, with its machine and options."""

    version: int = VERSION
    method: int = 1  # METHOD; missing in reports of method 1
    bridge: str = __version__
    made: str
    seconds: float
    quick: bool
    options: dict[str, Any]
    machine: dict[str, Any]
    formats: list[FormatInfo]
    payloads: list[PayloadInfo]
    cells: list[Cell]
    notes: list[str] = []

    def cell(self, format: str, payload: str) -> Cell | None:
        """Return the figures of a format with a payload, or None if the run lacks the pair."""
        return next((c for c in self.cells if (c.format, c.payload) == (format, payload)), None)

    def group(self, *names: str) -> list[FormatInfo]:
        """Return the formats of these groups."""
        return [format for format in self.formats if format.group in names]

    def encode(self) -> bytes:
        """Return the report as JSON, with a line for each cell."""
        whole = msgspec.to_builtins(self)
        cells = b",\n".join(msgspec.json.encode(_rounded(cell)) for cell in whole.pop("cells"))
        head = msgspec.json.format(msgspec.json.encode(whole), indent=1).removesuffix(b"\n}")
        return head + b',\n "cells": [\n' + cells + b"\n]}\n"

    def save(self, path: str | Path) -> None:
        """Write the report to a file. Raises OSError."""
        Path(path).write_bytes(self.encode())


def load(path: str | Path) -> Report:
    """Return a report that `save` wrote. Raises ValueError with one line that names the file."""
    try:
        report = msgspec.json.decode(Path(path).read_bytes(), type=Report)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a report of this benchmark: {error}") from None
    if report.version != VERSION:
        raise ValueError(f"{path}: a report of version {report.version}, and only version {VERSION} can be read")
    return report


def _rounded(value: Any) -> Any:
    """Round times and bytes to a tenth: further digits are noise, and would double the file."""
    if isinstance(value, float):
        return round(value, 1)
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list) else value


def versions_of(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the installed versions of distributions by name."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = NOT_INSTALLED
    return found


def now() -> str:
    """Return the time in ISO 8601, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def machine() -> dict[str, Any]:
    """Return the properties of the machine and of Python that influence figures."""
    arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
    return {
        "cpu": _first("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": os.cpu_count(),
        "cores_allowed": sorted(os.sched_getaffinity(0)),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "virtual": "hypervisor" in (_first("/proc/cpuinfo", "flags") or ""),
        "memory_mib": int((_first("/proc/meminfo", "MemTotal") or "0").split()[0]) >> 10,
        "system": platform.platform(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "build": "PGO" if "--enable-optimizations" in arguments else "without PGO",
        "gil": getattr(sys, "_is_gil_enabled", lambda: True)(),
        "otp": _otp(),
        **versions_of(("zstandard",)),  # compresses for all sizes after zstd
        "load_before": list(os.getloadavg()),
    }


def _otp() -> str | None:
    if not shutil.which("elixir"):
        return None
    code = 'IO.puts("Elixir #{System.version()}, OTP #{System.otp_release()}")'
    done = subprocess.run(["elixir", "-e", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _first(path: str, name: str) -> str | None:
    lines = (_read(path) or "").splitlines()
    return next((ln.partition(":")[2].strip() for ln in lines if ln.startswith(name)), None)
