"""Clients that connect to a worker: addresses, servers that misbehave, the end of the connection from either side."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from bridge import Client, aio, errors
from bridge.wire.codec import MSGPACK
from client_uses import HANG, SUPPORT_PATH, in_a_fork
from looped_client import LOOPS, LoopThread
from peer import is_running, wait_until
from socket_workers import SocketWorkers


@pytest.fixture(params=["threads", *LOOPS])
def connect(request):
    """Return `Client.connect` of each kind, with the methods of the synchronous client."""
    if request.param == "threads":
        yield Client.connect
        return
    thread = LoopThread(LOOPS[request.param])
    yield lambda address, **options: thread.start(aio.Client.connect, address=address, **options)
    thread.close()


@pytest.fixture(scope="module")
def workers():
    workers = SocketWorkers(adapter="hostile:adapter", env=SUPPORT_PATH)
    yield workers
    workers.close()


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Return a function that serves one connection by a function, and returns the address."""
    monkeypatch.chdir(tmp_path)
    listeners = []

    def serve(behave):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("s")
        listener.listen()
        listeners.append(listener)

        def accept():
            connection, _ = listener.accept()
            with connection:
                behave(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        listeners.append(thread)
        return "unix:s"

    yield serve
    for each in listeners:
        each.join(HANG) if isinstance(each, threading.Thread) else each.close()


def open_descriptors():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def fails(connect, address, text, error=errors.WorkerCrashed, **options):
    """Check that connecting raises `error` with `text`, and leaves no descriptor open. Return the error."""
    before = open_descriptors()
    with pytest.raises(error, match=text) as raised:
        connect(address, **options)
    failure = raised.value
    raised._excinfo = failure.__traceback__ = failure.__context__ = failure.__cause__ = None  # they hold the client
    wait_until(lambda: open_descriptors() <= before)
    return failure


@pytest.mark.parametrize("address", ["", "unix:", "/run/bridge.sock", "tcp:localhost:1", "unix:a\0b", 5, None])
def test_what_is_no_address(connect, address):
    """An option like any other: ValueError shows what an address looks like."""
    fails(connect, address, "unix:/run/bridge.sock", ValueError)


def test_a_path_that_is_too_long(connect):
    """The system allows 107 bytes; fewer characters may be more bytes."""
    fails(connect, "unix:/tmp/" + "x" * 103, "at most 107 bytes, not 108", ValueError)
    fails(connect, "unix:/tmp/" + "ü" * 52, "at most 107 bytes, not 109", ValueError)
    fails(connect, "unix:/tmp/" + "x" * 102, "there is no such socket")


def test_paths_that_cannot_be_connected_to(connect, tmp_path, monkeypatch):
    """The error says what is there, and what to do."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind("stale")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind("datagrams")
        for path, text in {
            "none": "there is no such socket; start a server there: dspex-bridge serve --listen",
            "none/s": "there is no such socket",
            "file": "it is a file, not a socket",
            "file/s": "Not a directory",
            ".": "it is a directory",
            "stale": "nobody listens there anymore; start a server there",
            "datagrams": "it is a socket of another kind",
        }.items():
            error = fails(connect, f"unix:{path}", f"cannot connect to unix:{path}: {text}")
            assert error.category == "initialization"
            assert error.details == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_socket_of_another_user(tmp_path):
    """Permission is denied."""
    program = f"""
import os
from bridge import Client, errors
import bridge.host.client, bridge.host.connect
os.setresuid(65534, 65534, 65534)
try:
    Client.connect("unix:{tmp_path}/s")
except errors.WorkerCrashed as error:
    print(error.category, error)
"""
    tmp_path.chmod(0o755)
    for folder in tmp_path.parents[:3]:
        folder.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/s")
        os.chmod(tmp_path / "s", 0o600)
        listener.listen()
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG)
    assert done.stderr == ""
    assert done.stdout.startswith(f"initialization cannot connect to unix:{tmp_path}/s: permission denied;")


def test_a_server_that_says_nothing(connect, serve):
    """The client gives up after its timeout."""

    def read_only(connection):
        while connection.recv(4096):  # its end of the connection is a descriptor of this process, too
            pass

    address = serve(read_only)
    error = fails(connect, address, r"no reply to hello within 0\.[01]\d* s; is it a server of workers", timeout=0.1)
    assert error.category == "initialization"


def test_a_server_that_accepts_nothing(connect, tmp_path, monkeypatch):
    """Its queue of connections is full: the client tries again until its timeout."""
    monkeypatch.chdir(tmp_path)
    queued = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                queued.append(socket.socket(socket.AF_UNIX))
                queued[-1].setblocking(False)
                queued[-1].connect("s")
        fails(connect, "unix:s", r"did not accept it within 0\.05 s", timeout=0.05)
        for each in queued:
            each.close()


@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\0\0\5\xffnope", b"\0\0\0\x09{"])
def test_a_server_that_is_none(connect, serve, greeting):
    """It closes the connection at once, or sends what is not a frame, or a part of one."""
    error = fails(
        connect, serve(lambda connection: connection.sendall(greeting)), "cannot connect to unix:s: the worker"
    )
    assert error.category == "initialization"


def test_garbage_from_a_server_that_goes_on(connect, serve):
    """The client closes the connection, and says why."""

    def behave(connection):
        connection.sendall(b"220 mail.example.com ESMTP\r\n")
        while connection.recv(4096):
            pass

    fails(connect, serve(behave), "a frame that cannot be read: .*; the connection was closed")


def test_a_refusal_is_the_error_of_the_server(connect, serve):
    """So a caller knows when to try again."""

    def behave(connection):
        connection.recv(4096)
        refusal = {
            "id": 1,
            "success": False,
            "error": "there are 4 workers",
            "code": "overloaded",
            "category": "resource",
            "details": {"retry_after": 0.5},
        }
        payload = MSGPACK.encode(refusal)
        connection.sendall(len(payload).to_bytes(4) + payload)

    error = fails(connect, serve(behave), "^there are 4 workers$", errors.Overloaded)
    assert error.details == {"retry_after": 0.5}
    assert error.recovery == "backoff_retry"


def test_a_worker_that_does_not_tell_its_process_id(connect, serve):
    """It is None, also for answers that are no process id."""

    def behave(connection):
        connection.recv(4096)
        payload = MSGPACK.encode({"id": 1, "success": True, "result": {"pid": "12"}})
        connection.sendall(len(payload).to_bytes(4) + payload)
        connection.recv(4096)

    client = connect(serve(behave))
    assert client.pid is None
    assert repr(client).endswith("Client unix:s format=msgpack: running>")
    assert client.stop() is None


def test_requests_that_the_server_does_not_accept_are_not_sent(connect, tmp_path):
    """The limit is the smaller one of the client's and the server's."""
    workers = SocketWorkers(adapter="echo", flags=["--max-frame", "4096"])
    client = connect(workers.address)
    with pytest.raises(errors.FrameTooLarge, match="4096 bytes"):
        client.call("echo", {"blob": bytes(5000)})
    assert client.call("ping")["status"] == "ok"
    client.stop()
    workers.close()


def test_from_connect_to_stop(connect, workers):
    """The worker has the process id that it tells, and ends with the connection; its exit status is not known."""
    for format in ("json", "msgpack", "etf"):
        client = connect(workers.address, format=format)
        assert client.pid == workers.processes[-1].pid
        assert client.call("echo", {"a": [1, "ü", None]}) == {"a": [1, "ü", None]}
        assert client.stop() is None
        assert workers.processes[-1].wait(HANG) == 0
        with pytest.raises(errors.WorkerCrashed, match="the client was stopped"):
            client.call("ping")


def test_stop_lets_open_calls_end(connect, workers):
    """The connection is closed in the direction to the worker only: replies still arrive."""
    client = connect(workers.address)
    waiting = client.submit("sleep", {"seconds": 0.2})
    wait_until(lambda: client.stats()["in_flight"] == 1)
    client.stop(HANG)
    assert waiting.result(HANG) == {"slept": 0.2}


def test_stop_closes_the_connection_to_a_worker_that_does_not_end(connect, workers):
    """It does so after its timeout; open calls fail."""
    client = connect(workers.address)
    waiting = client.submit("sleep", {"seconds": 60})
    os.kill(client.pid, signal.SIGSTOP)
    assert client.stop(0.05) is None
    with pytest.raises(errors.WorkerCrashed, match="the client was stopped"):
        waiting.result(HANG)
    os.kill(client.pid, signal.SIGCONT)
    wait_until(lambda: not is_running(client.pid))


def test_the_end_of_the_connection_is_the_end_of_the_worker(connect, workers):
    """Open calls and later ones fail at once; nothing is known of the process."""
    client = connect(workers.address)
    waiting = client.submit("sleep", {"seconds": 60})
    stream = client.stream("emit", {"size": 100_000})
    wait_until(lambda: client.stats()["in_flight"] == 2)
    os.kill(client.pid, signal.SIGKILL)
    for call in (lambda: waiting.result(HANG), lambda: stream.result(HANG), lambda: client.call("ping")):
        with pytest.raises(errors.WorkerCrashed, match=r"^the worker closed the connection$") as raised:
            call()
        assert (raised.value.category, raised.value.details) == ("connection", {})


def test_a_worker_that_ends_before_it_has_read(connect, workers):
    """The connection is reset; replies that arrived before are delivered."""
    client = connect(workers.address)
    answered = [client.submit("echo", {"blob": bytes(1000)}) for _ in range(20)]
    wait_until(lambda: client.stats()["commands"]["echo"]["calls"] == 20)
    os.kill(client.pid, signal.SIGSTOP)
    waiting = [client.submit("echo", {"blob": bytes(1000)}) for _ in range(20)]
    os.kill(client.pid, signal.SIGKILL)
    assert all(call.result(HANG) == {"blob": bytes(1000)} for call in answered)
    for call in waiting:
        with pytest.raises(errors.WorkerCrashed, match="the worker closed the connection"):
            call.result(HANG)


def test_a_server_that_does_not_read_anymore(connect, serve):
    """A request that cannot be sent fails like the others, with the reason."""
    deaf, done = threading.Event(), threading.Event()

    def behave(connection):
        connection.recv(4096)
        payload = MSGPACK.encode({"id": 1, "success": True, "result": {}})
        connection.sendall(len(payload).to_bytes(4) + payload)
        connection.shutdown(socket.SHUT_RD)
        deaf.set()
        done.wait(HANG)

    client = connect(serve(behave))
    assert deaf.wait(HANG)
    with pytest.raises(errors.WorkerCrashed, match="the worker closed the connection"):
        client.call("ping", {"a": bytes(1 << 20)}, timeout=HANG)
    done.set()


def test_tools_and_logs(connect, workers, caplog):
    """They work as with a process; log records have the worker's process id."""

    def add(a: int, b: int) -> int:
        return a + b

    client = connect(workers.address, tools=[add], logs="logging")
    assert client.call("use_tool", {"name": "add", "args": {"a": 1, "b": 2}})
    client.call("log", {})
    wait_until(
        lambda: any(record.worker_pid == client.pid for record in caplog.records if hasattr(record, "worker_pid"))
    )
    client.stop()


def test_a_fork_closes_its_copy_only(workers):
    """The connection of the parent goes on, and ends when the parent closes it."""
    client = Client.connect(workers.address)
    assert "RuntimeError" in in_a_fork(client.stop)
    assert client.call("ping")["status"] == "ok"
    child = os.fork()
    if child == 0:
        time.sleep(HANG)
        os._exit(0)
    client.stop()
    assert workers.processes[-1].wait(HANG) == 0
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_host_that_ends_with_an_open_connection_prints_nothing(workers):
    """The worker ends with it."""
    program = f"""
from bridge import Client
client = Client.connect({workers.address!r})
iterator = iter(client.stream("emit", {{"size": 100000}}))
next(iterator)
client.submit("sleep", {{"seconds": 60}}).add_done_callback(print)
print(client.pid)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG)
    assert (done.stderr, done.returncode) == ("", 0)
    wait_until(lambda: not is_running(int(done.stdout)))


def test_a_destructor_that_runs_while_the_interpreter_ends(workers):
    """It may stop the client, which does not wait then."""
    program = f"""
import os
from bridge import Client

class Owner:
    def __init__(self):
        self.client = Client.connect({workers.address!r})

    def __del__(self, write=os.write):
        write(1, f"{{self.client.stop(None)}} {{self.client.stop()}}".encode())

owner = Owner()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG)
    assert (done.stdout, done.stderr, done.returncode) == ("None None", "", 0)


