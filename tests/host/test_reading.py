"""Who reads the replies: a caller for all callers, or the background thread while no caller does."""

from __future__ import annotations

import concurrent.futures
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bridge import Client, errors
from client_uses import HANG, SUPPORT_PATH
from peer import wait_until


@pytest.fixture
def client_and_thread():
    """Return a client, and the only thread that it has started."""
    before = set(threading.enumerate())
    with Client.start(adapter="echo") as client:
        client.call("ping")
        (thread,) = set(threading.enumerate()) - before
        yield client, thread


def switches(thread):
    """Return how often a thread of this process has waited."""
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def test_a_client_has_one_thread(client_and_thread):
    """It starts others for tools, listeners and callbacks only."""
    client, thread = client_and_thread
    client.stop()
    thread.join(HANG)
    assert not thread.is_alive()


def test_a_single_caller_wakes_no_other_thread(client_and_thread):
    """The background thread sleeps, apart from a look at the clock now and then."""
    client, thread = client_and_thread
    client.call("ping")
    before = switches(thread)
    for _ in range(3000):
        client.call("ping")
    assert switches(thread) - before < 1500


def test_futures_end_although_nobody_asks_for_them(client):
    """The background thread reads for them, also while a caller waits for something else."""
    slow = threading.Thread(target=client.call, args=("sleep", {"seconds": 0.5}))
    slow.start()
    calls = [client.submit("ping") for _ in range(50)]
    done, _ = concurrent.futures.wait(calls, HANG)
    assert len(done) == 50
    for _ in range(20):
        client.call("ping")
        assert not concurrent.futures.wait([client.submit("ping")], HANG).not_done
    slow.join(HANG)


def test_callers_take_turns_at_reading(client):
    """Whichever caller reads, each gets its own reply, in any order."""

    def call(number):
        for step in range(30):
            sent = {"n": number, "step": step}
            assert client.call("echo", sent) == sent
        return client.call("sleep", {"seconds": (number % 5) / 100})

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for future in [pool.submit(call, number) for number in range(16)]:
            future.result(HANG)


def test_a_reader_whose_time_is_over_hands_over(client):
    """The others wait on, and get their replies."""

    def give_up():
        with pytest.raises(errors.DeadlineExceeded):
            client.call("sleep", {"seconds": 60}, timeout=0.1)

    impatient = [threading.Thread(target=give_up) for _ in range(4)]
    for thread in impatient:
        thread.start()
    assert client.call("sleep", {"seconds": 0.8}) == {"slept": 0.8}
    for thread in impatient:
        thread.join(HANG)


def in_a_host(program):
    """Run a host in which signals may interrupt the main thread, and return what it prints."""
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=HANG,
        env={**os.environ, **SUPPORT_PATH},
    )
    assert result.stderr == ""
    return result.stdout


HOST = """
import os, signal, threading, time
from bridge import Client, errors
client = Client.start(adapter="hostile:adapter")
client.call("ping")
def later(seconds, sign):
    threading.Timer(seconds, os.kill, (os.getpid(), sign)).start()
"""


def test_a_signal_handler_may_call_while_its_thread_reads():
    """The outer call goes on afterwards."""
    program = """
seen = []
signal.signal(signal.SIGUSR1, lambda *_: seen.append(client.call("echo", {"from": "handler"})))
later(0.2, signal.SIGUSR1)
print(client.call("sleep", {"seconds": 0.6}), seen, client.stop())
"""
    assert in_a_host(HOST + program) == "{'slept': 0.6} [{'from': 'handler'}] 0\n"


def test_others_get_their_replies_while_a_signal_handler_of_the_reader_waits():
    """The handler's thread reads no more as long as the handler runs."""
    program = """
replies = []
def handler(*_):
    thread = threading.Thread(target=lambda: replies.append(client.call("echo", {"a": 1})))
    thread.start()
    thread.join(20)
signal.signal(signal.SIGUSR1, handler)
later(0.2, signal.SIGUSR1)
print(client.call("sleep", {"seconds": 0.6}), replies, client.stop())
"""
    assert in_a_host(HOST + program) == "{'slept': 0.6} [{'a': 1}] 0\n"


