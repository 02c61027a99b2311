"""The Python clients beside a worker that stalls, breaks its stream, or ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import zlib

import pytest

from bridge import Client, errors
from bridge.wire import _etf
from client_uses import HANG, SUPPORT_PATH
from peer import is_running, wait_until
from stalling_proxy import TO_HOST, TO_WORKER, Pump, StallingProxy

BLOB = bytes(4 << 20)


@pytest.fixture
def proxy(tmp_path):
    proxy = StallingProxy(tmp_path)
    yield proxy
    proxy.close()


@pytest.fixture
def client(start_either, proxy):
    """Return a client of a worker behind the proxy."""
    with start_either(adapter="hostile:adapter", python=proxy.python, env=SUPPORT_PATH) as client:
        yield client


@pytest.fixture
def direct_client(process_client):
    return process_client


def in_threads(*jobs):
    """Run the jobs at the same time, and return what each of them returned or raised."""
    outcomes = [None] * len(jobs)

    def run(index):
        try:
            outcomes[index] = jobs[index]()
        except BaseException as error:
            outcomes[index] = error

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
        assert not thread.is_alive(), "a call does not return"
    return outcomes


def test_a_paused_stream_beside_callers_with_large_args(direct_client):
    """The reader thread never waits for a worker that waits for the reader."""

    def read_slowly():
        stream = direct_client.stream("emit", {"size": 2000})
        return sum(1 for _ in stream)

    def echo():
        return [direct_client.call("echo", {"blob": BLOB})["blob"] == BLOB for _ in range(5)]

    direct = in_threads(read_slowly, echo, echo)
    assert direct == [2000, [True] * 5, [True] * 5]


@pytest.mark.parametrize("stall", ["worker", "proxy"])
def test_a_call_ends_in_time_while_the_worker_does_not_read(client, proxy, stall):
    """The timeout includes sending, both for the caller whose frame is partly sent and for others."""
    if stall == "worker":
        os.kill(proxy.worker_pid, signal.SIGSTOP)
    else:
        proxy.stop(TO_WORKER)
    outcomes = in_threads(
        lambda: client.call("echo", {"blob": BLOB}, timeout=0.2),
        lambda: client.call("echo", {"blob": BLOB}, timeout=0.2),
        lambda: client.call("ping", timeout=0.2),
        lambda: client.submit("echo", {"blob": BLOB}, timeout=0.2).result(),
        lambda: client.stream("echo", {"blob": BLOB}, timeout=0.2).result(),
    )
    assert [type(outcome) for outcome in outcomes] == [errors.DeadlineExceeded] * 5
    if stall == "worker":
        os.kill(proxy.worker_pid, signal.SIGCONT)
    else:
        proxy.go(TO_WORKER)
    assert client.call("echo", {"blob": BLOB})["blob"] == BLOB  # the half frame was finished


def test_streams_end_in_time(client, proxy):
    """They end although the worker is silent and their results are not asked for."""
    proxy.stop(TO_WORKER)
    stream = client.stream("ping", timeout=0.2)
    assert list(stream) == []
    with pytest.raises(errors.DeadlineExceeded):
        stream.result(HANG)
    proxy.go(TO_WORKER)


def test_calls_with_listeners_end_in_time(proxy):
    """They end although the worker is silent and their results are not asked for."""
    ended = threading.Event()
    with Client.start(adapter="hostile:adapter", python=proxy.python, env=SUPPORT_PATH) as client:
        proxy.stop(TO_WORKER)
        call = client.submit("ping", timeout=0.2, on_event=lambda event, data: None)
        call.add_done_callback(lambda call: ended.set())
        assert ended.wait(HANG)
        with pytest.raises(errors.DeadlineExceeded):
            call.result()
        proxy.go(TO_WORKER)


def test_frames_in_small_pieces(client, proxy):
    """Each byte is passed on separately, in both directions."""
    for way in (TO_WORKER, TO_HOST):
        proxy.split(way, 1)
    sent = {"text": "x" * 3000}
    assert client.call("echo", sent) == sent


def test_arrays_through_a_small_pipe(client, proxy):
    """A multipart frame is sent in pieces, each from the end of the last."""
    proxy.slow(TO_WORKER, 50e6)
    sent = {f"part {number}": os.urandom(100_000 + number) for number in range(100)}
    assert client.call("echo", sent) == sent


def test_a_frame_that_cannot_be_read_ends_connection_and_worker(client, proxy):
    """Every caller gets the reason, and no process remains."""
    worker = proxy.worker_pid
    waiting = client.submit("sleep", {"seconds": 60})
    wait_until(lambda: client.stats()["in_flight"] == 1)
    proxy.insert(TO_HOST, b"\x00\x00\x00\x05\xffnope")
    with pytest.raises(errors.WorkerCrashed, match="frame that cannot be read"):
        waiting.result(HANG)
    with pytest.raises(errors.WorkerCrashed, match="frame that cannot be read"):
        client.call("ping")
    wait_until(lambda: not is_running(worker))


@pytest.mark.parametrize(
    "frame",
    [
        b"\x00\x00\x00\x03{}}",
        b"\x00\x00\x00\x01\x80",
        b"\x00\x00\x00\x04\xc1\x09\x00\x00",
        b"\x7f\xff\xff\xff",
        b"\x00\x00\x00\x02\x83\x74",
    ],
)
def test_every_kind_of_unreadable_frame(client, proxy, frame):
    """Garbage, a truncated frame, an unknown version and an excessive length end the connection."""
    waiting = client.submit("sleep", {"seconds": 60})
    proxy.insert(TO_HOST, frame)
    with pytest.raises(errors.WorkerCrashed, match="frame that cannot be read"):
        waiting.result(HANG)


def test_a_reply_that_does_not_decode_fails_its_call(client, proxy):
    """Its id can be read, so other calls continue."""
    waiting = client.submit("sleep", {"seconds": 60})
    other = client.submit("sleep", {"seconds": 0.2})
    reply = b'{"id": %d, "success": "perhaps"}' % waiting.id
    proxy.insert(TO_HOST, len(reply).to_bytes(4) + reply)
    with pytest.raises(errors.InvalidFrame, match="does not decode"):
        waiting.result(HANG)
    assert other.result(HANG) == {"slept": 0.2}


def test_a_compressed_reply(client, proxy):
    """Workers may compress ETF; a compressed message is not a multipart frame."""
    waiting = client.submit("sleep", {"seconds": 60})
    term = _etf.encode({"id": waiting.id, "success": True, "result": "x" * 10_000})
    reply = b"\x83P" + (len(term) - 1).to_bytes(4) + zlib.compress(term[1:])
    proxy.insert(TO_HOST, len(reply).to_bytes(4) + reply)
    assert waiting.result(HANG) == "x" * 10_000


def test_a_request_that_arrives_damaged(client, proxy):
    """The worker cannot read the id, so the only open call gets the error."""
    proxy.corrupt(TO_WORKER, b"\x00\x00\x00\x01\xff")
    with pytest.raises(errors.BridgeError) as raised:
        client.call("echo", {"a": 1}, timeout=None)
    assert raised.value.code in ("invalid_frame", "worker_crashed")


def test_a_worker_that_closes_its_pipe_is_killed(start_client, proxy):
    """It cannot receive calls anymore."""
    with start_client(adapter="hostile:adapter", python=proxy.python, env=SUPPORT_PATH) as client:
        worker = proxy.worker_pid
        waiting = client.submit("sleep", {"seconds": 60})
        proxy.stop(TO_WORKER)  # so that it does not end by itself
        proxy.cut(TO_HOST)
        with pytest.raises(errors.WorkerCrashed, match="closed its stdout"):
            waiting.result(HANG)
        wait_until(lambda: not is_running(worker))


def test_a_grandchild_that_holds_the_pipe_does_not_hide_the_end(direct_client):
    """The client watches the process, not only the pipe."""
    child = direct_client.call("fork", {"seconds": 60})["pid"]
    waiting = direct_client.submit("sleep", {"seconds": 60})
    wait_until(lambda: direct_client.stats()["in_flight"] == 1)
    os.kill(direct_client.pid, signal.SIGKILL)
    with pytest.raises(errors.WorkerCrashed, match="ended by SIGKILL"):
        waiting.result(HANG)
    assert is_running(child)
    os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("descriptors", [0, 1100], ids=["few", "many"])
def test_the_end_is_noticed_although_another_process_holds_the_pipe(tmp_path, descriptors):
    """This holds in hosts with more descriptors than select() supports."""
    launcher = tmp_path / "python"
    launcher.write_text(f'#!/bin/sh\nsetsid sleep 60 &\nexec "{sys.executable}" "$@"\n')
    launcher.chmod(0o755)
    program = f"""
