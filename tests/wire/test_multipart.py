"""Multipart frames: long binaries, invalid tables and placeholders, copies."""

from __future__ import annotations

import json

import pytest

import arrays
from bridge import Dispatcher
from bridge._framing import Frame, buffers_of, envelope_of, is_multipart
from bridge.wire import _etf
from tensor_frames import frame_of, request, tensor


def test_a_multipart_request_gets_a_multipart_reply(dispatcher):
    """This holds without hello; other replies are plain frames."""
    data = bytes(range(64))
    envelope = request("back", {"x": tensor("u8", [64], {"$buffer": 1})})
    reply = Frame.of(dispatcher.call(frame_of(envelope, b"unused", data), 30))
    assert is_multipart(reply)
    assert [bytes(buffer) for buffer in buffers_of(reply)] == [data]
    message = json.loads(bytes(envelope_of(reply)))
    assert message["result"] == {"x": tensor("u8", [64], {"$buffer": 0})}
    reply = dispatcher.call(frame_of(request("ping", {}), data), 30)
    assert json.loads(reply)["success"]


def test_echo_passes_buffers_on_undecoded():
    """In their positions, byte for byte."""
    from bridge.adapters.echo import adapter

    dispatcher = Dispatcher(adapter)
    args = {"x": {"$buffer": 1}, "y": {"$buffer": 0}}
    reply = Frame.of(dispatcher.call(frame_of(request("echo", args), b"one", b"two"), 30))
    assert json.loads(bytes(envelope_of(reply)))["result"] == args
    assert [bytes(buffer) for buffer in buffers_of(reply)] == [b"one", b"two"]


GOOD = request("back", {"x": tensor("u8", [4], {"$buffer": 0})})


@pytest.mark.parametrize(
    "lies",
    [
        {"magic": b"\xc1\x02\0\0"},
        {"magic": b"\xc1\x01\0\x01"},
        {"count": 2**32 - 1},
        {"count": 2**31},
        {"count": 65_537, "lengths": [0] * 65_537},
        {"count": 2},
        {"length": 2**32 - 1},
        {"length": 10_000},
        {"length": 0},
        {"lengths": [5]},
        {"lengths": [2**32 - 1]},
        {"lengths": [3]},
        {"tail": b"more"},
    ],
)
def test_an_invalid_table(dispatcher, lies):
    """There is one reply, with the id if the envelope can be read, and the worker continues."""
    reply = json.loads(dispatcher.call(frame_of(GOOD, b"data", **lies), 30))
    assert not reply["success"]
    assert reply["code"] in ("invalid_frame", "invalid_request")
    if "count" not in lies and ("lengths" in lies or "tail" in lies):
        assert reply["id"] == 1
    assert json.loads(dispatcher.call(b'{"id": 2, "command": "ping"}'))["success"]


def test_an_invalid_table_in_etf(dispatcher):
    """Numbers in ETF may have any length."""
    encoder = _etf.Encoder({"tensor", "f", "u"})
    tensor, f, u = map(_etf.Atom, ("tensor", "f", "u"))
    for term in (
        (tensor, (f, 2**20_000), (1,), b"data"),
        (tensor, (f, 33), (1,), b"data"),
        (tensor, ([f], 32), (1,), b"data"),
        (tensor, ("x" * 9999, 32), (1,), b"data"),
        (tensor, f, (1,), b"data"),
        (tensor, (f, 32), (2**20_000,), b"data"),
        (tensor, (f, 32), (-(2**20_000),), b"data"),
        (tensor, (f, 32), (2**62,) * 60, b"data"),
        (tensor, (f, 32), (1,), "text" * 9999),
        (tensor, (f, 32), (1,), {"$buffer": 2**20_000}),
        (tensor, (u, 8), (5,), b"data"),
    ):
        data = encoder.encode(request("back", {"x": term}))
        reply = _etf.decode(dispatcher.call(data, 30))
        assert (reply["id"], reply["code"]) == (1, "invalid_args"), reply
        assert reply["details"]["path"].startswith("args.x")
        assert len(reply["error"]) < 400


