"""Children of a worker, its signals, and its end by any of them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from peer import is_running, wait_until

LANES = ["", "_on_thread"]


@pytest.fixture
def worker(start_peer):
    peer = start_peer("--grace", "0.2", adapter="processes:adapter")
    assert peer.is_alive()
    return peer


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize(("way", "status"), [("return", 0), ("raise", 1), ("exit", 7), ("emit", None), ("c", 0)])
def test_a_forked_child_that_returns_sends_no_reply(worker, lane, way, status):
    """It ends as a separate process, and only the parent replies."""
    worker.send({"id": 1, "command": f"fork_and_return{lane}", "args": {"way": way}, "stream": True})
    frames = [worker.receive()]
    while "event" in frames[-1]:
        frames.append(worker.receive())
    assert frames[-1]["result"]["who"] == "parent"
    assert status in (frames[-1]["result"]["status"], None)
    assert sum("success" in frame for frame in frames) == 1
    events = [frame for frame in frames if "event" in frame]
    assert len(events) == 0
    assert worker.is_alive()
    worker.close_input()
    assert worker.receive_frame() is None
    assert worker.wait() == 0


def test_a_forked_child_stores_nothing(start_peer, tmp_path):
    """It does not write to a durable session; the parent's change is stored."""
    peer = start_peer("--store", f"sqlite:{tmp_path}/s.db", adapter="processes:adapter")
    peer.call("create_session", {"session_id": "s", "durable": True})
    for _ in range(3):
        result = peer.call("fork_and_change", session_id="s")["result"]
        assert result == {"who": "parent"}
    peer.process.kill()
    peer.wait()
    peer = start_peer("--store", f"sqlite:{tmp_path}/s.db", adapter="processes:adapter")
    assert peer.call("read_change", session_id="s")["result"] == {"notes": ["parent"]}


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("way", ["fork", "c", "multiprocessing"])
def test_a_running_forked_child_holds_no_pipe(worker, lane, way):
    """The host notices the worker's death at once, and the child is killed."""
    child = worker.call(f"fork_and_live{lane}", {"way": way})["result"]["pid"]
    assert is_running(child)
    worker.process.kill()
    assert worker.receive_frame() is None
    wait_until(lambda: not is_running(child))
    worker.stderr()


@pytest.mark.parametrize("lane", LANES)
def test_sigterm_to_a_forked_child_ends_it_alone(worker, lane):
    """multiprocessing's terminate() relies on that."""
    for _ in range(5):
        assert worker.call(f"terminate_fork{lane}")["result"] == {"status": -signal.SIGTERM}
    assert worker.is_alive()


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("way", ["close_fds", "inherit", "posix_spawn", "system"])
def test_children_have_none_of_the_pipes(worker, lane, way):
    """A child has no descriptor of the worker except stderr, which is a pipe too."""
    text = worker.call(f"descriptors{lane}", {"way": way})["result"]["text"]
    pipes = dict(re.findall(r"(\d+) -> (pipe:\[\d+\])", text))
    own = {os.readlink(f"/proc/self/fd/{end.fileno()}") for end in (worker.input, worker.output)}
    assert set(pipes) == {"2"}
    assert not own & set(pipes.values())


FATAL = ["SIGKILL", "SIGQUIT", "SIGUSR2", "SIGALRM", "SIGABRT", "SIGSEGV", "SIGXCPU", "SIGRTMIN"]


@pytest.mark.parametrize("name", FATAL)
def test_descendants_end_with_a_worker_that_a_signal_ends(worker, name):
    """They end at once, without any Python code."""
    pids = worker.call("child_on_thread")["result"]["pids"]
    worker.process.send_signal(getattr(signal, name))
    assert worker.wait() == -getattr(signal, name)
    for pid in pids:
        wait_until(lambda pid=pid: not is_running(pid))


def test_children_in_other_groups_end_with_a_killed_worker(worker):
    """Their descendants end too."""
    pids = worker.call("child_on_thread", {"way": "session"})["result"]["pids"]
    worker.process.kill()
    worker.wait()
    for pid in pids:
        wait_until(lambda pid=pid: not is_running(pid))


def test_orphans_in_other_groups_end_with_a_worker(worker):
    """This holds for a normal end as for kill -9."""
    (pid,) = worker.call("orphan")["result"]["pids"]
    worker.close_input()
    assert worker.wait() == 0
    wait_until(lambda: not is_running(pid))


def test_a_worker_started_by_a_killed_worker_ends_with_its_children(worker):
    """They end although they are in other sessions of the system."""
    pids = worker.call("worker")["result"]["pids"]
    worker.process.kill()
    worker.wait()
    for pid in pids:
        wait_until(lambda pid=pid: not is_running(pid))


def test_children_end_with_a_worker_in_its_hosts_group(start_peer):
    """The worker creates its own group, and the host's group is not killed."""
    code = (
        "import subprocess, sys\n"
        "p = subprocess.Popen([sys.executable, '-m', 'bridge', 'worker', '--adapter',"
        " 'processes:adapter'])\n"
        "print(p.pid, file=sys.stderr, flush=True)\n"
        "sys.exit(p.wait() != -9)"
    )
    peer = start_peer(adapter="processes:adapter", command=[sys.executable, "-c", code])
    pids = peer.call("child_on_thread")["result"]["pids"]
    os.kill(int(peer.process.stderr.readline()), signal.SIGKILL)
    assert peer.wait() == 0
    for pid in pids:
        wait_until(lambda pid=pid: not is_running(pid))


