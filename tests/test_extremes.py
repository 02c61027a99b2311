"""Values and texts at the limits of the wire: always a reply or an exception, never a crash."""

from __future__ import annotations

import inspect
import json
import os

import msgspec
import numpy
import pytest

import extremes
from bridge import Client, errors
from bridge.wire import codec
from peer import SUPPORT, wait_until

ENVIRONMENT = {"PYTHONPATH": os.pathsep.join(filter(None, [SUPPORT, os.environ.get("PYTHONPATH")]))}


@pytest.fixture(scope="module", params=["json", "msgpack", "etf"])
def format(request):
    return request.param


@pytest.fixture(scope="module")
def client(format):
    with Client.start(adapter="extremes:adapter", format=format, env=ENVIRONMENT) as client:
        client.register_tools([tool])
        yield client


def tool(name: str):
    return extremes.VALUES[name]()


def levels_left() -> int:
    """Return how deeply calls of a Python function can be nested here."""

    def depth(level: int) -> int:
        try:
            return depth(level + 1)
        except RecursionError:
            return level

    return depth(0) + len(inspect.stack(0))


@pytest.mark.parametrize("name", extremes.TOO_DEEP)
def test_values_that_are_too_deep_are_not_encodable(client, name):
    """As a result on both lanes, in an event, in a host call, as a tool's result, and in args."""
    for command in ("result", "result_on_thread", "event", "event_on_thread", "ask", "use_tool"):
        with pytest.raises(errors.NotEncodable, match="levels deep"):
            client.stream(command, {"name": name}).result(30)
    with pytest.raises(errors.NotEncodable, match="args cannot be encoded"):
        client.call("ping", {"value": extremes.TOO_DEEP[name]()})
    assert client.call("ping")["status"] == "ok"


def test_the_recursion_limit_is_unchanged(client):
    """On the worker's thread and on the caller's, after many values that are too deep."""
    before, here = client.call("recursion_limit"), levels_left()
    for _ in range(20):
        with pytest.raises(errors.NotEncodable):
            client.call("result", {"name": "a cyclic list"})
        with pytest.raises(errors.NotEncodable):
            client.call("ping", {"value": extremes.TOO_DEEP["1100 lists"]()})
    assert client.call("recursion_limit") == before
    assert levels_left() == here


def test_values_of_many_levels_come_back(client):
    """500 levels, which contain an array."""
    deep = extremes.nested(500, lambda value: [value])
    assert client.call("anything", {"value": deep}) == 1
    assert client.call("anything", {"value": [deep, numpy.zeros(9000)]}) == 1


@pytest.mark.parametrize("name", extremes.NOT_FINITE)
def test_numbers_that_a_format_does_not_carry(client, format, name):
    """In JSON and ETF they are an error with the path in every direction; MessagePack carries them."""
    if format == "msgpack":
        if name not in ("one in a set",):
            client.call("result", {"name": name})
            client.call("anything", {"value": extremes.NOT_FINITE[name]()})
        return
    for command in ("result", "result_on_thread", "event", "ask", "use_tool"):
        with pytest.raises(errors.NotEncodable, match=r"nan|inf"):
            client.stream(command, {"name": name}).result(30)
    with pytest.raises(errors.NotEncodable, match=r"args\S* is -?(nan|inf)"):
        client.call("ping", {"value": extremes.NOT_FINITE[name]()})


@pytest.mark.parametrize("name", extremes.NO_BYTES)
def test_memoryviews_whose_bytes_are_not_contiguous(client, name):
    """They are not encodable in any direction or format, whatever their length."""
    for command in ("result", "result_on_thread", "event", "ask", "use_tool"):
        with pytest.raises(errors.NotEncodable):
            client.stream(command, {"name": name}).result(30)
    for value in ({"value": extremes.NO_BYTES[name]()}, [extremes.Link(extremes.NO_BYTES[name]())]):
        with pytest.raises(errors.NotEncodable, match="args"):
            client.call("ping", value)


@pytest.mark.parametrize("name", extremes.TOO_LONG)
def test_arrays_that_are_longer_than_a_frame_are_not_copied(client, name):
    """There would not be enough memory."""
    for command in ("result", "result_on_thread"):
        with pytest.raises(errors.ReplyTooLarge, match="longer than"):
            client.call(command, {"name": name})
    with pytest.raises(errors.BridgeError, match=r"more than|longer than"):
        client.stream("event", {"name": name}).result(30)
    with pytest.raises(errors.FrameTooLarge, match="takes more than"):
        client.call("anything", {"value": extremes.VALUES[name]()})


def test_an_empty_raw_is_not_encodable(client):
    """It would make the frame invalid."""
    for command in ("result", "result_on_thread", "event", "ask", "use_tool"):
        with pytest.raises(errors.NotEncodable, match="empty Raw"):
            client.stream(command, {"name": "an empty Raw"}).result(30)
    with pytest.raises(errors.NotEncodable, match="empty Raw"):
        client.call("anything", {"value": msgspec.Raw()})


@pytest.mark.parametrize("name", extremes.DETAILS)
def test_details_that_cannot_be_encoded_are_left_out(client, name):
    """The error keeps its code and text."""
    for command in ("fail", "fail_on_thread"):
        with pytest.raises(errors.QuotaExceeded, match=r"^enough$"):
            client.call(command, {"name": name})


