"""The worker's logs as records of `logging`."""

from __future__ import annotations

import logging
import threading

import pytest

from bridge import Client, errors
from bridge.host.logs import MOST_WAITING, LogForwarder
from bridge.host.worker import Worker
from client_uses import HANG, SUPPORT_PATH
from peer import wait_until


@pytest.fixture(params=["json", "msgpack", "etf"])
def client(request):
    options = {"format": request.param, "logs": "logging", "flags": ["--log-level", "DEBUG"]}
    with Client.start(adapter="hostile:adapter", env=SUPPORT_PATH, **options) as client:
        yield client


def lines_about(caplog, command):
    return [record for record in caplog.records if getattr(record, "command", None) == command]


def test_records_have_level_logger_and_facts(client, caplog, capfd):
    """They are not written to stderr."""
    caplog.set_level("DEBUG")
    client.call("echo", {"a": 1}, session_id="ann")
    wait_until(lambda: lines_about(caplog, "echo"))
    (record,) = lines_about(caplog, "echo")
    assert (record.name, record.levelname, record.session_id) == ("bridge.worker", "DEBUG", "ann")
    assert (record.request_id, record.worker_pid) == (2, client.pid)
    assert "echo 2" in record.getMessage()
    client.stop()
    assert "request_id" not in capfd.readouterr().err


def test_the_stack_of_an_error(client, caplog):
    """A formatter writes it like that of an error in this process."""
    with pytest.raises(errors.BridgeError, match="no such thing"):
        client.call("raise")
    client.stop()
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    text = logging.Formatter().format(record)
    assert text.startswith("handler of raise failed\nTraceback (most recent call last):\n")


def test_levels_of_the_loggers_of_this_process(client, caplog):
    """They choose among what the worker sends."""
    caplog.set_level("WARNING", logger="bridge.worker")
    client.call("echo", {"a": 1})
    client.stop()
    assert lines_about(caplog, "echo") == []


def test_handlers_may_be_slow_may_raise_and_may_call(client):
    """They run one after the other, on a thread that reads no frames."""
    seen = []
    entered, gate = threading.Event(), threading.Event()

    class Handler(logging.Handler):
        def emit(self, record):
            if getattr(record, "command", None) != "echo":
                return
            entered.set()
            gate.wait(HANG)
            seen.append(client.call("ping")["status"])
            raise RuntimeError("of a handler")

    logger = logging.getLogger("bridge.worker")
    handler = Handler()
    logger.addHandler(handler)
    logger.setLevel("DEBUG")
    try:
        client.call("echo", {"a": 1})
        assert entered.wait(HANG)
        assert client.call("echo", {"a": 2}) == {"a": 2}
        gate.set()
        wait_until(lambda: len(seen) == 2)
    finally:
        gate.set()
        logger.removeHandler(handler)
        logger.setLevel("NOTSET")


def test_lines_that_arrive_faster_than_they_are_logged_are_counted(caplog):
    """The oldest are dropped, and a warning has their number."""
    jobs = []
    forwarder = LogForwarder(Worker(), jobs.append)
    for number in range(MOST_WAITING + 5):
        forwarder.add({"level": "WARNING", "logger": "many", "message": str(number)})
    (job,) = jobs
    job()
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0] == "5 lines of the worker were dropped: logging is too slow"
    assert messages[1:] == [str(number) for number in range(5, MOST_WAITING + 5)]


def test_tools_beside_logs(client, caplog):
    """The offer of tools does not withdraw that of logs."""
    caplog.set_level("DEBUG")

    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    client.register_tools([add])
    client.call("echo", {"a": 1})
    wait_until(lambda: lines_about(caplog, "echo"))


def test_an_unknown_destination():
    with pytest.raises(ValueError, match='logs must be "stderr" or "logging"'):
        Client.start(adapter="echo", logs="syslog")
