"""The Python clients: calls from many threads, typed errors, the end of their worker."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from bridge import errors
from client_uses import SUPPORT_PATH
from peer import is_running, wait_until


@pytest.fixture
def client(any_client):
    return any_client


@pytest.mark.parametrize("format", ["json", "msgpack", "etf"])
def test_calls_in_every_format(start_client, format):
    """ping and statistics, from start to stop; the exit status is 0."""
    client = start_client(adapter="echo", format=format)
    assert client.call("ping")["status"] == "ok"
    assert client.call("echo", {"a": [1, "ü", None]}) == {"a": [1, "ü", None]}
    assert client.stats()["commands"]["ping"]["calls"] == 1
    assert client.stop() == 0


def test_errors_have_the_class_of_their_code(client):
    """They have the reply's message, details and category."""
    with pytest.raises(errors.UnknownCommand, match="Unknown command: nope"):
        client.call("nope")
    with pytest.raises(errors.InvalidArgs) as raised:
        client.call("sleep", {"seconds": "1"})
    assert raised.value.details == {"path": "args.seconds", "expected": "float"}
    assert (raised.value.category, raised.value.recovery) == ("request", "abandon")
    with pytest.raises(errors.HandlerError, match="ValueError: no such thing"):
        client.call("raise")


def test_every_code_has_a_class_and_its_policy():
    """The category, severity and recovery of each code are known words."""
    for code, error_class in errors.CODES.items():
        error = errors.from_reply(code, "m", error_class.category, {})
        assert type(error) is error_class
        assert error.severity in {"critical", "major", "minor", "warning"}
        assert error.recovery in {
            "immediate_retry",
            "backoff_retry",
            "circuit_break",
            "failover",
            "abandon",
        }
    assert len(errors.CODES) == 24
    assert type(errors.from_reply("of the future", "m", "?", {})) is errors.Internal
    with pytest.raises(TypeError, match="invalid_args"):
        type("Second", (errors.BridgeError,), {"code": "invalid_args"})


def test_calls_from_several_threads_get_their_own_replies(start_client):
    """Replies that arrive out of order reach their callers."""
    with start_client(adapter="echo") as client:
        wrong = []

        def run(number):
            for index in range(200):
                sent = {"thread": number, "index": index}
                command = "echo" if index % 10 else "echo_decoded"
                if client.call(command, sent) != sent:
                    wrong.append(sent)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


def test_a_late_reply_is_dropped(client):
    """The caller gets DeadlineExceeded, and the next call gets its own reply."""
    with pytest.raises(errors.DeadlineExceeded):
        client.call("sleep", {"seconds": 0.3}, timeout=0.05)
    assert client.call("sleep", {"seconds": 0.4})["slept"] == 0.4


def test_cast_does_not_wait(client):
    """The reply is dropped, and the worker has run the command."""
    client.cast("update_session_data", {"key": "a", "value": 1})
    assert client.call("get_session_data", {})["data"] == {"a": 1}


def test_session_id_is_in_the_envelope(client):
    """It is one argument for every command."""
    client.call("update_session_data", {"key": "a", "value": 1}, session_id="s")
    assert client.call("get_session_data", session_id="s")["session_id"] == "s"
    assert client.call("get_session_data", session_id="t")["data"] == {}


def test_a_killed_worker_fails_open_and_later_calls(process_client):
    """They raise WorkerCrashed with the way it ended."""
    raised = []

    def wait():
        with pytest.raises(errors.WorkerCrashed) as info:
            process_client.call("sleep", {"seconds": 60})
        raised.append(info.value)

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: process_client.stats()["in_flight"] == 1)
    os.kill(process_client.pid, signal.SIGKILL)
    thread.join()
    assert raised[0].details["exit_status"] == -signal.SIGKILL
    with pytest.raises(errors.WorkerCrashed):
        process_client.call("ping")


def test_args_that_cannot_be_sent_are_refused_by_the_client(client):
    """Values without a form in the format, and requests longer than a frame, are not sent."""
    with pytest.raises(errors.NotEncodable):
        client.call("ping", {"a": object()})
    with pytest.raises(errors.FrameTooLarge):
        client.call("ping", {"a": bytes(65 << 20)})
    assert client.call("ping")["status"] == "ok"


