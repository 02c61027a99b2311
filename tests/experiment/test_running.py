"""Runs on many rows: how many at a time, what is asked again, and when the work stops. The workers are functions."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from bridge import errors
from bridge.experiment.asking import Limits, Stopped
from bridge.experiment.rows import Row
from bridge.experiment.running import DEATHS, TRIES, Runs

BUSY = errors.LMError("busy", status=429, retry_after=0.01)


class Workers:
    """Answers calls with what a function returns or raises, on threads of its own. most: calls at the same time."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = []
        self.most = self._open = 0
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(32)

    def submit(self, command, args=None, *, timeout=None):
        return self._threads.submit(self._run, args)

    def _run(self, args):
        with self._lock:
            self.asked.append(args)
            self._open += 1
            self.most = max(self.most, self._open)
        try:
            return self.answer(args)
        finally:
            with self._lock:
                self._open -= 1


def rows(count):
    return [Row(index, b"{}") for index in range(count)]


class Numbers:
    """Calls for the numbers of rows: a number alone, or a list of several."""

    row_path = "args.inputs"

    def item(self, row):
        return row.index

    def request(self, items, threads):
        return "run", items[0] if len(items) == 1 else items

    def read(self, reply):
        return reply if isinstance(reply, list) else [reply], 0.0


def runs_of(answer, **limits):
    workers = Workers(answer)
    return workers, Runs(workers, Numbers(), Limits(8, **limits))


def outcomes(runs, given):
    """Return the results and the error codes of the rows, by their numbers. Each row has one outcome at most."""
    found = [outcome for some in runs.outcomes(given) for outcome in some]
    by_row = {row.index: result if error is None else error.code for row, result, error in found}
    assert len(by_row) == len(found)
    return by_row


def test_each_row_has_one_result():
    workers, runs = runs_of(lambda index: index * 2)
    assert outcomes(runs, rows(500)) == {index: index * 2 for index in range(500)}
    assert len(workers.asked) == 500
    assert workers.most <= 8
    assert runs.stopped is None


def test_rows_are_read_only_when_there_is_room():
    """However many rows there are, few of them are in memory."""
    read = []
    gate = threading.Event()

    def counted():
        for row in rows(100):
            read.append(row)
            yield row

    _, runs = runs_of(lambda index: gate.wait(60))
    steps = runs.outcomes(counted())
    next(steps)
    assert len(read) == 8
    gate.set()
    assert sum(map(len, steps)) == 100


def test_few_large_rows_are_asked_at_the_same_time():
    workers, runs = runs_of(lambda index: index)
    large = [Row(index, bytes(40 << 20)) for index in range(6)]
    assert len(outcomes(runs, large)) == 6
    assert workers.most <= 2


@pytest.mark.parametrize(
    "error",
    [errors.LMError("unreadable"), errors.InvalidArgs("wrong", path="args.inputs.q"), errors.FrameTooLarge("long")],
)
def test_an_error_of_a_row_is_its_result(error):
    def answer(index):
        if index == 3:
            raise error
        return index

    workers, runs = runs_of(answer)
    assert outcomes(runs, rows(10)) == {**{index: index for index in range(10)}, 3: error.code}
    assert len(workers.asked) == 10


def test_a_row_that_cannot_be_sent_has_an_error():
    class Wrong(Numbers):
        def item(self, row):
            if row.index == 2:
                raise errors.InvalidArgs("not JSON")
            return row.index

    runs = Runs(Workers(lambda index: index), Wrong(), Limits(2))
    assert outcomes(runs, rows(4)) == {0: 0, 1: 1, 2: "invalid_args", 3: 3}


@pytest.mark.parametrize("error", [BUSY, errors.CircuitOpen("open", retry_after=0.01)])
def test_an_outage_fails_no_row(error):
    """While no row succeeds, one at a time is asked; the work goes on when one does."""
    left = iter(range(40))

    def answer(index):
        if next(left, None) is not None:
            raise error
        return index

    workers, runs = runs_of(answer)
    assert outcomes(runs, rows(100)) == {index: index for index in range(100)}
    assert len(workers.asked) == 140


def test_an_outage_that_lasts_ends_the_work():
    def answer(index):
        raise BUSY

    _, runs = runs_of(answer, patience=0.2)
    assert outcomes(runs, rows(100)) == {}
    assert "busy" in runs.stopped.reason


def test_a_provider_that_asks_to_wait_for_too_long_ends_the_work_at_once():
    def answer(index):
        raise errors.LMError("come back tomorrow", status=429, retry_after=86_400)

    workers, runs = runs_of(answer)
    assert outcomes(runs, rows(100)) == {}
    assert "tomorrow" in runs.stopped.reason
    assert len(workers.asked) <= 8


def test_a_row_for_which_the_model_always_fails_does_not_hold_up_the_others():
    def answer(index):
        if index == 3:
            raise errors.LMError("server error", status=500, retryable=True)
        return index

    workers, runs = runs_of(answer)
    found = outcomes(runs, rows(200))
    assert found == {**{index: index for index in range(200)}, 3: "lm_error"}
    assert workers.asked.count(3) <= TRIES + 1


def test_the_last_rows_may_be_those_for_which_the_model_always_fails(monkeypatch):
    """Then no other row tells whether it answers; that it has answered some is enough."""
    monkeypatch.setattr("bridge.experiment.running.wait_after", lambda error, rounds: 0.01)

    def answer(index):
        if index >= 190:
            raise errors.LMError("server error", status=500, retryable=True)
        return index

    workers, runs = runs_of(answer)
    expected = {**{index: index for index in range(190)}, **dict.fromkeys(range(190, 200), "lm_error")}
    assert outcomes(runs, rows(200)) == expected
    assert runs.stopped is None
    assert workers.asked.count(199) <= TRIES + 1