@pytest.mark.parametrize("cut", range(0, 200, 7))
def test_a_frame_that_is_cut_off(dispatcher, cut):
    """Anywhere."""
    whole = frame_of(GOOD, b"data")
    reply = json.loads(dispatcher.call(whole[: min(cut, len(whole) - 1)], 30))
    assert not reply["success"]


@pytest.mark.parametrize(
    ("x", "path"),
    [
        ({"$buffer": 1}, "args.x"),
        ({"$buffer": -1}, "args.x"),
        ({"$buffer": 2**70}, "args.x"),
        ({"$buffer": "0"}, "args.x"),
        ({"$buffer": True}, "args.x"),
        ({"$buffer": 0}, "args.x"),
        (tensor("u8", [4], {"$buffer": 9}), "args.x"),
        (tensor("u9", [4], {"$buffer": 0}), "args.x"),
        (tensor(None, [4], {"$buffer": 0}), "args.x"),
        (tensor(["u8"], [4], {"$buffer": 0}), "args.x"),
        (tensor("u8", [5], {"$buffer": 0}), "args.x"),
        (tensor("u8", [-4], {"$buffer": 0}), "args.x"),
        (tensor("u8", [-2, -2], {"$buffer": 0}), "args.x"),
        (tensor("u8", [4.0], {"$buffer": 0}), "args.x"),
        (tensor("u8", [True, 4], {"$buffer": 0}), "args.x"),
        (tensor("u8", [2**40, 2**40], {"$buffer": 0}), "args.x"),
        (tensor("u8", [2**64, 0], {"$buffer": 0}), "args.x"),
        (tensor("u8", [1] * 65, {"$buffer": 0}), "args.x"),
        (tensor("u8", 4, {"$buffer": 0}), "args.x"),
        (tensor("u8", [4], "not base64!"), "args.x"),
        (tensor("u8", [4], "AAAA"), "args.x"),
        (tensor("u8", [4], [1, 2, 3, 4]), "args.x"),
        ({"$tensor": {"type": "u8"}}, "args.x"),
        ({"$tensor": 5}, "args.x"),
        ([1, 2], "args.x"),
        (None, "args.x"),
    ],
)
@pytest.mark.parametrize("command", ["back", "tensor_back"])
def test_invalid_tensors(dispatcher, x, path, command):
    """invalid_args has the path."""
    reply = json.loads(dispatcher.call(frame_of(request(command, {"x": x}), b"data"), 30))
    assert (reply["id"], reply["code"]) == (1, "invalid_args"), reply
    assert reply["details"]["path"].startswith(path)
    assert len(reply["error"]) < 400


def test_a_placeholder_in_a_plain_frame_is_an_error(dispatcher):
    """A plain frame has no buffers."""
    reply = json.loads(dispatcher.call(json.dumps(GOOD).encode(), 30))
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", "args.x")


def test_a_reply_that_is_too_large_is_an_error(dispatcher):
    """The buffers count."""
    x = {"$tensor": {"type": "u8", "shape": [2**20 - 300], "data": {"$buffer": 0}}}
    whole = frame_of(request("anything", {"x": x, "y": x}), bytes(2**20 - 300))
    reply = json.loads(dispatcher.call(whole, 30))
    assert (reply["id"], reply["code"]) == (1, "reply_too_large")


def test_an_array_may_be_kept(dispatcher):
    """It keeps its frame alive, so its bytes are not overwritten."""
    kept = []

    @arrays.adapter.command(f"keep_{id(kept)}", arrays.OneArray)
    def keep(args, context):
        kept.append(args.x)
        return {}

    dispatcher = Dispatcher(arrays.adapter)
    for number in range(50):
        data = bytes([number]) * 3000
        x = tensor("u8", [3000], {"$buffer": 0})
        dispatcher.call(frame_of(request(f"keep_{id(kept)}", {"x": x}), data), 30)
    assert [set(x.tolist()) for x in kept] == [{number} for number in range(50)]
    del arrays.adapter.commands[f"keep_{id(kept)}"]