import os, resource
from bridge import Client
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
files = [os.open(os.devnull, os.O_RDONLY) for _ in range({descriptors})]
client = Client.start(adapter="echo", python={str(launcher)!r})
print(client.kill())
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=HANG)
    assert (result.stdout, result.stderr, result.returncode) == (b"-9\n", b"", 0)


@pytest.fixture
def slow_stderr(tmp_path):
    """Return an interpreter whose stderr is passed on only after its process has ended and been reaped."""
    launcher, pipe = tmp_path / "python", tmp_path / "stderr"
    os.mkfifo(pipe)
    relay = "while kill -0 $0 2>/dev/null; do sleep 0.01; done; exec cat"
    launcher.write_text(
        f"#!/bin/sh\n(setsid sh -c '{relay}' $$ <{pipe} >&2 2>/dev/null &)\nexec {sys.executable} \"$@\" 2>{pipe}\n"
    )
    launcher.chmod(0o755)
    return str(launcher)


def test_the_last_output_of_a_worker_belongs_to_the_error(start_client, slow_stderr):
    """It is waited for, for a moment, after the end of the process."""
    with pytest.raises(errors.WorkerCrashed) as raised:
        start_client(adapter="no_such_module:adapter", python=slow_stderr)
    assert "no module 'no_such_module'" in raised.value.details["stderr"]


