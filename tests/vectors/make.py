"""Writes the conformance vectors: python tests/vectors/make.py. docs/protocol.md explains them.

Values that differ in each run (`VOLATILE`) are replaced by fixed ones, so the files are reproducible.
"""

from __future__ import annotations

import json
import queue
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pool_policy  # beside this file

from bridge import Dispatcher
from bridge._framing import Frame, Outbox, envelope_of, is_multipart
from bridge.adapters import dspy, echo
from bridge.errors import CODES
from bridge.wire._frames import format_of
from bridge.wire.codec import FORMATS, Format

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent / "support"))

import mock_vectors  # noqa: E402  # found through the line above

# The Elixir client is a separate project, whose tests must find all their files in it.
COPY = FOLDER.parent.parent / "elixir" / "test" / "fixtures" / "vectors"
# Keys whose values differ each time; numbers are 64-bit floats where the format has binary ones.
VOLATILE = ("timestamp", "uptime", "execution_time")

TEXT = 'gr\u00fc\u00df dich \u2713 \U0001f600 "\\\n'
VALUES = {"text": TEXT, "numbers": [0, -1, 2**31, -(2**63), 1.5, 1e300], "nothing": None,
          "yes": True, "empty": [{}, [], ""]}  # fmt: skip
SIGNATURE = {
    "inputs": [{"name": "question"}, {"name": "passage"}],
    "outputs": [{"name": "answer"}],
}
INPUTS = {"question": "Where is the Louvre?", "passage": "The Louvre is in Paris."}
# In this order, of one worker: name, request. Once in each format.
CONVERSATIONS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "echo": [
        ("ping", {"id": 1, "command": "ping"}),
        ("string-id", {"id": "\u00e4-1", "command": "ping", "args": {}}),
        ("echo", {"id": 2, "command": "echo", "args": VALUES}),
        ("echo-decoded", {"id": 3, "command": "echo_decoded", "args": VALUES}),
        ("unknown-keys", {"id": 4, "command": "echo", "args": {"a": 1}, "more": [1]}),
        ("unknown-command", {"id": 5, "command": "pong", "args": {}}),
        ("no-command", {"id": 6, "args": {}}),
        ("no-id", {"command": "ping"}),
        ("wrong-args", {"id": 7, "command": "sleep", "args": {"seconds": "long"}}),
        ("on-a-thread", {"id": 8, "command": "sleep", "args": {"seconds": 0}}),
        ("late", {"id": 9, "command": "sleep", "args": {"seconds": 0}, "timeout_ms": 0}),
        ("cancel-nothing", {"id": 10, "command": "cancel", "args": {"id": "gone"}}),
        ("session", {"id": 11, "command": "update_session_data", "session_id": "ann",
                     "args": {"key": "language", "value": "de"}}),
        ("session-data", {"id": 12, "command": "get_session_data", "session_id": "ann"}),
        ("negotiation", {"type": "protocol_negotiation", "supported": ["etf", "json"],
                         "preferred": "etf"}),
        ("an-answer-nobody-waits-for", {"id": "w7", "success": True, "result": None}),
    ],
    "dspy": [
        ("configure", {"id": 20, "command": "configure_lm", "args": {"provider": "offline"}}),
        ("create", {"id": 21, "command": "create_program",
                    "args": {"id": "qa", "signature": SIGNATURE}}),
        ("execute", {"id": 22, "command": "execute_program",
                     "args": {"program_id": "qa", "inputs": INPUTS}}),
        ("execute-stream", {"id": 23, "command": "execute_program", "stream": True,
                            "args": {"program_id": "qa", "inputs": INPUTS}}),
        ("input-missing", {"id": 24, "command": "execute_program",
                           "args": {"program_id": "qa", "inputs": {}}}),
        ("delete", {"id": 25, "command": "delete_program", "args": {"program_id": "qa"}}),
    ],
}  # fmt: skip
# Payloads that are not a request in any format, or that need certain bytes: name, payload.
BYTES: list[tuple[str, bytes]] = [
    ("no-format", b"\x00\x01\x02"),
    ("broken-json", b'{"id": 30, "command": '),
    ("broken-msgpack", b"\x82\xa2id\x1f\xa7command"),
    ("broken-etf", b"\x83t\0\0\0\2m\0\0\0\2ida\x20m"),
    (
        "nan-in-msgpack",
        b"\x83\xa2id\x21\xa7command\xa4echo\xa4args\x81\xa1x\xcb\x7f\xf8\0\0\0\0\0\0",
    ),
    ("etf-atoms", b"\x83t\0\0\0\2w\2ida\x22w\7commandw\4ping"),
]


def vectors() -> Iterator[tuple[dict[str, Any], bytes, list[bytes]]]:
    """Return the index entry of each vector, and the payloads of its request and replies."""
    for format in FORMATS:
        for adapter, messages in CONVERSATIONS.items():
            worker = Worker(adapter)
            for name, message in messages:
                yield worker.vector(f"{name}.{format.name}", format.encode(message))
    worker = Worker("echo")
    for name, payload in BYTES:
        yield worker.vector(name, payload)
    for format in FORMATS:
        request = {"id": 40, "command": "echo", "args": {"data": {"$buffer": 0}}}
        yield worker.vector(f"multipart.{format.name}", multipart(format, request))
    yield worker.entry("heartbeat", b"", [b""]), b"", [b""]


