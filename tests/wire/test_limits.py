"""Limits of a frame: values, depth, inflated size, and available memory."""

from __future__ import annotations

import itertools
import json
import os
import resource
import struct
import subprocess
import sys
import threading
import zlib

import msgspec
import pytest

from bridge import Client, Dispatcher, errors
from bridge._framing import Frame
from bridge.wire import _etf
from bridge.wire._frames import format_of
from bridge.wire._limits import limited
from peer import SUPPORT

ENVIRONMENT = {"PYTHONPATH": os.pathsep.join(filter(None, [SUPPORT, os.environ.get("PYTHONPATH")]))}
ENCODERS = {"json": msgspec.json.encode, "msgpack": msgspec.msgpack.encode, "etf": _etf.encode}
NODE = b"w\4node"
# Terms that Python has no value for, each of which counts once.
ODD_TERMS = [
    b"X" + NODE + bytes(12),
    b"g" + NODE + bytes(9),
    b"Y" + NODE + bytes(8),
    b"x" + NODE + bytes(12),
    b"f" + NODE + bytes(5),
    b"e" + NODE + bytes(5),
    b"Z\0\2" + NODE + bytes(12),
    b"r\0\2d\0\4node" + bytes(9),
    b"M\0\0\0\2\7ab",
]


def compressed(data: bytes, announced: int | None = None) -> bytes:
    size = len(data) - 1 if announced is None else announced
    return b"\x83P" + struct.pack(">I", size) + zlib.compress(data[1:])


def count(value) -> int:
    """Return the number of values, with the keys of maps."""
    if isinstance(value, dict):
        return 1 + sum(1 + count(entry) for entry in value.values())
    if isinstance(value, list):
        return 1 + sum(map(count, value))
    return 1


MESSAGES = {
    "lists": {"id": 1, "a": [[], [[]], [1, [2.5, [None, True]]]] * 200},
    "maps": {"id": 1, "a": [{}, {"b": {}}, {"c": {"d": [1], "e": -1}}] * 200},
    "texts": {"id": 1, "a": ['[,"]\\', '\\"', "{:,}", "ü" * 40, "x" * 300, ""] * 100},
    "integers": {"id": 1, "a": [0, 127, 128, 255, 256, -1, -33, 2**31, -(2**40), 2**63] * 100},
    "numbers up to 255": {"id": 1, "a": [list(range(256))] * 4},
    "many keys": {"id": 1, **{f"key {i}": i for i in range(700)}},
}


@pytest.mark.parametrize("format", ENCODERS)
@pytest.mark.parametrize("name", MESSAGES)
def test_values_are_counted_exactly(format, name):
    """In every format, a limit that is lower by one refuses the message; keys of maps count."""
    message = MESSAGES[name]
    frame, values = Frame.of(ENCODERS[format](message)), count(message)
    assert limited(frame, 1 << 20, values) is frame
    with pytest.raises(errors.FrameTooLarge, match=f"more than {values - 1} values"):
        limited(frame, 1 << 20, values - 1)


@pytest.mark.parametrize("odd", ODD_TERMS)
def test_terms_without_a_value_count_once(odd):
    """Pids, ports, references and the like do not hide later values."""
    data = b"\x83l" + struct.pack(">I", 600) + odd * 600 + b"j"
    message = b"\x83t\0\0\0\1m\0\0\0\1a" + data[1:]
    assert len(_etf.decode(message)["a"]) == 600
    limited(Frame.of(message), 1 << 20, 603)
    if len(message) > 603:
        with pytest.raises(errors.FrameTooLarge):
            limited(Frame.of(message), 1 << 20, 602)


def test_binaries_of_messagepack_are_not_searched():
    """Bytes, texts and extensions of any length count as one value."""
    message = {
        "bytes": [bytes([0x91]) * size for size in (1, 40, 255, 256, 65535, 65536)],
        "text": ["x" * size for size in (31, 32, 255, 256, 65535, 65536)],
        "ext": [msgspec.msgpack.Ext(1, b"\x91" * size) for size in (1, 2, 4, 8, 16, 17, 255, 256, 65536)],
    }
    frame = Frame.of(msgspec.msgpack.encode(message))
    assert limited(frame, 1 << 20, count(message)) is frame
    with pytest.raises(errors.FrameTooLarge):
        limited(frame, 1 << 20, count(message) - 1)