def test_the_children_of_a_killed_worker_end_with_it(direct_client):
    """Detached children are not included."""
    child = direct_client.call("child")["pid"]
    os.kill(direct_client.pid, signal.SIGKILL)
    wait_until(lambda: not is_running(child))


def test_a_host_without_stdin_and_stderr():
    """The pipes do not use the descriptors 0 to 2, because writes to stderr would get into them."""
    program = """
import os
os.close(0), os.close(2)
from bridge import Client
with Client.start(adapter="echo") as client:
    print(client.call("ping")["status"])
"""
    result = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=60)
    assert (result.stdout, result.returncode) == (b"ok\n", 0)


def test_a_host_that_ends_with_open_calls_prints_nothing():
    """Streams are partly read and callbacks have not run; the worker ends with its host."""
    program = """
from bridge import Client
client = Client.start(adapter="hostile:adapter")
iterator = iter(client.stream("emit", {"size": 100000}))
next(iterator)
client.submit("sleep", {"seconds": 60}).add_done_callback(print)
print(client.pid)
"""
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        timeout=60,
        env={**os.environ, **SUPPORT_PATH},
    )
    assert (result.stderr, result.returncode) == (b"", 0)
    wait_until(lambda: not is_running(int(result.stdout)))


def test_a_call_that_needs_a_thread_when_there_are_none():
    """The call fails, and later calls of the same kind succeed."""
    program = """
import resource
from bridge import Client
client = Client.start(adapter="hostile:adapter")
events = []
unlimited = resource.getrlimit(resource.RLIMIT_AS)
client.call("ping")
limit = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (limit + (6 << 20), unlimited[1]))
try:
    client.submit("emit", {"size": 3}, on_event=print)
except RuntimeError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, unlimited)
client.submit("emit", {"size": 3}, on_event=lambda event, data: events.append(event)).result(20)
print(len(events), client.stats()["in_flight"], client.stop())
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, timeout=HANG, env={**os.environ, **SUPPORT_PATH}
    )
    expected = b"can't start new thread\n3 0 0\n"
    assert (result.stdout, result.stderr, result.returncode) == (expected, b"", 0)


def test_destructors_that_run_while_the_interpreter_ends():
    """They do not wait for threads that have stopped: stop works, and a call is an error."""
    program = """
import os
from bridge import Client

def write(text, write=os.write):
    write(1, f"{text}\\n".encode())

class Owner:
    def __init__(self):
        self.client = Client.start(adapter="hostile:adapter")
        self.iterator = iter(self.client.stream("emit", {"size": 100000}))
        next(self.iterator)

    def __del__(self, write=write):
        try:
            self.client.call("ping", timeout=None)
        except RuntimeError as error:
            write(str(error))
        write(self.client.stop(None))
        write(self.client.stop())

owner = Owner()
"""
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        timeout=HANG,
        env={**os.environ, **SUPPORT_PATH},
    )
    text = b"a Client cannot call its worker while the interpreter is ending\n"
    assert (result.stdout, result.stderr, result.returncode) == (text + b"-9\n-9\n", b"", 0)


def test_the_pump_between_sockets():
    """The proxy's pump works between any descriptors."""
    (host, near), (far, worker) = socket.socketpair(), socket.socketpair()
    pump = Pump(near.detach(), far.detach())
    with host, worker:
        pump.stop()
        host.sendall(b"abcdef")
        pump.corrupt(b"XY")
        worker.setblocking(False)
        with pytest.raises(BlockingIOError):
            worker.recv(10)
        worker.setblocking(True)
        pump.go()
        received = b""
        while len(received) < 6:
            received += worker.recv(10)
        assert received == b"XYcdef"
        host.close()
        assert worker.recv(10) == b""


def test_a_request_that_was_not_started_leaves_nothing_to_send(client, proxy):
    """Neither it nor its cancel is sent to a worker that does not read for long."""
    proxy.stop(TO_WORKER)
    with pytest.raises(errors.DeadlineExceeded):
        client.call("echo", {"blob": BLOB}, timeout=0.1)  # partly sent
    for _ in range(20):
        with pytest.raises(errors.DeadlineExceeded):
            client.call("echo", {"a": 1}, timeout=0.01)
    proxy.go(TO_WORKER)
    commands = client.stats()["commands"]
    assert commands["cancel"]["calls"] == 1
    assert commands["echo"]["calls"] == 1