def test_exceptions_without_a_readable_text(client):
    """The error names the type, and text that UTF-8 cannot represent is replaced."""
    with pytest.raises(errors.HandlerError, match=r"^Unreadable: .*cannot be read"):
        client.call("raise_unreadable")
    with pytest.raises(errors.HandlerError, match=r"^KeyError: .*cannot be read"):
        client.call("raise_number")
    with pytest.raises(errors.LMError, match=r"^half \? of it$"):
        client.call("raise_text")


@pytest.mark.parametrize("log_format", ["json", "text"])
@pytest.mark.parametrize("name", extremes.UNPRINTABLE)
def test_exceptions_that_no_log_can_print(name, log_format, capfd):
    """They get a reply and a line in the log, and the thread continues."""
    env = {**ENVIRONMENT, "BRIDGE_LOG_FORMAT": log_format}
    with Client.start(adapter="extremes:adapter", flags=["--threads", "1"], env=env) as client:
        for lane in ("", "_on_thread"):
            for _ in range(3):
                with pytest.raises(errors.HandlerError):
                    client.call(f"raise_unprintable{lane}", {"name": name})
                client.call(f"log_unprintable{lane}", {"name": name})
                assert client.call(f"fork_unprintable{lane}", {"name": name}) == 1
    lines = ""

    def are_all_there() -> bool:
        nonlocal lines
        lines += capfd.readouterr().err
        return lines.count("it is logged") == 6 and lines.count("unprintable failed") == 3

    wait_until(are_all_there)


def test_texts_of_errors_and_log_lines_of_many_megabytes(capfd):
    """Their beginnings are sent and logged."""
    with Client.start(adapter="extremes:adapter", env=ENVIRONMENT) as client:
        for command in ("raise_huge", "log_long"):
            size = {"size": 20_000_000}
            if command == "log_long":
                client.call(command, size)
            else:
                with pytest.raises(errors.HandlerError, match=r"^Exception: xxx"):
                    client.call(command, size)
    lines = ""

    def are_all_there() -> bool:
        nonlocal lines
        lines += capfd.readouterr().err
        return len(lines.splitlines()) == 2 and lines.endswith("\n")

    wait_until(are_all_there)
    assert "xxx…" in lines
    assert len(lines) < 1_000_000


def test_a_value_that_shares_its_parts_is_too_large(client):
    """2^60 values in 60 lists are detected before anything is encoded."""
    with pytest.raises(errors.ReplyTooLarge):
        client.call("shared")
    with pytest.raises(errors.FrameTooLarge, match="args"):
        client.call("ping", {"value": extremes.nested(60, lambda value: [value, value])})


LIMIT = 4096  # bytes, the least there is


@pytest.fixture(params=["json", "msgpack", "etf"])
def narrow(request):
    with Client.start(adapter="extremes:adapter", format=request.param, max_frame=LIMIT, env=ENVIRONMENT) as client:
        yield client


def test_errors_that_are_longer_than_a_frame_are_shortened(narrow):
    """Text and details are shortened; the code and the id are not, so the caller gets its reply."""
    for size in (100, 600, 3000, 4000, 100_000):
        with pytest.raises(errors.LMError, match=r"^x{80}"):
            narrow.call("raise_long", {"size": size})
    with pytest.raises(errors.UnknownCommand, match=r"^Unknown command: n"):
        narrow.call("n" * 3900)
    with pytest.raises(errors.InvalidArgs):
        narrow.call("cancel", {"id": ["\0" * 600]})


def test_events_and_host_calls_that_are_longer_than_a_frame(narrow):
    """The call fails with an error that explains it; shorter ones are sent."""
    narrow.register_tools([tool])
    for command in ("large_event", "large_ask"):
        with pytest.raises(errors.ReplyTooLarge, match="longer than 4096 bytes"):
            narrow.stream(command, {"size": 5000}).result(30)
    events = narrow.stream("large_event", {"size": 1900})
    assert list(events) == [("e" * 1900, "x" * 1900)]


@pytest.mark.parametrize("format", ["json", "msgpack", "etf"])
def test_log_events_are_no_longer_than_a_frame(format, start_peer):
    """The beginning of the text is sent."""
    form = codec.by_name(format)
    peer = start_peer("--max-frame", str(LIMIT), adapter="extremes:adapter")

    def call(command, args, request_id=1):
        request = {"id": request_id, "command": command, "args": args, "session_id": "\0" * 300}
        peer.send_frame(form.encode(request))

    call("hello", {"offers": {"logs": True}})
    peer.receive_frame()
    for size in (500, 700, 5000, 1_000_000):
        call("log_long", {"size": size}, "i" * 1000)
        frames = [peer.receive_frame(), peer.receive_frame()]
        assert max(map(len, frames)) <= LIMIT
        event = form.decode(frames[0])
        assert (event["event"], event["data"]["level"]) == ("log", "WARNING")
        assert event["data"]["message"].startswith("\0" * 16)
        assert form.decode(frames[1])["success"]


def test_a_log_line_of_a_call_with_a_huge_id(start_peer):
    """It is written, although JSON cannot represent the id."""
    peer = start_peer(adapter="hostile:adapter")
    assert peer.is_alive()
    peer.send_frame(codec.ETF.encode({"id": 10**5000, "command": "raise"}))
    assert codec.ETF.decode(peer.receive_frame())["id"] == 10**5000
    peer.close_input()
    assert peer.wait() == 0
    line = json.loads(peer.stderr())
    assert line["request_id"] == f"(an integer of {(10**5000).bit_length()} bits)"
    assert "no such thing" in line["error"]
