"""A whole run: start a process for each format, let them take turns, and collect their figures."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from bridge.bench import beam, formats, payloads, report
from bridge.bench.estimates import estimate
from bridge.bench.format import Format
from bridge.bench.pipe import last_line

PATIENCE = 60.0  # seconds to wait for one answer; a slower format is N/A
# Environment variables for Python could slow down some contenders only.
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith("PYTHON") or name in ("PYTHONPATH", "PYTHONHOME")
}
CONTENDER = [sys.executable, "-P", "-m", "bridge.bench.contender"]
OnStep = Callable[[int, int, str], None]  # steps done, steps in all, the next step or "done"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a run.

    formats: names of built-in formats, or `module:attr`. payloads: names of built-in payloads.
    data: paths of files and folders. starts: how often every process is started; each start gives
    one sample, the median of its rounds. With one start, its rounds are the samples.
    budget: seconds for each step of a round. limit: seconds after which no further round begins,
    except for the first FEWEST. core: the core of all measured processes; None leaves the choice to
    the scheduler, -1 is the last core that this process may use.
    beam: measure a BEAM as the host too, if Elixir is installed.
    """

    formats: tuple[str, ...] = (*formats.BUILTIN, *formats.BRIDGE)
    payloads: tuple[str, ...] = tuple(payloads.BUILTIN)
    data: tuple[str, ...] = ()
    starts: int = 11
    rounds: int = 1
    budget: float = 0.03
    limit: float | None = None
    core: int | None = -1
    beam: bool = True
    quick: bool = False


QUICK: dict[str, Any] = {"starts": 1, "rounds": 5, "budget": 0.003, "limit": 45.0, "quick": True}
FEWEST = 3  # rounds of a start, regardless of the limit


def run(options: Options, on_step: OnStep = lambda done, of, what: None) -> report.Report:
    """Measure, and return the report. on_step: called before each step, and at the end.

    Raises ValueError with one line for an unknown format, KeyError for an unknown payload, BadData.
    """
    kinds = _named(options.formats)
    chosen = payloads.load(options.payloads, options.data)
    core = max(os.sched_getaffinity(0)) if options.core == -1 else options.core
    started, machine = time.monotonic(), report.machine()
    beams = beam.names() if options.beam else []
    runner = _Run(options, {label: spec for label, (spec, _) in kinds.items()}, beams, chosen, core, on_step)
    if options.beam and not beams:
        runner.notes.append("elixir is not installed: no BEAM measured")
    if machine["zstandard"] == report.NOT_INSTALLED:
        runner.notes.append("zstandard is not installed: no sizes after zstd")
    for start in range(options.starts):
        runner.start(start)
    on_step(runner.steps, runner.steps, "done")
    machine["load_after"] = list(os.getloadavg())
    infos = [_info(label, kind) for label, (_, kind) in kinds.items()]
    infos += [beam.info(name) for name in beams]
    settings: dict[str, Any] = msgspec.to_builtins(options)
    settings |= {"core": core}
    return report.Report(
        method=report.METHOD,
        made=report.now(),
        seconds=time.monotonic() - started,
        quick=options.quick,
        options=settings,
        machine=machine,
        formats=infos,
        payloads=[report.PayloadInfo(p.name, p.about, len(p.messages), p.digest, p.ascii) for p in chosen],
        cells=runner.cells(),
        notes=runner.notes,
    )


def _named(specs: tuple[str, ...]) -> dict[str, tuple[str, type[Format]]]:
    """Return name and class of each format, by the label that tables show."""
    found: dict[str, tuple[str, type[Format]]] = {}
    for spec in specs:
        kind = formats.load(spec)
        label = kind.name or spec.rpartition(":")[2]
        if label in found:
            raise ValueError(f"two formats have the name {label}: {found[label][0]} and {spec}")
        found[label] = spec, kind
    return found


def _info(label: str, kind: type[Format]) -> report.FormatInfo:
    group = "bridge" if kind.through_bridge else "typed" if kind.typed else "untyped"
    versions = report.versions_of(kind.packages)
    return report.FormatInfo(label, kind.about, group, kind.flags, versions)


