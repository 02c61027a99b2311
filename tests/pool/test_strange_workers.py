"""Workers of a server that answer twice, answer unknown calls, send what cannot be read, or refuse to start."""

from __future__ import annotations

import contextlib
import json
import struct

import pytest

from bridge import Pool, errors
from fake_workers import FakeWorkers, frame
from peer import wait_until

COMMANDS = {"ask": {"lane": "thread", "idempotent": True}, "ask_once": {"lane": "thread", "idempotent": False}}
ANSWERS = {
    "hello": {"version": "0", "adapter": "strange", "accepted": []},
    "get_stats": {"worker": {"threads": 4, "queue": 400}},
    "describe": {"commands": COMMANDS},
    "ping": {"status": "ok", "mode": "standalone"},
}


class Server(FakeWorkers):
    """Workers at a socket, which answer `ask` with `strange(id)`: bytes, or None to close the connection."""

    def __init__(self, path, strange):
        self.strange = strange
        super().__init__(path)

    def serve(self, connected):
        with contextlib.suppress(OSError), connected, connected.makefile("rb") as requests:
            while header := requests.read(4):
                request = json.loads(requests.read(struct.unpack(">I", header)[0]) or "null")
                if request is None:
                    continue
                known = ANSWERS.get(request["command"])
                answer = frame({"id": request["id"], "success": True, "result": known}) if known else None
                if known is None and (answer := self.strange(request["id"])) is None:
                    return
                connected.sendall(answer)


def reply(number, result):
    return frame({"id": number, "success": True, "result": result})


@pytest.fixture
def start(tmp_path):
    """Return a function that starts a server and a pool of its workers."""
    running = []

    def start(strange, workers=2):
        server = Server(tmp_path / "socket", strange)
        running.append(server)
        pool = Pool(workers, connect=server.address, format="json")
        running.append(pool)
        return server, pool

    yield start
    for each in reversed(running):
        each.stop(0.0) if isinstance(each, Pool) else each.close()


def test_second_answers_and_those_to_unknown_calls_are_dropped(start):
    """They never reach another caller."""
    _, pool = start(lambda number: reply(number, number) + reply(number, "again") + reply(number + 10_000, "unknown"))
    assert all(isinstance(pool.call("ask"), int) for _ in range(100))
    assert all(isinstance(call.result(30), int) for call in [pool.submit("ask") for _ in range(100)])
    assert pool.status()["workers"] == {"ready": 2}


def test_a_worker_that_sends_nonsense_is_replaced(start):
    """A call that may be repeated is made elsewhere; another one is told."""
    wrong = [True]
    server, pool = start(lambda number: b"\xff\xff\xff\xff" if wrong and wrong.pop() else reply(number, 1))
    assert pool.call("ask") == 1
    wrong.append(True)
    with pytest.raises(errors.BridgeError):
        pool.call("ask_once")
    wait_until(lambda: pool.status()["workers"] == {"ready": 2})
    assert server.connections == 4


def test_a_worker_that_closes_its_connection_is_replaced(start):
    closes = [True]
    _, pool = start(lambda number: None if closes and closes.pop() else reply(number, 1))
    assert pool.submit("ask").result(30) == 1
    wait_until(lambda: pool.status()["workers"] == {"ready": 2})


def test_a_server_that_ends_is_told(start):
    """Calls fail with the reason instead of waiting for ever."""
    server, pool = start(lambda number: reply(number, 1))
    server.close()
    wait_until(lambda: pool.status()["workers"].get("ready", 0) == 0)
    with pytest.raises(errors.BridgeError, match="connect"):
        pool.call("ask", timeout=60)


def test_options_of_the_workers_are_the_servers():
    with pytest.raises(ValueError, match=r"flags.*connect="):
        Pool(connect="unix:/nowhere", flags=["--threads", "8"])
    with pytest.raises(errors.WorkerCrashed, match="no such socket"):
        Pool(connect="unix:/nowhere")
    with pytest.raises(ValueError, match="unix:"):
        Pool(connect="tcp:host")


def test_workers_that_are_started_one_by_one(start_pool):
    """Without a template."""
    pool = start_pool(2, template=False)
    assert pool.call("length", {"text": "ab"}) == 2
    pool.renew()
    assert pool.call("length", {"text": "abc"}) == 3
