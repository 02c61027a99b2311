"""`serve`: a connection is a worker, and a template starts and ends them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from peer import Host, is_running, wait_until

QUESTION = {"inputs": [{"name": "question", "type": "string"}], "outputs": [{"name": "answer", "type": "string"}]}


def test_each_connection_is_a_worker_of_its_own(serve):
    served = serve()
    (one, first), (other, second) = served.worker(), served.worker()
    assert first != second
    assert one.call("create_session", {"session_id": "ann"})["success"]
    found = [host.call("get_session", {"session_id": "ann"})["success"] for host in (one, other)]
    assert found == [True, False]
    assert served.ready["forks"] is True
    assert {served.message("worker_started")["pid"] for _ in range(2)} == {first, second}


@pytest.mark.parametrize("way", ["end of the stream", "shutdown", "half-close"])
def test_a_worker_ends_with_its_connection(serve, way):
    """A host that has only closed its sending side gets the replies that are due."""
    served = serve()
    host, pid = served.worker()
    if way == "shutdown":
        assert host.call("shutdown")["result"]["status"] == "shutting_down"
        assert host.receive_frame() is None
    elif way == "half-close":
        host.send({"id": 2, "command": "sleep", "args": {"seconds": 0.1}})
        with socket.socket(fileno=os.dup(host.input.fileno())) as connection:
            connection.shutdown(socket.SHUT_WR)
        assert host.receive()["id"] == 2
        assert host.receive_frame() is None
    host.close()
    exited = served.message("worker_exited", pid=pid)
    assert (exited["exit_status"], exited["signal"]) == (0, None)
    wait_until(lambda: not is_running(pid))
    assert served.worker()[1] != pid


def test_heartbeats_are_answered_and_begin_a_worker(serve):
    host = serve().connect()
    host.send_bytes(bytes(4))
    assert host.receive_frame() == b""
    assert host.is_alive()


@pytest.mark.parametrize("format", ["json", "msgpack", "etf"])
def test_a_worker_answers_dspy_programs(serve, format):
    from bridge.wire.codec import by_name

    encode, decode = by_name(format).encode, by_name(format).decode
    host = serve(adapter="dspy").connect()
    for number, (command, args) in enumerate(
        [
            ("configure_lm", {"model": "offline/reader"}),
            ("create_program", {"id": "qa", "signature": QUESTION}),
            ("execute_program", {"program_id": "qa", "inputs": {"question": "What is it?"}}),
        ]
    ):
        host.send_frame(encode({"id": number, "command": command, "args": args}))
        reply = decode(host.receive_frame())
        assert reply["success"], reply
    assert set(reply["result"]["outputs"]) == {"answer"}


def test_an_adapter_of_ones_own_is_warmed_up_once(serve):
    served = serve(adapter="template_adapter:adapter")
    workers = [served.worker()[0] for _ in range(2)]
    for host in workers:
        result = host.call("warmth")["result"]
        assert result == {"warm_ups": 1, "warmed_in": served.pid, "rehearsals": 3}


def test_modules_are_loaded_before_workers_are_forked(serve):
    served = serve("--preload", "sqlite3", adapter="hostile:adapter")
    assert "sqlite3" in served.worker()[0].call("modules")["result"]


def test_more_workers_than_allowed_are_refused_with_a_reply(serve):
    served = serve("--max-workers", "1")
    host, pid = served.worker()
    refused = served.connect()
    reply = refused.call("ping", request_id="mine")
    assert (reply["id"], reply["code"], reply["details"]["retry_after"]) == ("mine", "overloaded", 1.0)
    assert "--max-workers" in reply["error"]
    assert refused.receive_frame() is None
    host.close()
    served.message("worker_exited", pid=pid)
    assert served.worker()[0].is_alive()


@pytest.mark.parametrize(("way", "status", "number"), [("exit", 9, None), ("kill", None, "SIGKILL")])
def test_the_report_of_a_crash_has_the_status_or_the_signal_and_the_last_lines(serve, way, status, number):
    served = serve(adapter="processes:adapter")
    host, pid = served.worker()
    host.send({"id": 1, "command": "last_words", "args": {"way": way}})
    exited = served.message("worker_exited", pid=pid)
    assert (exited["exit_status"], exited["signal"]) == (status, number)
    assert "last words" in exited["stderr"]
    assert host.receive_frame() is None


def test_stop_ends_the_template_after_its_last_worker(serve):
    served = serve()
    host, pid = served.worker()
    served.template.send({"type": "stop"})
    wait_until(lambda: not os.path.exists(served.path))
    with pytest.raises((FileNotFoundError, ConnectionRefusedError)):
        Host.connected(served.path)
    assert host.is_alive()
    host.close()
    served.message("worker_exited", pid=pid)
    assert served.template.wait() == 0


def test_the_end_of_the_control_pipe_ends_the_template_but_no_worker(serve):
    served = serve()
    host, _ = served.worker()
    served.template.close_input()
    assert served.template.wait() == 0
    assert host.is_alive()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_the_second_ends_at_once(serve, number):
    served = serve()
    host, pid = served.worker()
    os.kill(served.pid, number)
    wait_until(lambda: not os.path.exists(served.path))
    assert host.is_alive()
    os.kill(served.pid, number)
    assert host.receive_frame() is None
    assert served.message("worker_exited", pid=pid)["exit_status"] == 0
    assert served.template.wait() == 0


def test_workers_that_go_on_after_the_time_for_draining_are_ended(serve):
    served = serve("--drain", "1")
    host, pid = served.worker()
    os.kill(served.pid, signal.SIGTERM)
    assert host.receive_frame() is None
    assert served.message("worker_exited", pid=pid)["exit_status"] == 0
    assert served.template.wait() == 0


def test_a_template_started_by_hand_says_where_it_listens(tmp_path):
    command = [sys.executable, "-P", "-m", "bridge", "serve", "--listen", "unix:s", "--adapter", "echo"]
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    ) as process:
        line = process.stderr.readline()
        assert line.startswith("dspex-bridge: listening on unix:s ")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stderr.read() == ""


def test_systemd_is_notified(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "n"))
        notified.settimeout(30)
        command = [sys.executable, "-P", "-m", "bridge", "serve", "--listen", "unix:s", "--adapter", "echo"]
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "n")}
        with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, env=environment) as process:
            assert notified.recv(100) == b"READY=1"
            process.terminate()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--adapter", "nothing:adapter"], "there is no module 'nothing'"),
        (["--adapter", "echo", "--store", "sqlite:/nowhere/at/all/s.db"], "No such file"),
        (["--adapter", "echo", "--preload", "no_such_module"], "--preload no_such_module: ModuleNotFoundError"),
        (["--adapter", "template_adapter:broken"], "fail of its rehearsal failed"),
        (["--adapter", "template_adapter:raising"], "its warm_up failed: ValueError: there is no key"),
        (["--adapter", "template_adapter:exiting"], "its rehearsal failed: SystemExit: 3"),
        (["--adapter", "echo", "--control", "json"], "--control: stdin is neither a pipe nor a socket"),
    ],
)
def test_what_cannot_start_says_why(tmp_path, flags, message):
    command = [sys.executable, "-P", "-m", "bridge", "serve", "--listen", f"unix:{tmp_path / 's'}", *flags]
    path = os.path.join(os.path.dirname(__file__), "..", "support")
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("dspex-bridge serve: error: ")
    assert message in last
    assert not (tmp_path / "s").exists()


def test_a_template_takes_the_place_of_another(serve):
    """No connection is refused, and the end of the first one leaves the socket of the second."""
    first = serve()
    host, _ = first.worker()
    second = serve("--replace", path=first.path)
    _, pid = second.worker()
    assert second.message("worker_started")["pid"] == pid
    os.kill(first.pid, signal.SIGTERM)
    assert host.is_alive()
    host.close()
    assert first.template.wait() == 0
    assert second.worker()[0].is_alive()
    assert os.listdir(first.folder) == ["s"]


def test_a_worker_that_holds_the_gil_ends_with_its_connection(serve):
    served = serve("--grace", "0.1", adapter="hostile:adapter")
    host, pid = served.worker()
    host.send({"id": 1, "command": "hold_gil", "args": {"seconds": 600}})
    host.send_bytes(bytes(4))
    assert host.receive_frame() == b""
    host.close()
    assert served.message("worker_exited", pid=pid)["exit_status"] == 0