@pytest.mark.parametrize("cut", range(1, 40))
@pytest.mark.parametrize("format", ENCODERS)
def test_broken_messages_are_left_to_the_decoder(format, cut):
    """Wherever the message is cut off, nothing is read past its end."""
    data = ENCODERS[format](MESSAGES["maps"])
    frame = Frame.of(data[: -cut * 7])
    assert limited(frame, 1 << 20, 1_000_000) is frame


@pytest.mark.parametrize("depth", [511, 512, 513, 1100, 100_000])
@pytest.mark.parametrize("opening", [b"[", b'{"a":', b"\x91", b"\x81\xa1a"])
def test_the_depth_is_limited_in_every_format(opening, depth):
    """The limit is 512 levels, whatever Python's own limit is."""
    closing = {b"[": b"]", b'{"a":': b"}"}.get(opening, b"")
    frame = Frame.of(opening * depth + b"1" + closing * depth)
    if depth <= 512:
        assert limited(frame, 1 << 20, 1_000_000) is frame
    else:
        with pytest.raises(RecursionError, match="512 levels"):
            limited(frame, 1 << 20, 1_000_000)


def test_a_compressed_message_is_limited_by_its_inflated_size():
    """In bytes, announced or not, and in values."""
    data = _etf.encode({"id": 7, "command": "ping", "args": {"a": [[]] * 5000}})
    inflated = limited(Frame.of(compressed(data)), len(data), 10_000)
    assert bytes(inflated) == data
    with pytest.raises(errors.FrameTooLarge, match=f"inflates to {len(data)} bytes"):
        limited(Frame.of(compressed(data)), len(data) - 1, 10_000)
    with pytest.raises(msgspec.DecodeError, match="does not have its announced length"):
        limited(Frame.of(compressed(data, 100)), len(data), 10_000)
    with pytest.raises(errors.FrameTooLarge, match="more than 5000 values"):
        limited(Frame.of(compressed(data)), len(data), 5000)
    nested = compressed(b"\x83" + compressed(data)[1:])
    with pytest.raises(msgspec.DecodeError, match="compressed term in a compressed"):
        limited(Frame.of(nested), 1 << 20, 10_000)


PRIME = 2**61 - 1  # Python's hash of an integer is what is left of it


def keys_of_one_hash(count: int) -> list[tuple[int, ...]]:
    choices = [1 + factor * PRIME for factor in range(7)]
    return list(itertools.islice(itertools.product(choices, repeat=7), count))


def request_with(keys, format: str) -> bytes:
    """Return a call whose args are a map with those keys."""
    message = {"id": 7, "command": "echo_decoded", "args": {"a": 0}}
    if format == "msgpack":
        head = msgspec.msgpack.encode(message)[:-1]
        pairs = b"".join(msgspec.msgpack.encode(key) + b"\1" for key in keys)
        return head + b"\xdf" + struct.pack(">I", len(keys)) + pairs
    head = _etf.encode(message)[:-2]
    pairs = b"".join(_etf.encode(key)[1:] + b"a\1" for key in keys)
    return head + b"t" + struct.pack(">I", len(keys)) + pairs


FLOODS = {
    "arrays": (keys_of_one_hash(100_000), "msgpack", "invalid_frame"),
    "tuples": (keys_of_one_hash(100_000), "etf", "invalid_args"),
    "integers": ([number * PRIME for number in range(1, 300_000)], "etf", "invalid_args"),
}


@pytest.mark.parametrize("name", FLOODS)
def test_keys_of_one_hash_are_refused(start_peer, name):
    """A map of them would block the worker for half an hour; usual keys are accepted."""
    peer = start_peer()
    keys, format, code = FLOODS[name]
    peer.send_frame(request_with(keys, format))
    frame = peer.receive_frame()
    reply = format_of(frame).decode(frame)
    assert (reply["id"], reply["code"]) == (7, code)
    usual = [(x, y) for x in range(30) for y in range(30)]
    peer.send_frame(request_with(usual, format))
    frame = peer.receive_frame()
    assert len(format_of(frame).decode(frame)["result"]["a"]) == 900
    assert peer.is_alive()


def requests(size: int) -> dict[str, bytes]:
    """Return calls with id 7 and lists of lists, in each format and compressed."""
    message = {"id": 7, "command": "echo_decoded", "args": {"a": [[]] * size}}
    made = {name: encode(message) for name, encode in ENCODERS.items()}
    return {**made, "compressed etf": compressed(made["etf"])}