class _Run:
    """The state of a run: what is known of each format with each payload, and its samples so far."""

    def __init__(
        self,
        options: Options,
        specs: dict[str, str],
        beams: list[str],
        chosen: list[payloads.Payload],
        core: int | None,
        on_step: OnStep,
    ) -> None:
        self.options, self.formats, self.core = options, specs, core
        names = self.names = [*specs, *beams]
        self.payloads = chosen
        self.facts: dict[tuple[str, str], dict[str, Any]] = {}
        self.samples: dict[tuple[str, str], dict[str, list[float]]] = {}
        self.on_step = on_step
        self.notes: list[str] = []
        self.began, self.done = time.monotonic(), 0
        self.steps = options.starts * len(chosen) * len(names) * (1 + options.rounds)
        # The order of contenders changes in each round.
        self.order = random.Random(0)

    def start(self, start: int) -> None:
        """Start all processes, and let each measure each payload `rounds` times, in turns."""
        with contextlib.ExitStack() as stack:
            contenders = {name: stack.enter_context(self._process(name)) for name in self.names}
            for name, contender in contenders.items():
                for index, payload in enumerate(self.payloads):
                    self._step(f"check {name}")
                    self._prepare(contender, (name, payload.name), index, first=start == 0)
            found: dict[tuple[str, str], list[dict[str, float]]] = {}
            for count in range(self.options.rounds):
                if count >= FEWEST and self._late():
                    self.notes.append(f"the machine is busy: {count} rounds within the time")
                    break
                for index, payload in enumerate(self.payloads):
                    for name in self.order.sample(self.names, len(self.names)):
                        self._step(f"{payload.name} as {name}")
                        key = (name, payload.name)
                        if (times := self._round(contenders[name], key, index)) is not None:
                            found.setdefault(key, []).append(times)
        for key, rounds in found.items():
            self._keep(key, rounds)

    def _late(self) -> bool:
        limit = self.options.limit
        return limit is not None and time.monotonic() - self.began > limit

    def _step(self, what: str) -> None:
        self.on_step(self.done, self.steps, what)
        self.done += 1

    def _prepare(self, contender: _Process, key: tuple[str, str], index: int, first: bool) -> None:
        if "reason" in self.facts.get(key, {}):
            return
        answer = contender.ask({"do": "prepare", "payload": key[1], "index": index, "memory": first})
        self.facts[key] = answer if first or "reason" in answer else self.facts[key]

    def _round(self, contender: _Process, key: tuple[str, str], index: int) -> dict[str, float] | None:
        if "reason" in self.facts[key]:
            return None
        answer = contender.ask({"do": "round", "payload": key[1], "index": index, "budget": self.options.budget})
        if "reason" in answer:
            self.facts[key] = answer
            return None
        times: dict[str, float] = answer["times"]
        return times

    def _keep(self, key: tuple[str, str], rounds: list[dict[str, float]]) -> None:
        series = self.samples.setdefault(key, {})
        for step in rounds[0]:
            figures = [times[step] for times in rounds]
            if self.options.starts > 1:
                figures = [estimate(figures).median]
            series.setdefault(step, []).extend(figures)

    def cells(self) -> list[report.Cell]:
        """Return the results, a cell for each format with each payload."""
        found = []
        for name in self.names:
            for payload in self.payloads:
                facts = self.facts[name, payload.name]
                cell = report.Cell(name, payload.name)
                found.append(cell)
                if "reason" in facts:
                    cell.reason = facts["reason"]
                    continue
                cell.typed_reason, cell.bytes = facts.get("typed_reason"), facts["bytes"]
                cell.zstd, cell.memory = facts.get("zstd"), facts.get("memory")
                series = self.samples[name, payload.name]
                cell.times = {step: estimate(figures) for step, figures in series.items()}
        return found

    @contextlib.contextmanager
    def _process(self, name: str) -> Iterator[_Process]:
        with contextlib.ExitStack() as stack:
            if name in beam.FORMATS:
                folder = stack.enter_context(beam.files(self.payloads))
                command = beam.command(name, folder, self.options.data)
            else:
                command = [*CONTENDER, self.formats[name], *self.options.data]
            process = _Process(command, self.core)
            stack.callback(process.end)
            yield process


class _Process:
    """A contender's process, which takes orders as lines of JSON."""

    def __init__(self, command: list[str], core: int | None) -> None:
        self.output = tempfile.TemporaryFile()  # noqa: SIM115  # `end` closes it
        allowed = os.sched_getaffinity(0)
        if core is not None:
            os.sched_setaffinity(0, {core})  # applies to this thread, and to processes that it starts
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.output,
                env=ENVIRONMENT,
                process_group=0,  # to kill it together with its worker
            )
        finally:
            os.sched_setaffinity(0, allowed)
        self.failure: dict[str, Any] | None = None

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Send an order, and return the answer, or a reason if the process has ended or does not answer."""
        if self.failure is not None:
            return self.failure
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(msgspec.json.encode(order) + b"\n")
            self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            self._kill()
            self.failure = {"reason": f"no answer within {PATIENCE:.0f} s"}
            return self.failure
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            self.failure = {"reason": f"its process ended ({status}): {last_line(self.output)}"}
            return self.failure
        answer: dict[str, Any] = msgspec.json.decode(line)
        return answer

    def end(self) -> None:
        """Close the pipes, and kill the process if it does not end within 5 s."""
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self._kill()
        self.output.close()

    def _kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
