"""The hazards of forking: a worker has nothing of the template but its memory."""

from __future__ import annotations

import os
import signal
import time

import pytest

from peer import is_running, wait_until


def descriptors(pid):
    """Return what the descriptors of a process refer to."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:  # that of listdir itself
            continue
    return found


def test_a_worker_has_no_descriptor_of_the_template(serve):
    """Apart from those that this test itself passes on, such as a stray descriptor of the shell that started it."""
    served = serve(adapter="dspy")
    silent = [served.connect() for _ in range(3)]
    (_, first), (_, second) = served.worker(), served.worker()
    ours = set(descriptors(os.getpid()).values())
    template = set(descriptors(served.pid).values()) - ours - {"/dev/null"}
    for pid in (first, second):
        assert not template & set(descriptors(pid).values())
    assert not any(
        "socket:" in each or "pipe:" in each
        for each in set(descriptors(first).values()) & set(descriptors(second).values()) - ours
    )
    assert len([each for each in descriptors(first).values() if each.startswith("socket:")]) == 2
    assert len(silent) == 3


def test_the_template_has_no_socket_but_its_own(serve):
    """No connection to a provider of models stays open after the rehearsal."""
    served = serve(adapter="dspy")
    sockets = [each for each in descriptors(served.pid).values() if each.startswith("socket:")]
    assert len(sockets) == 1
    assert len(os.listdir(f"/proc/{served.pid}/task")) == 1


def test_a_template_with_another_thread_spawns_its_workers(serve):
    """They answer as forked ones do, and do not end with the template."""
    served = serve(adapter="template_adapter:threaded")
    assert served.ready["forks"] is False
    host, pid = served.worker()
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        assert b"worker" in file.read()
    served.template.close_input()
    assert served.template.wait() == 0
    assert host.is_alive()
    host.close()
    wait_until(lambda: not is_running(pid))
    assert "left-behind" in served.template.stderr()


def test_random_numbers_differ(serve):
    served = serve(adapter="template_adapter:adapter")
    numbers = [served.worker()[0].call("random_numbers")["result"] for _ in range(2)]
    assert numbers[0]["python"] != numbers[1]["python"]
    assert numbers[0]["numpy"] != numbers[1]["numpy"]


def test_exit_hooks_of_the_template_do_not_run_in_workers(serve, tmp_path):
    served = serve(adapter="template_adapter:adapter", env={"EXIT_HOOK": str(tmp_path / "ran")})
    host, pid = served.worker()
    assert host.call("shutdown")["success"]
    served.message("worker_exited", pid=pid)
    assert not (tmp_path / "ran").exists()


def test_signals_are_those_of_a_worker(serve):
    """SIGTERM ends a worker and not the template, SIGINT is ignored, SIGCHLD has its default action."""
    served = serve(adapter="processes:adapter")
    host, pid = served.worker()
    with open(f"/proc/{pid}/status") as status:
        caught = next(int(line.split()[1], 16) for line in status if line.startswith("SigCgt"))
    assert not caught & 1 << (signal.SIGCHLD - 1)
    os.kill(pid, signal.SIGINT)
    assert host.is_alive()
    os.kill(pid, signal.SIGTERM)
    assert host.receive_frame() is None
    assert served.message("worker_exited", pid=pid)["exit_status"] == 0
    assert served.worker()[0].is_alive()


def test_a_signal_to_a_worker_that_has_just_been_forked_does_not_reach_the_template(serve):
    served = serve(adapter="template_adapter:signalled")
    for _ in range(2):
        served.connect().send_bytes(b"{")
        pid = served.message("worker_started")["pid"]
        assert served.message("worker_exited", pid=pid)["exit_status"] == 0


def test_a_worker_does_not_end_with_the_template(serve):
    served = serve()
    host, _ = served.worker()
    os.kill(served.pid, signal.SIGKILL)
    served.template.wait()
    time.sleep(0.1)
    assert host.is_alive()


def test_children_of_a_worker_end_with_it(serve):
    served = serve(adapter="processes:adapter")
    host, pid = served.worker()
    child = host.call("child")["result"]["pids"][0]
    os.kill(pid, signal.SIGKILL)
    assert served.message("worker_exited", pid=pid)["signal"] == "SIGKILL"
    wait_until(lambda: not is_running(child))


@pytest.mark.parametrize("store", ["sqlite"])
def test_each_worker_opens_the_store_itself(serve, store, tmp_path):
    served = serve("--store", f"{store}:{tmp_path / 's.db'}")
    assert not any("s.db" in each for each in descriptors(served.pid).values())
    (one, _), (other, _) = served.worker(), served.worker()
    assert one.call("create_session", {"session_id": "ann", "durable": True})["success"]
    assert one.call("update_session_data", {"session_id": "ann", "key": "n", "value": 1})["success"]
    one.close()
    assert other.call("get_session_data", {"session_id": "ann"})["result"]["data"] == {"n": 1}


def test_many_forks_leave_nothing_behind(serve):
    """Descriptors, zombies and the memory of the template stay as they are."""
    served = serve()

    def measure():
        with open(f"/proc/{served.pid}/statm") as file:
            pages = int(file.read().split()[1])
        children = [each for each in os.listdir("/proc") if each.isdigit() and parent(each) == served.pid]
        return len(descriptors(served.pid)), len(children), pages * os.sysconf("SC_PAGESIZE")

    def use(count):
        for _ in range(count):
            host, pid = served.worker()
            host.close()
            served.connections.remove(host)
            served.message("worker_started", pid=pid)
            served.message("worker_exited", pid=pid)

    use(30)
    before = measure()
    use(150)
    after = measure()
    assert after[:2] == before[:2]
    assert after[2] - before[2] < 1 << 20


def parent(pid):
    """Return the parent of a process, 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return 0
