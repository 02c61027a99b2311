"""The statistics as Prometheus text, made from the recorders at each scrape.

Only `exporters` imports this module, because it imports prometheus_client.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from bridge._histogram import Histogram
from bridge.version import __version__
from bridge.worker._companion import lines_lost
from bridge.worker.session import Session
from bridge.worker.stats import OpenCalls, resources, used_commands

if TYPE_CHECKING:
    from bridge._dispatch import Command
    from bridge.worker.state import Worker

# Whole octaves of the histograms, so that the counts are exact: 4 µs to 9 minutes, in ns.
BOUNDS = tuple(2**power - 1 for power in range(12, 40))


def prometheus(worker: Worker, calls: OpenCalls, sessions: Sequence[Session], uptime: float) -> dict[str, str]:
    """Return {content_type, text} with the metrics of the worker, of each command, and of `sessions`."""
    registry = CollectorRegistry()
    registry.register(WorkerCollector(worker, uptime))
    commands = used_commands(worker, calls)
    registry.register(GroupCollector("command", {each.name: each for each in commands}, calls))
    if sessions:
        registry.register(GroupCollector("session", {each.id: each for each in sessions}, calls))
    text = generate_latest(registry).decode()
    return {"content_type": CONTENT_TYPE_PLAIN_0_0_4, "text": text}


class GroupCollector(Collector):
    """Collects the metrics of each command, or of each session. kind: "command" or "session", the name of the label."""

    def __init__(self, kind: str, rows: dict[str, Command | Session], calls: OpenCalls) -> None:
        self._prefix = "bridge" if kind == "command" else f"bridge_{kind}"
        self._labels = [kind]
        self._rows = rows
        self._calls = calls

    def collect(self) -> Iterator[Metric]:
        totals = {name: row.recorder.total() for name, row in self._rows.items()}
        calls = self._counter("calls", "Calls that were answered, with a result or an error.")
        received = self._counter("received_bytes", "Bytes of requests.")
        sent = self._counter("sent_bytes", "Bytes of replies.")
        for name, total in totals.items():
            calls.add_metric([name], total.calls)
            received.add_metric([name], total.bytes_in)
            sent.add_metric([name], total.bytes_out)
        yield from (calls, received, sent, self._errors(), self._duration(totals))
        yield self._open("in_flight", "Calls without a reply yet.", self._calls.in_flight)
        yield self._open("queued", "Calls that wait for their turn or for a thread.", self._calls.queued)
        yield from self._counters().values()

    def _counter(self, name: str, help: str) -> CounterMetricFamily:
        return CounterMetricFamily(f"{self._prefix}_{name}", help, labels=self._labels)

    def _errors(self) -> Metric:
        family = CounterMetricFamily(
            f"{self._prefix}_errors",
            "Calls that were answered with an error.",
            labels=[*self._labels, "category"],
        )
        for name, row in self._rows.items():
            for category, errors in row.recorder.errors_by_category.items():
                family.add_metric([name, category], errors)
        return family

    def _duration(self, totals: dict[str, Histogram]) -> Metric:
        """Return the durations as a histogram; for sessions, of which there may be many, as a summary."""
        name, help = f"{self._prefix}_call_duration_seconds", "Time from reading the request to its reply."
        if self._labels == ["session"]:
            summary = SummaryMetricFamily(name, help, labels=self._labels)
            for row, total in totals.items():
                summary.add_metric([row], total.calls, total.sum_ns / 1e9)
            return summary
        histogram = HistogramMetricFamily(name, help, labels=self._labels)
        for row, total in totals.items():
            buckets = [(repr(bound / 1e9), float(total.calls_within(bound))) for bound in BOUNDS]
            histogram.add_metric([row], [*buckets, ("+Inf", total.calls)], total.sum_ns / 1e9)
        return histogram

    def _open(self, name: str, help: str, counts: Counter[Command | Session]) -> Metric:
        family = GaugeMetricFamily(f"{self._prefix}_calls_{name}", help, labels=self._labels)
        for label, row in self._rows.items():
            family.add_metric([label], counts[row])
        return family

    def _counters(self) -> dict[str, CounterMetricFamily]:
        """Return the counters of the adapter, with a prefix that no metric of the worker has."""
        families: dict[str, CounterMetricFamily] = {}
        for label, row in self._rows.items():
            for name, value in row.recorder.counters.items():
                if name not in families:
                    families[name] = self._counter(f"adapter_{name}", "Counted by the adapter.")
                families[name].add_metric([label], value)
        return families


class WorkerCollector(Collector):
    """Collects the metrics of the worker as a whole: its process, threads and sessions."""

    def __init__(self, worker: Worker, uptime: float) -> None:
        self._worker = worker
        self._uptime = uptime

    def collect(self) -> Iterator[Metric]:
        worker, numbers = self._worker, resources(self._uptime)
        info = {
            "version": __version__,
            "adapter": worker.adapter.name,
            "mode": worker.options.mode,
            "worker_id": worker.options.worker_id or "",
        }
        yield InfoMetricFamily("bridge_worker", "Version, adapter, mode and id of the worker.", value=info)
        yield _counter("refused", "Frames that did not become a call.", "category", dict(worker.refused))
        threads = worker.threads
        yield _gauge("sessions", "Live sessions.", len(worker.sessions))
        yield _gauge("threads_lost", "Threads that are still busy with calls that are over.", threads.lost)
        yield CounterMetricFamily(
            "bridge_calls_written_off", "Calls that ended while their handler still ran.", threads.written_off
        )
        yield CounterMetricFamily(
            "bridge_calls_shed",
            "Calls that were refused because they had waited too long for a thread.",
            worker.calls.shed,
        )
        yield _gauge("calls_waiting_for_host", "Calls that are paused, or wait for the host.", threads.waiting)
        yield _gauge("queue_bytes", "Bytes of the requests of open calls.", worker.calls.bytes)
        yield _gauge("stuck_seconds", "Seconds without progress on any thread; 0: not stuck.", worker.stuck_s)
        yield CounterMetricFamily(
            "bridge_log_lines_lost", "Lines that were dropped because stderr was not read.", lines_lost()
        )
        yield _gauge("uptime_seconds", "Seconds since the start of the process.", numbers["uptime"])
        yield _gauge("process_resident_memory_bytes", "Memory in use.", numbers["rss"])
        yield _gauge("process_virtual_memory_bytes", "Memory mapped.", numbers["vms"])
        yield _gauge("process_threads", "Threads, including those of libraries.", numbers["threads"])
        yield _gauge("process_open_fds", "Open descriptors.", numbers["fds"])
        cpu = {"user": numbers["cpu_user"], "system": numbers["cpu_system"]}
        yield _counter("process_cpu_seconds", "CPU time.", "mode", cpu)
        for name, values in numbers["gc"].items():
            by_generation = {str(generation): value for generation, value in enumerate(values)}
            yield _counter(f"process_gc_{name}", f"gc: {name}.", "generation", by_generation)


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(f"bridge_{name}", help, value)


def _counter(name: str, help: str, label: str, values: dict[str, float]) -> Metric:
    family = CounterMetricFamily(f"bridge_{name}", help, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