@pytest.mark.parametrize("name", requests(1))
def test_too_many_values_are_refused_with_the_id(start_peer, name):
    """In each format, in multipart frames too; a call with fewer is answered."""
    peer = start_peer("--max-values", "100000")
    few, many = requests(90_000)[name], requests(100_001)[name]
    for request in (many, multipart(many)):
        peer.send_frame(request)
        frame = peer.receive_frame()
        reply = format_of(frame).decode(frame)
        assert (reply["id"], reply["code"]) == (7, "frame_too_large")
        assert "more than 100000 values" in reply["error"]
        assert reply["details"] == {"limit": 100_000}
    peer.send_frame(few)
    frame = peer.receive_frame()
    assert len(format_of(frame).decode(frame)["result"]["a"]) == 90_000
    assert peer.is_alive()


def multipart(envelope: bytes) -> bytes:
    """Return a multipart frame with one buffer, whose bytes do not count as values."""
    head = b"\xc1\x01\0\0" + struct.pack(">III", 1, len(envelope), 200_000) + envelope
    return head + bytes(-len(head) % 64) + bytes([0x91]) * 200_000


def test_a_compressed_request_of_more_than_max_frame(start_peer):
    """61 KB that inflate to 45 MiB of lists, and to more than a frame, are errors at once."""
    peer = start_peer("--max-frame", "131072")
    data = b"\x83t\0\0\0\2m\0\0\0\2ida\7m\0\0\0\4argsl" + struct.pack(">I", 45 << 20)
    data += b"j" * (45 << 20) + b"j"
    peer.send_frame(compressed(data))
    reply = _etf.decode(peer.receive_frame())
    assert (reply["id"], reply["code"]) == (7, "frame_too_large")
    assert reply["details"] == {"length": len(data), "limit": 131_072}
    assert peer.is_alive()


@pytest.mark.parametrize("format", ENCODERS)
def test_a_client_limits_the_values_of_replies(format):
    """The call fails, and the client continues."""
    flags = ["--max-values", "1000000"]  # the worker's own limit; the last flag counts
    with Client.start(adapter="echo", format=format, max_values=1000, flags=flags) as client:
        with pytest.raises(errors.FrameTooLarge, match="more than 1000 values"):
            client.call("echo", {"a": [[]] * 2000})
        assert client.call("ping")["status"] == "ok"


@pytest.mark.parametrize("request_id", [10**5000, -(10**4999), 2**64], ids=["5001 digits", "negative", "2^64"])
def test_integers_of_any_size_as_ids(start_peer, request_id):
    """Calls that fail in every way, two at a time, get their replies with the id."""
    peer = start_peer(adapter="hostile:adapter")
    for command in ("nope", "raise", "ping", "unencodable", "own_error"):
        peer.send_frame(_etf.encode({"id": request_id, "command": command}))
        assert _etf.decode(peer.receive_frame())["id"] == request_id
    sleeping = _etf.encode({"id": request_id, "command": "sleep", "args": {"seconds": 0.3}})
    peer.send_frame(sleeping)
    peer.send_frame(sleeping)
    replies = [_etf.decode(peer.receive_frame()) for _ in range(2)]
    assert [reply["id"] for reply in replies] == [request_id] * 2
    assert sorted(reply.get("code", "") for reply in replies) == ["", "duplicate_id"]
    assert peer.is_alive()


HUGE = 10**5000
FOREIGN_INTEGERS = {
    "a buffer's number": {"a": {"$buffer": HUGE}},
    "a key on the way to a fault": {"a": {HUGE: {"$buffer": 1}}},
    "a shape": {"a": (_etf.Atom("tensor"), (_etf.Atom("f"), HUGE), (HUGE,), b"")},
    "a field": {"seconds": HUGE},
    "a session": {"session_id": HUGE},
    "a map's keys": {HUGE: {HUGE: 1}, "a": {"$buffer": HUGE}},
}


@pytest.mark.parametrize("name", FOREIGN_INTEGERS)
@pytest.mark.parametrize("command", ["back", "anything", "many", "tree", "cancel"])
def test_integers_of_any_size_in_args(name, command):
    """Errors contain them, and each call gets its reply."""
    import arrays

    dispatcher = Dispatcher(arrays.adapter)
    encode = _etf.Encoder({"tensor", "f"}).encode
    request = {"id": 1, "command": command, "args": FOREIGN_INTEGERS[name]}
    for frame in (encode(request), multipart(encode(request))):
        reply = _etf.decode(dispatcher.call(frame, 30))
        assert reply["id"] == 1
        assert reply["success"] or reply["error"]