def test_the_background_thread_reads_while_a_signal_handler_of_a_waiting_caller_waits():
    """The caller whose thread runs the handler does not count as one that waits."""
    program = """
def handler(*_):
    call = client.submit("sleep", {"seconds": 0.5})
    print(len(concurrent.futures.wait([call], 20).done))
signal.signal(signal.SIGUSR1, handler)
reader = threading.Thread(target=client.call, args=("sleep", {"seconds": 0.4}))
reader.start()
time.sleep(0.1)
later(0.1, signal.SIGUSR1)
print(client.call("sleep", {"seconds": 1.2}), client.stop())
"""
    assert in_a_host("import concurrent.futures" + HOST + program) == "1\n{'slept': 1.2} 0\n"


def test_a_signal_handler_may_stop_the_client_while_its_thread_reads():
    program = """
signal.signal(signal.SIGUSR1, lambda *_: print(client.kill(), flush=True))
later(0.2, signal.SIGUSR1)
try:
    client.call("sleep", {"seconds": 60})
except errors.WorkerCrashed as error:
    print(error)
"""
    assert in_a_host(HOST + program) == "-9\nthe client was stopped\n"


def test_an_interrupted_reader_loses_no_reply_of_the_others():
    """KeyboardInterrupt ends its call, at any moment, and nothing else."""
    program = """
failures, done = [], threading.Event()
def call():
    number = 0
    while not done.is_set():
        number += 1
        try:
            assert client.call("echo", {"n": number}, timeout=10) == {"n": number}
        except BaseException as error:
            failures.append(repr(error))
threads = [threading.Thread(target=call) for _ in range(3)]
for thread in threads: thread.start()
def interrupt():
    for _ in range(300):
        time.sleep(0.003)
        os.kill(os.getpid(), signal.SIGINT)
    done.set()
interrupts, last = 0, time.monotonic() + 15
threading.Thread(target=interrupt).start()
while not done.is_set() and time.monotonic() < last:
    try:
        while not done.is_set():
            client.call("ping", timeout=10)
    except KeyboardInterrupt:
        interrupts += 1
try:
    for thread in threads: thread.join()
except KeyboardInterrupt:
    for thread in threads: thread.join()
print(failures, interrupts > 0, client.call("echo", {"a": 1}), client.stop())
"""
    assert in_a_host("import signal; signal.signal(signal.SIGINT, signal.default_int_handler)" + HOST + program) == (
        "[] True {'a': 1} 0\n"
    )


def test_a_destructor_may_call_while_its_thread_reads(client):
    """It may run at any allocation."""
    results = []

    class Owner:
        def __init__(self):
            self.me = self

        def __del__(self):
            results.append(client.call("echo", {"a": 1}))

    def use():
        for _ in range(300):
            Owner()
            client.call("ping")

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
        assert not thread.is_alive()
    gc.collect()
    assert results == [{"a": 1}] * 1200


def test_the_end_of_the_worker_reaches_the_reader_and_the_waiting(client):
    """Each of them gets WorkerCrashed."""
    errors_seen = []

    def wait():
        with pytest.raises(errors.WorkerCrashed) as raised:
            client.call("sleep", {"seconds": 60})
        errors_seen.append(raised.value.category)

    threads = [threading.Thread(target=wait) for _ in range(5)]
    for thread in threads:
        thread.start()
    while client.stats()["in_flight"] < 5:
        time.sleep(0.01)
    os.kill(client.pid, signal.SIGKILL)
    for thread in threads:
        thread.join(HANG)
    assert errors_seen == ["connection"] * 5


def test_a_stream_and_its_result_in_two_threads(client):
    """One consumes the events while the other waits for the result."""
    stream = client.stream("emit", {"size": 2000})
    events = []
    thread = threading.Thread(target=lambda: events.extend(stream))
    thread.start()
    stream.result(HANG)
    thread.join(HANG)
    assert len(events) == 2000


def resident():
    """Return the resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_the_memory_of_a_long_reply_is_released(client):
    """The client reuses it for a second; then an idle client does not hold it."""
    client.call("echo", {"blob": bytes(10)})
    before = resident()
    blob = client.call("echo", {"blob": bytes(48 << 20)})["blob"]
    assert resident() - before > 40 << 20
    del blob
    wait_until(lambda: resident() - before < 20 << 20)


def test_a_stream_in_many_threads(client):
    """Each event goes to one of the threads, and each thread ends after the last event."""
    stream = client.stream("emit", {"size": 20_000})
    seen = [[] for _ in range(4)]
    threads = [threading.Thread(target=lambda events=events: events.extend(stream)) for events in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
        assert not thread.is_alive()
    assert sorted(data for events in seen for _, data in events) == list(range(20_000))
