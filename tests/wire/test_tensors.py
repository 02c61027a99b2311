"""Arrays on the wire: every format, dtype and alignment, and arrays without a form."""

from __future__ import annotations

import base64
import json
import subprocess
import sys

import msgspec
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

import arrays
import framing_spec
from bridge import Dispatcher, Tensor, errors
from bridge._framing import Frame, buffers_of, envelope_of, is_multipart
from bridge.wire import _etf
from bridge.wire.tensors import TYPES, substitute
from tensor_frames import F3, FORMATS, frame_of, request, tensor

DTYPES = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16", "?"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3, 4), (1,) * 32])
def test_arrays_come_back_as_they_were(client, dtype, shape):
    """All types, any shape; read-only, for as long as anyone holds them. Truth values are u8 in
    ETF, because Nx has no type for them."""
    size = int(numpy.prod(shape))
    x = numpy.frombuffer(numpy.random.default_rng(1).bytes(size * numpy.dtype(dtype).itemsize), dtype).reshape(shape)
    if dtype == "?":
        x = numpy.ones(shape, bool)
    for command in ("back", "back_on_a_thread"):
        y = client.call(command, {"x": x})["x"]
        if dtype == "?" and y.dtype == "u1":
            y = y.view(bool)
        assert (y.dtype, y.shape, y.tobytes()) == (x.dtype, x.shape, x.tobytes())
        assert not y.flags.writeable


def test_arrays_in_another_layout_are_copied_once(client):
    """Strided, reversed, in Fortran order, big-endian."""
    x = numpy.arange(24, dtype="f4").reshape(4, 6)
    for y in (x[:, ::2], x[::-1], x.T, numpy.asfortranarray(x), x.astype(">f4"), x[1:2, 3]):
        back = client.call("back", {"x": y})["x"]
        assert back.dtype == "<f4"
        assert numpy.array_equal(back, y)


def test_bits_of_nan_are_unchanged(client):
    """Payloads of NaN, including signalling ones."""
    bits = numpy.array([0x7FC00001, 0x7F800001, 0xFFFFFFFF, 0x80000000], "u4").view("f4")
    assert client.call("back", {"x": bits})["x"].tobytes() == bits.tobytes()