def test_sighup_does_nothing(worker):
    """Many of them, during calls, have no effect."""
    worker.send({"id": 1, "command": "terminate_fork_on_thread"})
    for _ in range(50):
        worker.process.send_signal(signal.SIGHUP)
    assert worker.receive()["success"]
    assert worker.is_alive()
    worker.close_input()
    assert worker.wait() == 0


def test_sigusr1_writes_the_stacks_of_all_threads(worker):
    """The worker continues."""
    worker.process.send_signal(signal.SIGUSR1)
    assert worker.is_alive()
    worker.close_input()
    assert worker.wait() == 0
    text = worker.stderr()
    assert "most recent call first" in text
    assert "main.py" in text


def test_a_signal_that_a_library_handles_does_not_end_the_worker(worker):
    """The worker still runs after the grace period."""
    assert worker.call("take_signal")["success"]
    assert worker.call("terminate_fork_on_thread")["success"]
    with pytest.raises(subprocess.TimeoutExpired):
        worker.process.wait(0.6)
    assert worker.is_alive()


def test_signals_that_the_host_blocks_have_their_effect(start_peer):
    """SIGTERM ends a worker whose host blocks all signals, and the worker can wait for children."""
    numbers = sorted(set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP})
    code = (
        "import os, signal, sys\n"
        f"numbers = {[int(number) for number in numbers]}\n"
        "for number in (signal.SIGCHLD, signal.SIGALRM, signal.SIGHUP, signal.SIGUSR1,"
        " signal.SIGTERM):\n"
        "    signal.signal(number, signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, numbers)\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'bridge', 'worker', '--adapter',"
        " 'processes:adapter'])"
    )
    peer = start_peer(adapter="processes:adapter", command=[sys.executable, "-c", code])
    result = peer.call("signals")["result"]
    assert result["blocked"] == []
    assert {signal.SIGCHLD, signal.SIGALRM, signal.SIGTERM}.isdisjoint(result["ignored"])
    assert peer.call("terminate_fork_on_thread")["result"] == {"status": -signal.SIGTERM}
    peer.process.send_signal(signal.SIGUSR1)
    peer.process.send_signal(signal.SIGTERM)
    assert peer.wait() == 0
    assert "most recent call first" in peer.stderr()


WAYS = ["log", "print", "stderr", "warning", "write", "c", "child", "faulthandler"]


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("way", WAYS)
def test_a_host_that_does_not_read_stderr_does_not_block(worker, lane, way):
    """1.5 MB are written in every way; lost lines are counted, and the log has their number."""
    assert worker.call(f"shout{lane}", {"way": way, "size": 1500})["success"]
    worker.send_frame(b"")
    assert worker.receive_frame() == b""
    assert worker.is_alive()
    stats = worker.call("get_stats", {"include": ["worker"]})["result"]["worker"]
    assert stats["log_lines_lost"] > 0
    worker.close_input()
    text = worker.process.stderr.read().decode()
    assert worker.wait() == 0
    lines = text.splitlines()
    notices = [json.loads(line) for line in lines if "log lines lost" in line]
    counted = [int(notice["message"].split()[0]) for notice in notices]
    if way not in ("warning", "faulthandler"):  # those have more lines than one each
        assert sum(counted) + len(lines) - len(notices) == 1500
    assert {notice["level"] for notice in notices} == {"WARNING"}


def test_lost_lines_are_reported_in_the_format_of_the_log(start_peer):
    """A client whose stderr is a terminal gets plain text."""
    peer = start_peer(adapter="processes:adapter", env={"BRIDGE_LOG_FORMAT": "text"})
    assert peer.call("shout_on_thread", {"way": "write", "size": 1500})["success"]
    peer.close_input()
    last = peer.process.stderr.read().decode().splitlines()[-1]
    assert re.fullmatch(r"\d+ log lines lost, because stderr was not read", last)


@pytest.mark.parametrize("way", ["exit", "segfault", "kill"])
def test_what_a_worker_writes_last_is_not_lost(worker, way):
    """This holds for each way in which the worker ends."""
    worker.send({"id": 1, "command": "last_words_on_thread", "args": {"way": way}})
    expected = {"exit": 9, "segfault": -signal.SIGSEGV, "kill": -signal.SIGKILL}[way]
    assert worker.wait() == expected
    text = worker.stderr()
    assert text.startswith("last words\n")
    assert ("Segmentation fault" in text) == (way == "segfault")


def test_stderr_that_is_a_file_a_socket_or_closed(start_peer, tmp_path):
    """All lines are written, unless stderr is closed."""
    with open(tmp_path / "log", "wb") as log:
        peer = start_peer(adapter="processes:adapter", stderr=log)
        assert peer.call("shout_on_thread", {"way": "log", "size": 300})["success"]
        peer.close_input()
        assert peer.wait() == 0
    assert (tmp_path / "log").read_text().count("\n") == 300
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = start_peer(adapter="processes:adapter", stderr=theirs.fileno())
        assert peer.call("shout_on_thread", {"way": "print", "size": 1500})["success"]
        stats = peer.call("get_stats", {"include": ["worker"]})["result"]["worker"]
        assert stats["log_lines_lost"] > 0
        theirs.close()
        peer.close_input()
        with ours.makefile() as lines:
            assert len([line for line in lines if line == "x" * 999 + "\n"]) > 100
        assert peer.wait() == 0
    peer = start_peer(adapter="processes:adapter")
    peer.process.stderr.close()
    assert peer.call("shout_on_thread", {"way": "log", "size": 300})["success"]
    assert peer.call("shout_on_thread", {"way": "print", "size": 300})["success"]
    assert peer.is_alive()
