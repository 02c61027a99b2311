"""The order in which a node starts the calls that arrive."""

from __future__ import annotations

import threading

from bridge.host.threads import Threads
from bridge.ray.order import LANES, Order
from peer import wait_until


class Log:
    """Jobs that note their names when they run, of which some wait until they may end."""

    def __init__(self):
        self.names = []
        self.gates = {}

    def job(self, name, *, waits=False):
        gate = self.gates[name] = threading.Event()
        if not waits:
            gate.set()

        def run():
            self.names.append(name)
            gate.wait(30)

        return run


def test_jobs_with_one_key_run_one_after_the_other():
    """Those with other keys, or with none, do not wait for them."""
    log, order = Log(), Order(Threads("test").run)
    order.add("ann", log.job("ann 0", waits=True))
    for number in range(1, 20):
        order.add("ann", log.job(f"ann {number}"))
    for number in range(LANES - 1):
        order.add(None, log.job(f"other {number}"))
    wait_until(lambda: len([name for name in log.names if name.startswith("other")]) >= LANES - 2)
    assert "ann 1" not in log.names
    log.gates["ann 0"].set()
    wait_until(lambda: len(log.names) == 20 + LANES - 1)
    assert [name for name in log.names if name.startswith("ann")] == [f"ann {n}" for n in range(20)]


def test_a_shared_job_runs_between_those_before_and_after_it():
    """Several in a row do so in their order."""
    log, order = Log(), Order(Threads("test").run)
    order.add("ann", log.job("before", waits=True))
    order.add_shared(log.job("first", waits=True))
    order.add_shared(log.job("second"))
    order.add("ann", log.job("after"))
    order.add(None, log.job("after too"))
    assert log.names in ([], ["before"])
    log.gates["before"].set()
    wait_until(lambda: log.names == ["before", "first"])
    log.gates["first"].set()
    wait_until(lambda: len(log.names) == 5)
    assert log.names[:3] == ["before", "first", "second"]
    order.add_shared(log.job("last"))
    wait_until(lambda: log.names[-1] == "last")


def test_a_job_that_fails_does_not_hold_up_the_others(caplog):
    log, order = Log(), Order(Threads("test").run)

    def fail():
        raise RuntimeError("no")

    order.add("ann", fail)
    order.add_shared(fail)
    order.add("ann", log.job("after"))
    wait_until(lambda: log.names == ["after"])
    assert [record.message for record in caplog.records] == ["a call could not be started"] * 2