@pytest.mark.parametrize("kind", ["bf16", "f8", "f8_e4m3fn"])
def test_types_that_numpy_does_not_have(client, kind):
    """They are Tensors; an adapter that expects arrays gets the bits."""
    data = bytes(range(8))
    x = Tensor(kind, (2, 4 // TYPES[kind][0]), data[: 2 * (4 // TYPES[kind][0]) * TYPES[kind][0]])
    y = client.call("tensor_back", {"x": x})["x"]
    assert (y.type, y.shape, bytes(y.data)) == (x.type, x.shape, bytes(x.data))
    assert client.call("facts", {"x": x})["dtype"] == ("uint16" if kind == "bf16" else "uint8")


def test_large_arrays_are_aligned_and_not_copied(client):
    """In the worker and in the client they are views of the frame."""
    x = numpy.zeros(100_000, "u2")
    facts = client.call("facts", {"x": x})
    assert (facts["address"], facts["owns"], facts["writeable"]) == (0, False, False)
    y = client.call("back", {"x": x})["x"]
    assert y.ctypes.data % 64 == 0
    assert not y.flags.owndata


def test_long_binaries_are_out_of_band(client):
    """Bytes and memoryviews, in both directions, into fields of either type."""
    for size in (4097, 65_537, 100_000):
        a, b = bytes(size), bytes([255]) * (size + 1)
        back = client.call("binary", {"data": a, "view": memoryview(b)})
        assert (bytes(back["data"]), bytes(back["view"])) == (b, a)
    back = client.call("binary", {"data": b"abcd", "view": memoryview(b"\0" * 10_000)})
    assert (bytes(back["data"]), as_bytes(back["view"])) == (b"\0" * 10_000, b"abcd")
    back = client.call("anything", {"x": bytes(65_537), "s": "x" * 10_000})
    assert back["types"] == {"x": "memoryview", "s": "str"}
    assert len(back["args"]["x"]) == 65_537


def as_bytes(value):
    """Return a short binary as the client's format has it: in ETF it may be text, in JSON it is base64."""
    if not isinstance(value, str):
        return bytes(value)
    return value.encode() if len(value) == 4 else base64.b64decode(value)


def test_arrays_inside_anything_are_arrays(client):
    """Lists, maps, events."""
    x = numpy.arange(3.0)
    back = client.call("anything", {"x": [x, {"y": x}], "n": numpy.float32(1.5)})["args"]
    assert numpy.array_equal(back["x"][0], x)
    assert numpy.array_equal(back["x"][1]["y"], x)
    assert back["n"] == 1.5
    events = list(client.stream("back_on_a_thread", {"x": x}))
    assert [name for name, _ in events] == ["array"]
    assert numpy.array_equal(events[0][1]["x"], x)


def test_arrays_without_a_form_are_refused_by_the_client(client):
    """Objects, text, dates and records."""
    for x in (
        numpy.array([object()]),
        numpy.array(["text"]),
        numpy.array(["2020-01-01"], "M8[D]"),
        numpy.zeros(2, [("a", "i4")]),
        numpy.ma.array([1, 2], mask=[0, 1]),
    ):
        with pytest.raises(errors.NotEncodable):
            client.call("back", {"x": x})


def test_a_host_without_multipart_frames(dispatcher):
    """base64 in JSON, bin in MessagePack, a tuple in ETF; the reply has the same form."""
    x = numpy.arange(6, dtype="<f4").reshape(2, 3)
    form = tensor("f32", [2, 3], base64.b64encode(x.tobytes()).decode())
    reply = json.loads(dispatcher.call(json.dumps(request("back", {"x": form})).encode(), 30))
    assert reply["result"]["x"] == form
    form = tensor("f32", [2, 3], x.tobytes())
    message = msgspec.msgpack.encode(request("back", {"x": form}))
    assert msgspec.msgpack.decode(dispatcher.call(message, 30))["result"]["x"] == form
    term = (_etf.Atom("tensor"), (_etf.Atom("f"), 32), (2, 3), x.tobytes())
    encoder = _etf.Encoder({"tensor", "f"})
    reply = _etf.decode(dispatcher.call(encoder.encode(request("back", {"x": term})), 30))
    assert reply["result"]["x"] == term
    for size in (4, 100_000):  # bytes that look like text are none
        term = (_etf.Atom("tensor"), (_etf.Atom("u"), 8), (size,), b"a" * size)
        reply = _etf.decode(dispatcher.call(encoder.encode(request("back", {"x": term})), 30))
        assert bytes(reply["result"]["x"][3]) == b"a" * size


def test_atoms_are_text_to_commands_with_arrays(dispatcher):
    """As keys and as values, as without arrays."""
    encoder = _etf.Encoder({"x", "rows", "named", "a", "tensor", "u", "note"})
    x, named, a, tensor, u, note = map(_etf.Atom, ("x", "named", "a", "tensor", "u", "note"))
    term = (tensor, (u, 8), (4,), {"$buffer": 0})
    for command, args in (
        ("back", {x: term}),
        ("many", {named: {a: term}}),
        ("anything", {x: term, note: a}),
        ("noted", {x: term, note: a}),
    ):
        data = framing_spec.joined(encoder.encode(request(command, args)), b"data")
        reply = Frame.of(dispatcher.call(data, 30))
        envelope = envelope_of(reply) if is_multipart(reply) else reply
        assert _etf.decode(envelope)["success"], bytes(reply)


tensors = st.one_of(
    arrays_of.arrays(st.sampled_from(DTYPES), arrays_of.array_shapes(min_dims=0, min_side=0)),
    st.binary(max_size=50),
)


values = st.recursive(
    st.none() | st.integers(-(2**60), 2**60) | st.text(max_size=5) | tensors,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(values, st.sampled_from(FORMATS))
def test_every_value_survives_a_frame(value, name):
    """Encoded and resolved again, whatever it holds and however it lies; truth values are u8 in
    ETF."""
    from bridge._framing import Outbox
    from bridge.wire.codec import by_name
    from bridge.wire.tensors import collecting_buffers

    format, outbox, buffers = by_name(name), Outbox(), []

    def moved(data):
        buffers.append(data)
        return {"$buffer": len(buffers) - 1}

    message = {"value": in_parts(value, moved), "x": moved(b"one at least")}
    outbox.append_multipart(collecting_buffers(format.encode_into, buffers), message, buffers)
    frame = Frame.of(outbox.payload())
    assert all((memoryview(b).nbytes == 0) or len(b) for b in buffers_of(frame))
    back = substitute(format.decode(bytes(envelope_of(frame))), buffers_of(frame))
    assert same(back["value"], value)


def test_numbers_of_numpy_are_numbers(dispatcher):
    """NaN and infinity are refused as usual."""
    for x in (numpy.float64(1.5), numpy.float32(1.5), numpy.int8(1), numpy.True_):
        assert answered(dispatcher, x)["result"] == x
    for x in (numpy.float64("nan"), numpy.float32("inf")):
        assert answered(dispatcher, {"x": [x], "y": numpy.ones(2)})["code"] == "not_encodable"


def answered(dispatcher, result):
    """Return the reply of a command with that result."""
    arrays.adapter.command("result", lane="inline")(lambda args, context: result)
    try:
        dispatcher = Dispatcher(arrays.adapter)
    finally:
        del arrays.adapter.commands["result"]
    return json.loads(dispatcher.call(json.dumps(request("result", {})).encode()))


def in_parts(value, apart):
    """Return a result with its binaries out of band: in JSON and ETF they would come back as text."""
    if isinstance(value, bytes):
        return apart(value)
    if isinstance(value, list):
        return [in_parts(entry, apart) for entry in value]
    if isinstance(value, dict):
        return {key: in_parts(entry, apart) for key, entry in value.items()}
    return value


def same(a, b):
    if isinstance(b, numpy.ndarray):
        if (a.dtype, b.dtype) == ("u1", "?"):
            a = a.view(bool)
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(b, bytes):
        return bytes(a) == b
    if isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in b)
    return a == b


@pytest.mark.parametrize("format", FORMATS)
def test_peak_of_memory(format, support):
    """An array of 64 MiB costs who gets it 64 MiB, who sends it nothing: 1 MiB is left for all
    else, resident and of Python's own."""
    done = subprocess.run(
        [sys.executable, f"{support}/array_memory.py", format],
        capture_output=True,
        text=True,
        check=True,
    )
    for way in json.loads(done.stdout).values():
        for end in way.values():
            assert end["resident"] <= 1 << 20, done.stdout
            assert end["python"] <= 1 << 20, done.stdout


def test_numpy_is_loaded_by_the_first_array_only():
    """A worker without arrays does not load it."""
    code = (
        "import sys, json; from bridge import Client; c = Client.start(adapter='echo');"
        "c.call('echo', {'x': bytes(10_000)}); c.stop(); print('numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_numbers_as_keys_of_json(dispatcher):
    """A multipart frame has the same keys as a plain one."""
    x = tensor("u8", [4], {"$buffer": 0})
    envelope = request("several", {"by_number": {"1": 2}, "x": x})
    assert json.loads(dispatcher.call(frame_of(envelope, b"data"), 30))["success"]


@pytest.mark.parametrize("name", FORMATS)
def test_commands_that_store_bytes_take_multipart_frames(name):
    """In programs and session data, long binaries and arrays are stored in their plain form."""
    from bridge._framing import Outbox
    from bridge.adapters.dspy import adapter
    from bridge.wire.codec import JSON, MSGPACK, by_name
    from bridge.wire.tensors import collecting_buffers

    format, dispatcher = by_name(name), Dispatcher(adapter)

    def ask(command, args, *binaries):
        outbox, buffers = Outbox(), list(binaries)
        message = request(command, args)
        outbox.append_multipart(collecting_buffers(format.encode_into, buffers), message, buffers)
        reply = format.decode(dispatcher.call(outbox.payload(), 60))
        assert reply["success"], reply
        return reply["result"]

    signature = {"inputs": [{"name": "q"}], "outputs": [{"name": "a"}]}
    ask("create_program", {"id": "p", "signature": signature, "modules": {"$buffer": 0}}, b"some")
    assert ask("list_programs", {})["programs"][0]["signature"] == signature
    long = b"\xff" * 10_000
    value = {"long": {"$buffer": 0}, "x": Tensor("u8", (2,), b"ab"), "n": [1, None]}
    ask("update_session_data", {"key": "k", "value": value}, long)
    other = MSGPACK if format is JSON else format  # JSON cannot carry the bytes
    request_data = other.encode(request("get_session_data", {}))
    kept = other.decode(dispatcher.call(request_data, 60))["result"]["data"]["k"]
    assert bytes(kept["long"]) == long
    assert kept["n"] == [1, None]
    assert not numpy.any(substitute(kept["x"], None) != numpy.frombuffer(b"ab", "u1"))


def test_a_reply_is_not_changed_by_the_next_call(start_peer):
    """The handler's buffer is changed by the next call of the same read."""
    peer = start_peer(adapter="arrays:adapter")
    peer.call("hello", {"offers": {"buffers": True}})
    for number in range(6):
        command = "change_buffer" if number % 2 else "own_buffer"
        peer.send({"id": number, "command": command})
    seen = []
    for _ in range(6):
        frame = Frame.of(peer.receive_frame())
        if is_multipart(frame):
            seen.append(bytes(buffers_of(frame)[0])[0])
    assert seen == [0, 1, 2]
    assert peer.is_alive()


def test_a_map_like_a_placeholder_cannot_be_sent_with_an_array(client):
    """It would refer to another buffer."""
    with pytest.raises(errors.NotEncodable, match="reserved"):
        client.call("forge")
    with pytest.raises(errors.NotEncodable, match="reserved"):
        client.call("anything", {"x": F3, "y": {"$tensor": 1}})
    assert client.call("anything", {"y": {"$buffer": 1}})["args"] == {"y": {"$buffer": 1}}


DEEP = "[" * 600 + "]" * 600


@pytest.mark.parametrize(
    "answer",
    [
        frame_of(b'{"id": "w1", "success": true, "result": ' + DEEP.encode() + b"}", b"data"),
        frame_of({"id": "w1", "success": True, "result": {"$buffer": 9}}, b"data"),
        frame_of({"id": "w1", "success": True}, b"data", tail=b"more"),
        b'{"id": "w1", "success": true, "result": [1',
        b'{"id": "w1", "success": "yes"}',
    ],
)
def test_a_reply_of_the_host_that_cannot_be_read(start_peer, answer):
    """The handler gets an error or the readable part, and the worker continues."""
    peer = start_peer(adapter="arrays:adapter")
    peer.call("hello", {"offers": {"tools": True}})
    peer.send({"id": 7, "command": "ask_host"})
    assert peer.receive()["command"] == "call_tool"
    peer.send_frame(answer)
    reply = peer.receive()
    assert reply["id"] == 7
    assert reply["success"] or reply["code"] == "invalid_frame"
    assert peer.is_alive()
