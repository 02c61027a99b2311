"""The pool of threads: its limit, lost threads, jobs that wait for the host, and its end."""

from __future__ import annotations

import threading

import pytest

from bridge import errors
from bridge.worker.threads import Job, Threads
from peer import wait_until

WAIT = 30.0  # seconds, for what must happen


@pytest.fixture
def pool():
    """Return a function pool(limit, waiting_limit); its pools end after the test."""
    made = []

    def make(limit: int, waiting_limit: int = 10) -> Threads:
        made.append(Threads(limit, waiting_limit))
        return made[-1]

    yield make
    for threads in made:
        assert threads.stop(WAIT) == 0


class Gate:
    """Jobs that run until they are let go."""

    def __init__(self, threads: Threads) -> None:
        self.threads = threads
        self.running = 0
        self.most = 0
        self._lock = threading.Lock()
        self.opened = threading.Event()

    def submit(self) -> Job:
        job = Job(self._run)
        self.threads.submit(job)
        return job

    def _run(self) -> None:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        assert self.opened.wait(WAIT)
        with self._lock:
            self.running -= 1


def test_no_more_jobs_run_at_once_than_the_limit(pool):
    """The others wait and run afterwards."""
    threads = pool(3)
    gate = Gate(threads)
    for _ in range(10):
        gate.submit()
    wait_until(lambda: gate.running == 3)
    assert threads.is_full
    assert threads.unfinished == 10
    gate.opened.set()
    assert threads.drain(WAIT)
    assert gate.most == 3
    assert threads.unfinished == 0


def test_a_written_off_job_gives_its_thread_to_another(pool):
    """Its thread is lost until the job returns; writing it off twice counts once."""
    threads = pool(1)
    stuck, other = Gate(threads), Gate(threads)
    job = stuck.submit()
    wait_until(lambda: stuck.running == 1)
    other.opened.set()
    other.submit()
    assert threads.write_off(job)
    assert not threads.write_off(job)
    assert threads.drain(WAIT)
    assert other.most == 1
    assert (threads.lost, threads.written_off) == (1, 1)
    stuck.opened.set()
    wait_until(lambda: threads.lost == 0)
    assert threads.written_off == 1


def test_a_job_that_has_not_started_is_not_written_off(pool):
    """There is no thread to replace."""
    threads = pool(1)
    gate = Gate(threads)
    gate.submit()
    wait_until(lambda: gate.running == 1)
    assert not threads.write_off(gate.submit())
    gate.opened.set()


def test_jobs_that_wait_for_the_host_do_not_count(pool):
    """Another job runs meanwhile; beyond the limit of waiting ones the wait is refused."""
    threads = pool(1, 1)
    waits, refused = threading.Event(), []
    job: Job

    def wait_for_host() -> None:
        with threads.waiting_for_host(job):
            assert waits.wait(WAIT)

    def refuse() -> None:
        with pytest.raises(errors.Overloaded, match="--waiting") as raised, threads.waiting_for_host(second):
            pass
        refused.append(raised.value)

    job = Job(wait_for_host)
    threads.submit(job)
    wait_until(lambda: threads.waiting == 1)
    assert not threads.is_full
    second = Job(refuse)
    threads.submit(second)
    wait_until(lambda: refused)
    assert refused[0].details["limit"] == 1
    waits.set()
    assert threads.drain(WAIT)
    assert threads.waiting == 0


def test_after_its_end_a_pool_runs_jobs_on_the_callers_thread():
    """Nothing that was accepted is lost."""
    threads, ran = Threads(2, 2), []
    assert threads.stop(WAIT) == 0
    threads.submit(Job(lambda: ran.append(threading.get_ident())))
    assert ran == [threading.get_ident()]


def test_the_end_returns_how_many_threads_are_left():
    """Their jobs do not return."""
    threads = Threads(2, 2)
    gate = Gate(threads)
    gate.submit()
    wait_until(lambda: gate.running == 1)
    assert threads.stop(0.0) >= 1
    gate.opened.set()
    assert threads.stop(WAIT) == 0