class Worker:
    """A worker's dispatcher, without the pipe."""

    def __init__(self, adapter: str) -> None:
        self.adapter = adapter
        self.dispatcher = Dispatcher({"echo": echo, "dspy": dspy}[adapter].adapter)

    def vector(self, name: str, request: bytes) -> tuple[dict[str, Any], bytes, list[bytes]]:
        replies = [steady(reply) for reply in self.replies(request)]
        return self.entry(name, request, replies), request, replies

    def replies(self, request: bytes) -> list[bytes]:
        """Return the frames that follow a request, up to its reply."""
        arrived: queue.SimpleQueue[Outbox] = queue.SimpleQueue()
        outbox = Outbox()
        self.dispatcher.path.answer(Frame.of(request), outbox, arrived.put)
        if len(outbox):
            return [outbox.payload()]
        if b"success" in request:  # an answer
            return []
        found = [arrived.get(timeout=60).payload()]
        while b"success" not in found[-1]:
            found.append(arrived.get(timeout=60).payload())
        return found

    def entry(self, name: str, request: bytes, replies: list[bytes]) -> dict[str, Any]:
        format = format_of(envelope(request)) if request else None
        return {
            "name": name,
            "adapter": self.adapter,
            "format": format.name if format else None,
            "request": f"frames/{name}.request",
            "replies": [f"frames/{name}.reply-{number}" for number in range(1, len(replies) + 1)],
            "values": [value_of(reply) if reply else None for reply in replies],
        }


def envelope(payload: bytes) -> bytes:
    frame = Frame.of(payload)
    return bytes(envelope_of(frame)) if is_multipart(frame) else payload


def value_of(payload: bytes) -> Any:
    """Return the content of a reply's envelope; NaN, which JSON lacks, as text."""
    message = envelope(payload)
    format = format_of(message)
    assert format is not None
    return json.loads(json.dumps(format.decode(message)).replace("NaN", '"NaN"'))


def multipart(format: Format, message: Any) -> bytes:
    """Return a request with one buffer, which begins at a multiple of 64 bytes."""
    text, data = format.encode(message), bytes(range(100))
    head = struct.pack(">4sIII", b"\xc1\x01\0\0", 1, len(text), len(data)) + text
    return head + bytes(-len(head) % 64) + data


def steady(payload: bytes) -> bytes:
    """Return a reply with fixed values in place of those that differ in each run."""
    payload = re.sub(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", b"2000-01-01T00:00:00.000Z", payload)
    for key in (name.encode() for name in VOLATILE):
        payload = re.sub(rb'"%s":[0-9.e-]+' % key, b'"%s":0.0' % key, payload)
        payload = re.sub(rb"(%s[\xcbF])[\s\S]{8}" % key, rb"\g<1>" + bytes(8), payload)
    return payload


def write(folder: Path) -> None:
    """Write the index, the frames, errors and the policy of pools into `folder`. Frames that it holds are deleted."""
    frames = folder / "frames"
    frames.mkdir(parents=True, exist_ok=True)
    for old in frames.iterdir():
        old.unlink()
    entries = []
    for entry, request, replies in vectors():
        entries.append(entry)
        names = [entry["request"], *entry["replies"]]
        for name, payload in zip(names, [request, *replies], strict=True):
            (folder / name).write_bytes(struct.pack(">I", len(payload)) + payload)
    index = {"volatile": VOLATILE, "vectors": entries}
    (folder / "index.json").write_text(json.dumps(index, indent=1) + "\n")
    mocked = json.dumps(mock_vectors.vectors(), indent=1, ensure_ascii=False)
    (folder / "mock.json").write_text(mocked + "\n")
    (folder / "errors.json").write_text(json.dumps(error_table(), indent=1) + "\n")
    (folder / "policy.json").write_text(in_lines(pool_policy.policy()))


def in_lines(value: dict[str, Any]) -> str:
    """Return a map as JSON with a line for each entry of its values."""
    parts = []
    for name, entries in value.items():
        if isinstance(entries, list):
            lines = [json.dumps(entry) for entry in entries]
            parts.append(f'"{name}": [\n' + ",\n".join(lines) + "\n]")
        else:
            lines = [f"{json.dumps(key)}: {json.dumps(entry)}" for key, entry in entries.items()]
            parts.append(f'"{name}": {{\n' + ",\n".join(lines) + "\n}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def error_table() -> dict[str, dict[str, str]]:
    """Return category, severity and recovery of each error code."""
    return {
        error.code: {"category": error.category, "severity": error.severity, "recovery": error.recovery}
        for error in (error_class("") for error_class in CODES.values())
    }


if __name__ == "__main__":
    for target in [Path(sys.argv[1])] if len(sys.argv) > 1 else [FOLDER, COPY]:
        write(target)
