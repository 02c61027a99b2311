"""Any bytes as a request get one reply that decodes, and raise no exception."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bridge import Context, Dispatcher, Options
from bridge.adapters.echo import adapter as echo
from bridge.wire import codec
from bridge.wire._frames import format_of


@pytest.fixture(scope="module")
def dispatcher():
    return Dispatcher(echo, Options(max_frame=4096))


def decoded(reply: bytes):
    return format_of(reply).decode(reply)


REQUESTS = [
    {"id": 1, "command": "ping", "args": {}},
    {"id": "x", "command": "echo_decoded", "args": {"a": [1, 2.5, None, True, "ü"]}},
    {"id": 3, "command": "sleep", "args": {}, "timeout_ms": 5000, "stream": True},
    {"id": 4, "command": "update_session_data", "args": {"key": "k", "session_id": "s"}},
    {"type": "protocol_negotiation", "supported": ["json"]},
]
seeds = [format.encode(request) for request in REQUESTS for format in codec.FORMATS]
edits = st.lists(
    st.tuples(st.integers(0, 200), st.sampled_from(["set", "cut", "add"]), st.integers(0, 255)),
    min_size=1,
    max_size=6,
)


def mutated(seed: bytes, changes) -> bytes:
    data = bytearray(seed)
    for place, kind, byte in changes:
        at = place % (len(data) + 1)
        if kind == "add":
            data.insert(at, byte)
        elif at < len(data):
            data[at : at + 1] = [byte] if kind == "set" else []
    return bytes(data)


@settings(max_examples=2000)
@given(st.sampled_from(seeds), edits)
def test_mutated_requests_get_one_reply(dispatcher, seed, changes):
    """Its id is the request's if that can be read, else null; `shutdown` is not used."""
    request = mutated(seed, changes)
    answers = decoded_answer(request)
    if answers:
        return
    reply = decoded(dispatcher.call(request, 30))
    assert "protocol" in reply or isinstance(reply["id"], int | str | None)


def decoded_answer(request: bytes) -> bool:
    """Return whether the bytes are now a host's reply, which gets no reply."""
    return b"success" in request


@settings(max_examples=500)
@given(st.binary(max_size=300))
@example(b'{"id": null, x')
@example(b'{"id": 1.5, "a": "\xff"}')
@example(b'{"id": 1.5, "a": ' + b"[" * 5000)
@example(b"")
def test_any_bytes_get_one_reply(dispatcher, request_bytes):
    """The examples once broke the detection of frames that are not requests."""
    assert decoded(dispatcher.call(request_bytes, 30))["success"] is False


def test_a_reply_that_cannot_hold_its_id_comes_without_it(dispatcher):
    """An id as long as a frame gives an error with id null."""
    request = json.dumps({"id": "x" * 4000, "command": "nope"}).encode()
    reply = decoded(dispatcher.call(request, 30))
    assert (reply["id"], reply["code"]) == (None, "reply_too_large")


@pytest.mark.timeout(20)
def test_a_string_that_never_ends_is_searched_once(dispatcher):
    """A search from each of 64 KiB of escaped quotes would take half a minute."""
    reply = decoded(dispatcher.call(b'{"a": "' + b'\\"' * 32_000, 30))
    assert reply["id"] is None


def test_contexts_cannot_be_created_directly():
    """The dispatcher sets their fields."""
    with pytest.raises(TypeError, match="the dispatcher makes contexts"):
        Context()


def test_ending_a_session_that_is_not_there_has_no_session(dispatcher):
    """An adapter's own end_session command may check that."""
    from bridge import Adapter

    adapter = Adapter("ending")
    adapter.command("end", lane="end_session")(lambda args, context: {"none": context.session is None})
    ending = Dispatcher(adapter)
    reply = ending.call(b'{"id": 1, "command": "end", "args": {"session_id": "nobody"}}', 30)
    assert decoded(reply)["result"] == {"none": True}
