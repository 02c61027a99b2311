"""Streams and listeners of the Python clients: leaving early, results, order, callbacks."""

from __future__ import annotations

import gc
import signal
import threading

import pytest

from bridge import errors
from client_uses import ENDLESS, HANG, is_idle
from peer import wait_until


def leave_by_break(client):
    for _ in client.stream("emit", ENDLESS):
        break


def leave_by_break_and_keep(client):
    stream = client.stream("emit", ENDLESS)
    for _ in stream:
        break
    with pytest.raises(errors.Cancelled):
        stream.result(HANG)


def leave_by_exception(client):
    def raise_in_the_loop():
        for _ in client.stream("emit", ENDLESS):
            raise LookupError

    with pytest.raises(LookupError):
        raise_in_the_loop()


def leave_by_signal(client):
    def be_interrupted():
        for number, _ in enumerate(client.stream("emit", ENDLESS)):
            if number == 300:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        be_interrupted()


def drop(client):
    client.stream("emit", ENDLESS)
    gc.collect()


def drop_iterator(client):
    iterator = iter(client.stream("emit", ENDLESS))
    next(iterator)
    del iterator


def leave_context(client):
    with client.stream("emit", ENDLESS) as stream:
        next(iter(stream))


def close(client):
    stream = client.stream("emit", ENDLESS)
    stream.close()
    stream.close()
    assert list(stream) == []


@pytest.mark.parametrize(
    "leave",
    [
        *(leave_by_break, leave_by_break_and_keep, leave_by_exception, leave_by_signal),
        *(drop, drop_iterator, leave_context, close),
    ],
)
def test_a_stream_that_is_left_early_is_cancelled(any_client, leave):
    """This holds for each way to leave it, and while the worker is paused."""
    leave(any_client)
    wait_until(lambda: is_idle(any_client))


def test_an_exhausted_stream_has_its_result(any_client):
    """It may be used as a context manager, and closing it has no effect."""
    with any_client.stream("emit", {"size": 1000}) as stream:
        assert [data for _, data in stream] == list(range(1000))
    stream.close()
    assert stream.result(HANG) == {"streaming": True}


def test_the_result_of_an_unread_stream(any_client):
    """Asking for the result resumes the worker, and the events remain available."""
    stream = any_client.stream("emit", {"size": 5000})
    assert stream.result(HANG) == {"streaming": True}
    assert len(list(stream)) == 5000


def test_a_listener_that_raises_fails_its_call(client):
    """The call has the exception, the worker cancels it, and other calls continue."""
    other = client.submit("sleep", {"seconds": 0.2})

    def fail(event, data):
        raise LookupError(f"{event} {data}")

    call = client.submit("emit", ENDLESS, on_event=fail)
    with pytest.raises(LookupError, match="number 0"):
        call.result(HANG)
    assert other.result(HANG) == {"slept": 0.2}
    wait_until(lambda: is_idle(client))


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit()])
def test_a_listener_that_raises_a_base_exception(client, error):
    """It fails its call too."""

    def fail(event, data):
        raise error

    call = client.submit("emit", ENDLESS, on_event=fail)
    assert call.exception(HANG) is error
    wait_until(lambda: is_idle(client))


def test_a_listener_gets_all_events_before_the_result(client):
    """Events arrive one by one on a thread that is not the caller's; the listener may wait and call."""
    heard = []

    def listen(event, data):
        if data == 500:
            client.call("sleep", {"seconds": 0.05})
        heard.append((data, threading.get_ident()))

    client.submit("emit", {"size": 2000}, on_event=listen).result(HANG)
    assert [data for data, _ in heard] == list(range(2000))
    assert len({thread for _, thread in heard} - {threading.get_ident()}) == 1


def test_callbacks_may_call_the_client(client):
    """Callbacks of one call run in order, and never on the reader thread."""
    done = threading.Event()
    results = []
    call = client.submit("sleep", {"seconds": 0.05})
    call.add_done_callback(lambda call: results.append(client.call("ping")["status"]))
    call.add_done_callback(lambda call: results.append(call.result()))
    call.add_done_callback(lambda call: done.set())
    assert done.wait(HANG)
    assert results == ["ok", {"slept": 0.05}]


def test_callbacks_of_different_calls_may_wait_for_each_other(client):
    """Each call's callbacks run on a separate thread."""
    done = threading.Event()

    def wait_for_another(call):
        inner = threading.Event()
        client.submit("sleep", {"seconds": 0.01}).add_done_callback(lambda call: inner.set())
        if inner.wait(HANG):
            done.set()

    client.submit("sleep", {"seconds": 0.01}).add_done_callback(wait_for_another)
    assert done.wait(HANG)
