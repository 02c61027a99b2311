"""An exception of a signal handler at any moment of a client's method leaves the client as usable as before."""

import itertools
from functools import partial

import pytest

from interrupts import elsewhere, interrupted


def asked_for_its_result(client):
    call = client.submit("echo", {"a": 1})
    return partial(call.result, 5), call.done


def cancelled(client):
    call = client.submit("sleep", {"seconds": 30})
    return call.cancel, call.done


def streamed(client):
    stream = client.stream("echo", {"a": 1})
    return partial(stream.result, 5), stream.cancel


def used(client):
    return partial(client.call, "echo", {"a": 1}), partial(client.call, "ping")


@pytest.mark.parametrize("use", [asked_for_its_result, cancelled, streamed, used])
def test_nothing_stays_locked(client, use):
    for moment in itertools.count():
        function, look = use(client)
        is_interrupted = interrupted(moment, function)
        if use is cancelled and is_interrupted:
            function()
        elsewhere(look)
        assert elsewhere(partial(client.call, "echo", {"a": moment}, timeout=5)) == {"a": moment}
        if not is_interrupted:
            break
    assert moment > 10


def test_a_call_that_could_not_be_started_is_not_open(client):
    def start(streams):
        streams.append(client.stream("sleep", {"seconds": 30}))

    for moment in itertools.count():
        started = []
        is_interrupted = interrupted(moment, partial(start, started))
        for stream in started:
            stream.close()
        assert not client._connection.inbox.calls
        if not is_interrupted:
            break
    assert moment > 10