@pytest.mark.parametrize(
    "error", [errors.LMError("slow down", status=429, retryable=True), errors.CircuitOpen("open", retry_after=0.001)]
)
def test_what_is_not_due_to_a_row_does_not_fail_it(error, monkeypatch):
    """A limited rate, or an open circuit, even if others succeed meanwhile."""
    monkeypatch.setattr("bridge.experiment.running.wait_after", lambda error, rounds: 0.001)

    def answer(index):
        if index == 3 and workers.asked.count(3) <= 4 * TRIES:
            raise error
        return index

    workers, runs = runs_of(answer)
    assert outcomes(runs, rows(1000)) == {index: index for index in range(1000)}


def test_a_row_whose_worker_dies_is_asked_again():
    deaths = iter([1, 1, 1])

    def answer(index):
        if index == 5 and next(deaths, None):
            raise errors.WorkerCrashed("the worker was ended by SIGKILL")
        return index

    workers, runs = runs_of(answer)
    assert outcomes(runs, rows(20)) == {index: index for index in range(20)}
    assert workers.asked.count(5) == 4


def test_a_row_that_ends_its_workers_is_found_out():
    """The others, which die with it, have results: after two deaths a row is asked alone."""
    alive = threading.Barrier(4)

    def answer(index):
        if workers.asked.count(index) <= 2:
            alive.wait(30)
            raise errors.WorkerCrashed("the worker was ended by SIGSEGV")
        if index == 3:
            raise errors.WorkerCrashed("the worker was ended by SIGSEGV")
        return index

    workers, runs = runs_of(answer)
    assert outcomes(runs, rows(4)) == {0: 0, 1: 1, 2: 2, 3: "worker_crashed"}
    assert workers.asked.count(3) == DEATHS


@pytest.mark.parametrize(
    "error",
    [
        errors.LMError("wrong key", status=401),
        errors.LMError("no such model", status=404),
        errors.LMNotConfigured("no model"),
        errors.InvalidArgs("unknown metric", path="args.metric"),
    ],
)
def test_what_all_rows_would_fail_with_ends_the_work(error):
    """No row has that error as its result, so that it is asked again when the work is continued."""

    def answer(index):
        if index >= 10:
            raise error
        return index

    workers, runs = runs_of(answer)
    assert outcomes(runs, rows(1000)) == {index: index for index in range(10)}
    assert len(workers.asked) < 30
    assert error.code in runs.stopped.reason


def test_many_errors_in_a_row_end_the_work():
    def answer(index):
        if index % 10 == 0 or index >= 500:
            raise errors.LMError("unreadable")
        return index

    _, runs = runs_of(answer)
    found = outcomes(runs, rows(1000))
    assert 590 <= len(found) <= 620
    assert runs.stopped.reason.startswith("100 rows in a row have failed; the last one: lm_error: unreadable")


def test_the_user_says_how_many_errors_end_the_work():
    def answer(index):
        if index % 2:
            raise errors.LMError("unreadable")
        return index

    _, runs = runs_of(answer, failures=5, in_a_row=False)
    found = outcomes(runs, rows(1000))
    assert 9 <= len(found) <= 30
    assert runs.stopped.reason.startswith("5 rows have failed")


def test_rows_that_have_been_sent_have_results_when_the_work_is_stopped():
    started = threading.Semaphore(0)
    gate = threading.Event()

    def answer(index):
        started.release()
        gate.wait(60)
        return index

    workers, runs = runs_of(answer)
    steps = runs.outcomes(rows(100))
    assert next(steps) == []
    for _ in range(8):
        started.acquire()
    runs.stop(Stopped("stopped by SIGINT", 2))
    gate.set()
    assert sum(map(len, steps)) == 8
    assert len(workers.asked) == 8


def test_the_grace_time_ends():
    """What has not ended by then is cancelled, and has no result."""
    cancelled = []

    class Silent:
        def submit(self, command, args=None, *, timeout=None):
            call = Future()
            call.add_done_callback(cancelled.append)
            return call

    runs = Runs(Silent(), Numbers(), Limits(4, grace=0.05))
    steps = runs.outcomes(rows(10))
    next(steps)
    runs.stop(Stopped("stopped by SIGINT", 2))
    assert sum(map(len, steps)) == 0
    assert len(cancelled) == 4


def test_calls_that_are_over_at_once_have_several_rows():
    """As many at a time as before; rows have their own results and errors."""

    def answer(index):
        indexes = index if isinstance(index, list) else [index]
        return [errors.LMError("unreadable") if each == 77 else each for each in indexes]

    workers, runs = runs_of(answer, batch=4, width=4)
    assert outcomes(runs, rows(200)) == {**{index: index for index in range(200)}, 77: "lm_error"}
    assert len(workers.asked) < 150
    assert max(len(each) for each in workers.asked if isinstance(each, list)) == 4
    assert workers.most <= 8


@pytest.mark.parametrize(
    ("error", "codes"),
    [
        (errors.ReplyTooLarge("the results are too long"), {}),
        (errors.InvalidArgs("wrong", path="args.inputs[2]"), {150: "invalid_args"}),
        (errors.WorkerCrashed("the worker was ended by SIGSEGV"), {150: "worker_crashed"}),
    ],
)
def test_rows_whose_call_has_failed_are_asked_one_by_one(error, codes):
    """The reason may be one of them, or that they are several."""

    def answer(index):
        indexes = index if isinstance(index, list) else [index]
        if 150 in indexes and (len(indexes) > 1 or codes):
            raise error
        return indexes

    workers, runs = runs_of(answer, batch=4, width=4)
    found = outcomes(runs, rows(200))
    assert found == {**{index: index for index in range(200)}, **codes}
    assert 150 in workers.asked