def limit_memory(peer, room: int) -> None:
    """Limit the worker to that many further bytes of address space."""
    with open(f"/proc/{peer.process.pid}/statm") as statm:
        pages = int(statm.read().split()[0])
    size = pages * os.sysconf("SC_PAGE_SIZE") + room
    resource.prlimit(peer.process.pid, resource.RLIMIT_AS, (size, size))


@pytest.mark.parametrize("name", ["json", "msgpack", "etf", "multipart", "id last"])
def test_a_frame_that_does_not_fit_into_memory(start_peer, name):
    """It is overloaded, with the id if it can be read, and later frames are answered."""
    peer = start_peer("--max-frame", str(256 << 20))
    assert peer.is_alive()
    limit_memory(peer, 32 << 20)
    message = {"id": 7, "command": "ping", "args": {"a": "x" * (100 << 20)}}
    if name == "id last":
        frame = json.dumps({"args": message["args"], "id": 7, "command": "ping"}).encode()
    elif name == "multipart":
        frame = multipart(ENCODERS["json"](message))
    else:
        frame = ENCODERS[name](message)
    peer.send_frame(frame)
    frame = peer.receive_frame()
    reply = format_of(frame).decode(frame)
    assert (reply["id"], reply["code"]) == (None if name == "id last" else 7, "overloaded")
    assert reply["recovery"] == "backoff_retry"
    assert reply["details"]["retry_after"] > 0
    for _ in range(3):
        assert peer.is_alive()


def test_no_memory_to_decode_and_to_encode(start_peer):
    """The call is overloaded and the worker continues; MemoryError in a handler is the handler's error."""
    peer = start_peer("--max-values", str(1 << 30), adapter="extremes:adapter")
    assert peer.is_alive()
    limit_memory(peer, 64 << 20)
    values = b"[]," * 9_000_000 + b"[]"
    peer.send_frame(b'{"id": 8, "command": "anything", "args": {"a": [' + values + b"]}}")
    reply = peer.receive()
    assert (reply["id"], reply["code"]) == (8, "overloaded")
    codes = set()
    for size in range(4, 100, 4):
        reply = peer.call("long_text", {"size": size << 20}, request_id=size)
        assert reply["id"] == size
        codes.add(reply.get("code"))
        assert peer.is_alive()
    assert codes == {None, "overloaded", "handler_error"} | (codes & {"reply_too_large"})


def test_a_reply_of_the_host_with_too_many_values(start_peer):
    """The call that asked fails with the reason."""
    peer = start_peer("--max-values", "100000", adapter="extremes:adapter")
    peer.call("hello", {"offers": {"tools": True}})
    peer.send({"id": 5, "command": "use_tool", "args": {"name": "x"}})
    question = peer.receive()
    peer.send({"id": question["id"], "success": True, "result": [[]] * 100_001})
    reply = peer.receive()
    assert (reply["id"], reply["code"]) == (5, "frame_too_large")
    assert "more than 100000 values" in reply["error"]


CLIENT_WITHOUT_MEMORY = """
import os, resource, sys
from bridge import Client, errors

with Client.start(adapter="extremes:adapter") as client:
    client.call("long_text", {"size": 1000})
    with open("/proc/self/statm") as statm:
        size = int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE") + (24 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    try:
        client.call("long_text", {"size": 50 << 20})
    except errors.Overloaded as error:
        print(error)
    print(client.call("long_text", {"size": 5}))
"""


def test_a_client_that_has_no_memory_for_a_reply():
    """That call fails, and the connection continues."""
    run = subprocess.run(
        [sys.executable, "-c", CLIENT_WITHOUT_MEMORY],
        capture_output=True,
        text=True,
        env={**os.environ, **ENVIRONMENT},
    )
    assert run.returncode == 0, run.stderr
    first, second = run.stdout.splitlines()
    assert first.startswith("there is not enough memory for a frame of")
    assert second == "xxxxx"


def test_other_calls_go_on_beside_a_call_with_many_values(start_peer):
    """Pings and heartbeats are answered while long frames are refused."""
    peer = start_peer()
    many = requests(12_000_000)["json"]
    writer = threading.Thread(target=lambda: [peer.send_frame(many) for _ in range(3)])
    writer.start()
    for _ in range(3):
        assert peer.receive()["code"] == "frame_too_large"
    writer.join()
    assert peer.is_alive()
