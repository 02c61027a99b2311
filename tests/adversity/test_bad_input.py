"""Bad input to a real worker: exactly one reply, with the id if it can be read, and the worker continues."""

from __future__ import annotations

import json
import os
import signal
import struct
import threading
import zlib

import msgspec
import pytest

from bridge.wire import codec
from bridge.wire._frames import format_of
from peer import wait_until

HEADER = struct.Struct(">I")


def ping(request_id) -> bytes:
    payload = json.dumps({"id": request_id, "command": "ping", "args": {}}).encode()
    return HEADER.pack(len(payload)) + payload


def nested(depth: int, opening: bytes, closing: bytes = b"") -> bytes:
    return opening * depth + closing * depth


ID_7 = b"m\0\0\0\2ida\7"  # ETF
COMMAND = b"m\0\0\0\7command"
ECHO = b"m\0\0\0\x0cecho_decoded"

BROKEN = {
    # what: (payload, id of the reply, code)
    "no format": (b"hello", None, "invalid_frame"),
    "array": (b"[1]", None, "invalid_frame"),
    "never used byte": (b"\xc1\x00", None, "invalid_frame"),
    "json cut off": (b'{"id": 7, "command": "ping", "args": {', 7, "invalid_frame"),
    "json with id behind the fault": (
        b'{"args": {"a": NaN}, "command": "ping", "id": "x7"}',
        "x7",
        "invalid_frame",
    ),
    "json with an id inside args only": (b'{"args": {"id": 5}, !', None, "invalid_frame"),
    "json, two documents": (b'{"id": 7, "command": "ping"} {}', 7, "invalid_frame"),
    "json, infinity": (b'{"id": 7, "command": "ping", "args": -Infinity}', 7, "invalid_frame"),
    "json, command not UTF-8": (b'{"id": 7, "command": "p\xff"}', 7, "invalid_frame"),
    "msgpack cut off": (b"\x83\xa2id\x07\xa7comm", 7, "invalid_frame"),
    "msgpack, a length of 4 GiB": (
        b"\x83\xa2id\x07\xa7command\xa4echo\xa4args\xdd\xff\xff\xff\xff",
        7,
        "invalid_frame",
    ),
    "msgpack, command not UTF-8": (b"\x82\xa2id\x07\xa7command\xa1\xff", 7, "invalid_frame"),
    "etf cut off": (b"\x83t\0\0\0\2" + ID_7 + COMMAND[:9], 7, "invalid_frame"),
    "etf, a length of 4 GiB": (
        b"\x83t\0\0\0\2" + ID_7 + b"w\4args" + b"l\xff\xff\xff\xff",
        7,
        "invalid_frame",
    ),
    "etf, a refused tag": (b"\x83t\0\0\0\2" + ID_7 + b"w\4argsy", 7, "invalid_frame"),
    "etf, a bomb": (b"\x83P\xff\xff\xff\xff" + zlib.compress(bytes(9)), None, "frame_too_large"),
    "etf, command not UTF-8": (
        b"\x83t\0\0\0\2" + ID_7 + COMMAND + b"m\0\0\0\1\xff",
        7,
        "invalid_request",
    ),
    "etf 100 000 deep": (
        b"\x83t\0\0\0\3" + ID_7 + COMMAND + ECHO + b"w\4args" + b"h\1" * 100_000 + b"j",
        7,
        "invalid_args",
    ),
    "etf, command a number": (b"\x83t\0\0\0\2" + ID_7 + COMMAND + b"a\5", 7, "invalid_request"),
    "json 100 000 deep": (
        b'{"id": 7, "command": "echo", "args": ' + nested(100_000, b"[", b"]") + b"}",
        7,
        "invalid_request",
    ),
    "json 100 000 deep, id last": (
        b'{"args": ' + nested(10_000, b'{"a":', b"") + b"1" + b"}" * 10_000 + b', "id": 7}',
        7,
        "invalid_request",
    ),
    "msgpack 100 000 deep": (
        b"\x83\xa2id\x07\xa7command\xa4echo\xa4args" + nested(100_000, b"\x91") + b"\x01",
        7,
        "invalid_request",
    ),
    "id missing": (b'{"command": "ping"}', None, "invalid_request"),
    "id null": (b'{"id": null, "command": "ping"}', None, "invalid_request"),
    "id a float": (b'{"id": 1.5, "command": "ping"}', None, "invalid_request"),
    "id a bool": (b'{"id": true, "command": "ping"}', None, "invalid_request"),
    "id a map": (b'{"id": {}, "command": "ping"}', None, "invalid_request"),
    "command missing": (b'{"id": 7}', 7, "invalid_request"),
    "command a number": (b'{"id": 7, "command": 5}', 7, "invalid_request"),
    "command null, msgpack": (b"\x82\xa2id\x07\xa7command\xc0", 7, "invalid_request"),
    "session a number": (b'{"id": 7, "command": "ping", "session_id": 5}', 7, "invalid_request"),
    "unknown command": (b'{"id": 7, "command": "pong"}', 7, "unknown_command"),
    "args of a wrong type": (b'{"id": 7, "command": "sleep", "args": [1]}', 7, "invalid_args"),
    "an arg of a wrong type": (
        b'{"id": 7, "command": "sleep", "args": {"seconds": "1"}}',
        7,
        "invalid_args",
    ),
    "a number out of range": (
        b'{"id": 7, "command": "echo_decoded", "args": {"a": 1e999}}',
        7,
        "invalid_args",
    ),
    "json, args not UTF-8": (
        b'{"id": 7, "command": "echo_decoded", "args": {"a": "\xff"}}',
        7,
        "invalid_args",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_request_gets_one_reply(peer, what):
    """The reply has the id and a code, in a format that the sender can read, and later frames are answered."""
    payload, request_id, code = BROKEN[what]
    peer.send_bytes(HEADER.pack(len(payload)) + payload + ping("next"))
    frames = [peer.receive_frame(), peer.receive_frame()]
    frame = next(frame for frame in frames if b'"next"' not in frame)
    reply = format_of(frame).decode(frame)
    assert (reply["id"], reply["success"], reply["code"]) == (request_id, False, code)
    assert reply["error"]
    assert "\n" not in reply["error"]
    assert format_of(frame) is (format_of(payload) or codec.JSON)
    assert any(b'"next"' in frame and b'"success":true' in frame for frame in frames)
    assert peer.is_alive()


def test_a_long_frame_is_skipped(start_peer):
    """100 MiB with a limit of 64 MiB: one error, constant memory, and the next frame is answered."""
    peer = start_peer()
    before = peer.call("get_stats")["result"]["memory_usage"]["rss"]
    size = 100 << 20
    sender = threading.Thread(target=lambda: peer.send_bytes(HEADER.pack(size) + bytes(size) + ping(2)))
    sender.start()
    reply = peer.receive()
    assert (reply["id"], reply["code"], reply["details"]["length"]) == (
        None,
        "frame_too_large",
        size,
    )
    assert peer.receive()["id"] == 2
    sender.join()
    assert peer.call("get_stats")["result"]["memory_usage"]["rss"] - before < 4 << 20


def test_an_absurd_length_ends_the_worker_with_65(peer):
    """A length of 0xFFFFFFFF is answered, nothing is allocated, and the exit status is 65."""
    peer.send_bytes(b"\xff\xff\xff\xff" + b"rubbish")
    assert peer.receive()["code"] == "frame_too_large"
    assert peer.receive_frame() is None
    assert peer.wait() == 65


def test_open_calls_are_answered_before_exit_65(peer):
    """Calls that were accepted before the stream broke get their replies."""
    peer.send({"id": 1, "command": "sleep", "args": {"seconds": 0.3}})
    peer.send_bytes(b"\xff\xff\xff\xff")
    replies = [peer.receive(), peer.receive()]
    assert {reply["id"] for reply in replies} == {1, None}
    assert peer.wait() == 65


@pytest.mark.parametrize("data", [b"\0", b"\0\0\0", b"\0\0\0\x0a", b'\0\0\0\x0a{"id"'])
def test_a_stream_that_ends_inside_a_frame(peer, data):
    """A truncated header or frame is answered, and ends the worker with status 65."""
    peer.send_bytes(ping(1) + data)
    peer.close_input()
    assert peer.receive()["id"] == 1
    reply = peer.receive()
    assert (reply["id"], reply["code"]) == (None, "invalid_frame")
    assert peer.receive_frame() is None
    assert peer.wait() == 65


def test_ten_thousand_frames_in_one_write(peer):
    """Each frame is answered once, in order."""
    writer = threading.Thread(target=peer.send_bytes, args=(b"".join(map(ping, range(10_000))),))
    writer.start()
    assert [peer.receive()["id"] for _ in range(10_000)] == list(range(10_000))
    writer.join()


def test_one_byte_at_a_time(peer):
    """A frame may arrive in any pieces, also with heartbeats before and after it."""
    for byte in ping(1) + HEADER.pack(0) + ping(2):
        peer.send_bytes(bytes([byte]))
    assert peer.receive()["id"] == 1
    assert peer.receive_frame() == b""
    assert peer.receive()["id"] == 2


def test_ids_come_back_exactly(peer):
    """Ids past 2^53 and past 64 bits, negative ones, and any strings are unchanged."""
    for request_id in (0, -1, 2**53 + 1, 2**64 - 1, 2**80, "", 'ü\n"', "x" * 10_000):
        assert peer.call("ping", request_id=request_id)["id"] == request_id
        assert peer.call("nope", request_id=request_id)["id"] == request_id


def test_an_id_in_flight_is_not_accepted_again(peer):
    """A second request with the id of an open call is refused; the first one gets its own reply."""
    peer.send({"id": 1, "command": "sleep", "args": {"seconds": 0.5}})
    for command in ("ping", "sleep"):
        assert peer.call(command, request_id=1)["code"] == "duplicate_id"
    assert peer.receive()["result"] == {"slept": 0.5}
    assert peer.call("ping", request_id=1)["success"]


def test_end_of_stream_while_work_is_open(peer):
    """The reply is sent within the grace period, and the exit status is 0."""
    peer.send({"id": 1, "command": "sleep", "args": {"seconds": 0.3}})
    peer.close_input()
    assert peer.receive()["result"] == {"slept": 0.3}
    assert peer.receive_frame() is None
    assert peer.wait() == 0
    assert peer.stderr() == ""


def test_a_reader_that_stops_reading_loses_nothing(peer):
    """8 MiB of replies wait in the pipe and in the writer, and all arrive once the host reads again."""
    payload = {"blob": "x" * 65536}
    frames = [json.dumps({"id": i, "command": "echo", "args": payload}).encode() for i in range(128)]
    writer = threading.Thread(target=lambda: [peer.send_frame(frame) for frame in frames], daemon=True)
    writer.start()
    writer.join(0.5)  # blocked by now: neither pipe holds 8 MiB
    assert writer.is_alive()
    for index in range(128):
        reply = peer.receive()
        assert (reply["id"], reply["result"]) == (index, payload)
    writer.join()
    assert peer.is_alive()


def test_a_pipe_set_to_non_blocking_by_its_host(start_peer):
    """The worker waits after EAGAIN in both directions, also if the pipe is full."""
    peer = start_peer(blocking=False)
    assert peer.is_alive()
    payload = {"blob": "x" * (4 << 20)}
    writer = threading.Thread(target=peer.send, args=({"id": 2, "command": "echo", "args": payload},))
    writer.start()
    assert peer.receive()["result"] == payload
    writer.join()


@pytest.fixture
def hostile(start_peer):
    return start_peer("--max-frame", "100000", adapter="hostile:adapter")


FAULTS = {
    "raise": ("handler_error", "ValueError: no such thing"),
    "exit": ("handler_error", "SystemExit: 3"),
    "recurse": ("handler_error", "RecursionError: "),
    "unencodable": ("not_encodable", "object"),
    "cyclic": ("not_encodable", "RecursionError"),
    "not_finite": ("not_encodable", "result.list[1].deep is nan"),
    "surrogate": ("handler_error", "ValueError: lone ? surrogate"),
    "own_error": ("quota_exceeded", "enough"),
    "large": ("reply_too_large", "100000 bytes"),
}


@pytest.mark.parametrize("lane", ["", "_on_thread"])
@pytest.mark.parametrize("command", FAULTS)
def test_a_misbehaving_handler_is_answered(hostile, command, lane):
    """Its caller gets one reply, and the worker continues."""
    code, text = FAULTS[command]
    reply = hostile.call(command + lane, {"size": 100_001}, request_id=9)
    assert (reply["id"], reply["success"], reply["code"]) == (9, False, code)
    assert text in reply["error"]
    assert "\n" not in reply["error"]
    assert hostile.is_alive()


def test_numbers_that_one_format_carries_and_the_other_does_not(hostile):
    """NaN is sent in MessagePack, integers past 64 bits in JSON; neither silently becomes null."""

    def ask_msgpack(command):
        hostile.send_frame(msgspec.msgpack.encode({"id": 1, "command": command}))
        return msgspec.msgpack.decode(hostile.receive_frame())

    nan = ask_msgpack("not_finite")["result"]["list"][1]["deep"]
    assert nan != nan
    assert hostile.call("big_integer")["result"] == {"value": 2**70}
    assert ask_msgpack("big_integer")["code"] == "not_encodable"


@pytest.mark.parametrize("lane", ["", "_on_thread"])
def test_nothing_that_is_printed_reaches_the_wire(hostile, lane):
    """print, sys.__stdout__, os.write(1), C's puts and a child's output go to stderr."""
    assert hostile.call(f"print{lane}")["result"] == {"read": ""}
    assert hostile.is_alive()
    hostile.close_input()
    assert hostile.wait() == 0
    lines = hostile.stderr().split()
    assert sorted(lines) == ["child", "os.write", "print", "puts", "sys.__stdout__"]


def test_heartbeats_while_a_handler_holds_the_gil(hostile):
    """An empty frame is answered although no Python code can run."""
    hostile.is_alive()
    hostile.send({"id": 1, "command": "hold_gil", "args": {"seconds": 2}})
    wait_until(lambda: _is_sleeping_in_handler(hostile))
    for _ in range(100):
        hostile.send_frame(b"")
        assert hostile.receive_frame() == b"", "the call's reply came first"
    assert hostile.receive()["id"] == 1


def _is_sleeping_in_handler(peer) -> bool:
    """Return whether a thread sleeps in clock_nanosleep, which the handler calls while it holds the GIL."""
    for thread in os.listdir(f"/proc/{peer.process.pid}/task"):
        with open(f"/proc/{peer.process.pid}/task/{thread}/wchan") as wchan:
            if "nanosleep" in wchan.read():
                return True
    return False


@pytest.mark.parametrize("command", ["sleep", "hold_gil"])
def test_a_handler_that_never_returns_does_not_keep_the_process_alive(start_peer, command):
    """After the end of the host, the worker ends within its grace period, even if the handler holds the GIL."""
    peer = start_peer("--grace", "0.3", adapter="hostile:adapter")
    peer.is_alive()
    peer.send({"id": 1, "command": command, "args": {"seconds": 600}})
    peer.send_frame(b"")
    assert peer.receive_frame() == b""
    peer.close_input()
    assert peer.wait(10) == 0


def test_sigterm_drains_and_exits_0(peer):
    """Open calls are answered, then the process ends."""
    peer.is_alive()
    peer.send({"id": 1, "command": "sleep", "args": {"seconds": 0.3}})
    wait_until(lambda: peer.call("get_stats", request_id=2)["result"]["in_flight"] == 1)
    peer.process.send_signal(signal.SIGTERM)
    assert peer.receive()["result"] == {"slept": 0.3}
    assert peer.wait() == 0


def test_sigint_is_ignored(peer):
    """Ctrl-C in the host's terminal does not end the worker."""
    peer.is_alive()
    peer.process.send_signal(signal.SIGINT)
    assert peer.is_alive()


def test_a_workers_environment(start_peer):
    """Numeric libraries get few threads, and price lists are not downloaded.

    Variables of the operator take precedence.
    """
    peer = start_peer(adapter="hostile:adapter", env={"OMP_NUM_THREADS": "3"})
    environment = peer.call("environment")["result"]
    assert environment["OPENBLAS_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "1"
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["LITELLM_LOCAL_MODEL_COST_MAP"] == "True"