def test_stop_kills_a_worker_that_does_not_end(process_client):
    """It is killed after the timeout at the latest, together with its children."""
    child = process_client.call("child")["pid"]
    process_client.cast("hold_gil", {"seconds": 600})
    process_client.stop(timeout=0.2)
    assert not is_running(process_client.pid)
    wait_until(lambda: not is_running(child), 10)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"adapter": "no_such_module:adapter"}, "no module 'no_such_module'"),
        ({"adapter": "hostile:started"}, "not a bridge.Adapter"),
        ({"flags": ["--no-such-flag"]}, "unrecognized arguments: --no-such-flag"),
    ],
)
def test_a_worker_that_does_not_start_is_an_error(start_client, options, text, capfd):
    """The category is initialization; its output is on stderr and in the details."""
    with pytest.raises(errors.WorkerCrashed, match="ended with status 2") as raised:
        start_client(**options, env=SUPPORT_PATH)
    assert raised.value.category == "initialization"
    assert raised.value.details["exit_status"] == 2
    assert text in raised.value.details["stderr"]
    assert text in capfd.readouterr().err


def test_unknown_formats_are_refused(start_client):
    """No process is started."""
    with pytest.raises(ValueError, match="unknown format 'yaml'"):
        start_client(format="yaml")


def test_stop_while_others_call_never_writes_elsewhere(start_client, tmp_path):
    """The number of the pipe's descriptor may be reused as soon as it is closed."""
    client = start_client(adapter="echo")
    files, stopping = [], threading.Event()

    def call():
        while not stopping.is_set():
            try:
                client.call("ping", timeout=1)
            except errors.BridgeError:
                files.append((tmp_path / f"f{len(files)}").open("wb"))
                if len(files) > 200:
                    return

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    client.stop()
    stopping.set()
    for thread in threads:
        thread.join()
    for file in files:
        file.close()
    assert all(path.stat().st_size == 0 for path in tmp_path.iterdir())
    with pytest.raises(errors.WorkerCrashed, match="stopped"):
        client.call("ping")


def test_stop_ends_a_worker_that_does_not_read(start_client):
    """The pipe is full and blocks a caller: stop kills the worker, and the caller gets its error."""
    client = start_client(adapter="hostile:adapter", env=SUPPORT_PATH)
    os.kill(client.pid, signal.SIGSTOP)
    thread = threading.Thread(target=flood, args=(client,))
    thread.start()
    thread.join(0.3)
    assert thread.is_alive(), "the pipe should be full by now"
    client.stop(timeout=0.2)
    thread.join(10)
    assert not thread.is_alive()


def flood(client):
    with pytest.raises(errors.WorkerCrashed):
        send_blobs(client, 64)


def send_blobs(client, count):
    for _ in range(count):
        client.cast("echo", {"blob": bytes(1 << 20)})


def test_a_missing_interpreter(start_client):
    """The error is that of a worker that does not start."""
    with pytest.raises(errors.WorkerCrashed, match="/no/python") as raised:
        start_client(python="/no/python")
    assert raised.value.category == "initialization"
    with pytest.raises(ValueError, match="max_frame"):
        start_client(max_frame=-1)


def test_a_stream_that_is_not_read_pauses_the_worker(client):
    """It goes on as the events are consumed."""
    stream = client.stream("emit", {"size": 20_000})
    for _ in range(100):
        assert client.stats()["in_flight"] == 1  # although its events are not consumed
    assert [data for _, data in stream] == list(range(20_000))
    assert stream.result() == {"streaming": True}


def test_a_caller_that_gives_up_cancels_its_call(client):
    """Any exception that ends its wait cancels the call."""
    with pytest.raises(errors.DeadlineExceeded):
        client.call("wait_politely", {"seconds": 60}, timeout=0.05)
    wait_until(lambda: client.stats()["in_flight"] == 0)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        *(({name: 3}, TypeError) for name in ("adapter", "python", "flags", "env")),
        ({"env": [("A", "1")]}, TypeError),
        *(({"env": env}, ValueError) for env in ({"A=B": "1"}, {"": "1"}, {"A": "1\0"})),
        *(({name: "a\0b"}, ValueError) for name in ("adapter", "python")),
        ({"flags": ["\0"]}, ValueError),
    ],
)
def test_options_that_no_worker_can_be_started_with(start_client, options, kind):
    with pytest.raises(kind, match=next(iter(options))):
        start_client(**{"adapter": "echo", **options})


def test_errors_of_the_client_show_no_values(start_client):
    """Values of an environment, and args that cannot be encoded, may be keys."""

    class Hidden:
        def __repr__(self):
            return "sk-shown"

    with pytest.raises(TypeError, match=r"OPENAI_API_KEY.*bytes") as wrong:
        start_client(adapter="echo", env={"OPENAI_API_KEY": b"sk-shown"})
    assert "sk-shown" not in str(wrong.value)
    for format in ("json", "msgpack", "etf"):
        with start_client(adapter="echo", format=format) as client:
            with pytest.raises(errors.NotEncodable) as refused:
                client.call("echo", {"api_key": Hidden()})
            assert "sk-shown" not in str(refused.value) + repr(refused.value.details)
            assert "sk-shown" not in repr(client)
