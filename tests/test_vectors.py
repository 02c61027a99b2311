"""The conformance vectors: a worker's replies equal them, and the clients read them."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bridge._framing import Frame, envelope_of, is_multipart
from bridge.wire._frames import format_of
from bridge.wire.messages import Incoming

VECTORS = Path(__file__).parent / "vectors"
INDEX = json.loads((VECTORS / "index.json").read_text())
ENTRIES = INDEX["vectors"]

sys.path.insert(0, str(VECTORS))
from make import steady  # noqa: E402  # found through the line above


def payloads(names: list[str]) -> list[bytes]:
    """Return the payloads of files with one frame each."""
    frames = [(VECTORS / name).read_bytes() for name in names]
    for frame in frames:
        assert struct.unpack(">I", frame[:4]) == (len(frame) - 4,)
    return [frame[4:] for frame in frames]


def test_new_vectors_equal_the_stored_ones(tmp_path):
    """If this fails, the wire has changed: python tests/vectors/make.py writes new ones."""
    subprocess.run([sys.executable, str(VECTORS / "make.py"), str(tmp_path)], check=True)
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.*")}
    kept = {path.relative_to(VECTORS): path.read_bytes() for path in VECTORS.rglob("*.*")}
    assert made == {path: data for path, data in kept.items() if path.suffix not in (".py", ".pyc")}


GROUPS = sorted({(entry["adapter"], entry["format"]) for entry in ENTRIES}, key=str)


@pytest.mark.parametrize(("adapter", "format"), GROUPS)
def test_a_worker_replies_as_the_vectors(start_peer, adapter, format):
    """Over a pipe, byte for byte, in the order of the index."""
    chosen = [entry for entry in ENTRIES if (entry["adapter"], entry["format"]) == (adapter, format)]
    peer = start_peer(adapter=adapter)
    for entry in chosen:
        peer.send_bytes((VECTORS / entry["request"]).read_bytes())
        for expected in payloads(entry["replies"]):
            assert steady(peer.receive_frame()) == expected, entry["name"]


def test_the_protocol_quotes_the_vectors():
    """The bytes in docs/protocol.md are those of the files."""
    text = (VECTORS.parent.parent / "docs" / "protocol.md").read_text()
    rows = re.findall(r"^\| `(frames/.*)` \| `(.*)` \|$", text, re.M)
    assert len(rows) >= 5
    for name, quoted in rows:
        assert bytes.fromhex(quoted) == (VECTORS / name).read_bytes(), name


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["name"])
def test_the_client_reads_the_vectors(entry):
    """Replies and events decode to the values in the index."""
    for payload, value in zip(payloads(entry["replies"]), entry["values"], strict=True):
        if value is None or "type" in value:  # a heartbeat, a selection: not for the client
            continue
        envelope: Any = Frame.of(payload)
        if is_multipart(envelope):
            envelope = envelope_of(envelope)
        message = format_of(envelope).decode(envelope, Incoming)
        assert (message.id, message.success) == (value["id"], value.get("success"))
        assert (message.event, message.data) == (value.get("event"), value.get("data"))
        assert message.error == value.get("error", "")
        if "NaN" not in str(value):
            assert message.result == value.get("result")