def test_a_host_without_stdin_and_stderr(workers):
    """The connection does not use the descriptors 0 to 2, because writes to stderr would get into it."""
    program = f"""
import os
os.close(0), os.close(2)
from bridge import Client
with Client.connect({workers.address!r}) as client:
    print(client.call("ping")["status"])
"""
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=HANG)
    assert (done.stdout, done.returncode) == (b"ok\n", 0)


def test_an_interrupt_while_connecting(serve):
    """The connection is closed."""
    closed = threading.Event()

    def behave(connection):
        connection.recv(4096)
        time.sleep(0.2)  # a signal on the way to a system call that waits would not interrupt it
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        while connection.recv(4096):  # the call is cancelled first
            pass
        closed.set()

    with pytest.raises(KeyboardInterrupt):
        Client.connect(serve(behave))
    assert closed.wait(HANG)


def test_many_connections_leave_nothing_behind(workers):
    """Neither descriptors nor threads."""
    before, threads = open_descriptors(), threading.active_count()
    for _ in range(5):
        with Client.connect(workers.address) as client:
            client.call("ping")
    del client
    wait_until(lambda: open_descriptors() <= before and threading.active_count() <= threads + 1)


@pytest.mark.parametrize("way", ["start", "connect"])
def test_without_descriptors(workers, way):
    """Whichever is missing, the error is that of a start, and nothing is left behind."""
    program = f"""
import gc, os, resource, time
from bridge import Client, errors
def make():
    return Client.connect({workers.address!r}) if {way!r} == "connect" else Client.start(adapter="echo")
make().kill()
count, same = 0, 0
while same < 50:  # until the background thread has closed the last descriptors
    gc.collect()
    time.sleep(0.01)
    now = len(os.listdir("/proc/self/fd"))
    count, same = now, same + 1 if now == count else 0
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
before = len(os.listdir("/proc/self/fd")) - 1
failed = 0
for free in range(40):
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + free, hard))
    try:
        make().kill()
        break
    except errors.WorkerCrashed as error:
        assert error.category == "initialization", error
        failed += 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.collect()
end = time.monotonic() + 20
while gc.collect() >= 0 and len(os.listdir("/proc/self/fd")) - 1 > before and time.monotonic() < end:
    time.sleep(0.01)  # until the last background thread has ended
print(failed > 3, max(0, len(os.listdir("/proc/self/fd")) - 1 - before))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG)
    assert (done.stdout, done.stderr) == ("True 0\n", "")
