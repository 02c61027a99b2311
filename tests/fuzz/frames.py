"""Send mutated requests in every format to a worker for some time.

    python tests/fuzz/frames.py [--seconds 60] [--seed N]

Each request must get exactly one reply with its id, whatever it contains, and no reply may report a
defect of the worker (`internal`, `handler_error`). The worker must go on, end with status 0 at the
end of its input, and stay within a memory limit. The valid requests are in valid_requests.py. The
printed seed repeats a run.
"""

from __future__ import annotations

import copy
import datetime
import itertools
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import msgspec
from command import Fault, main
from valid_requests import BUFFER, REQUESTS, TENSOR, UUID, conversations

import framing_spec
from bridge.wire import _etf  # in the folder that the line above adds
from bridge.wire._frames import format_of
from peer import Peer

MOST_MEMORY = 700 << 20  # bytes of a worker that has loaded DSPy, which takes a third of it
MAX_FRAME = 1 << 20
FRAMES_OF_A_WORKER = 3000
BATCH = 20  # open requests
CONVERSATIONS = conversations()
sys.set_int_max_str_digits(0)  # to write integers that are too long for others

ANSWERS: list[dict[str, Any]] = [
    {"success": True, "result": "noon"},
    {"success": True, "result": {"at": [12, None]}, "timestamp": "now"},
    {"success": True, "result": 0.5},
    {"success": True, "result": {"score": 1, "feedback": "good"}},
    {"success": True, "result": {"text": '{"answer": "noon"}', "usage": {"prompt_tokens": 3}}},
    {"success": True, "result": [[0.5, 1.0], [1, -1]]},
    {"success": False, "error": "no such tool"},
    {"success": False, "error": "x", "code": "tool_error", "category": "c", "details": {"a": []}},
]
PID = b"X" + b"w\x01n" + bytes(12)
MOMENT = datetime.datetime(2024, 2, 29, tzinfo=datetime.UTC)
MARK = "<<CUSTOM-TYPE-START-IDENTIFIER>>[]<<CUSTOM-TYPE-END-IDENTIFIER>>"
SCALARS: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**30),
    *(0.0, -0.0, 0.5, 1e300, math.inf, -math.inf, math.nan),
    *("", " ", "\0", "p", "s1", "self", "instance", "\U0001f600", "\u2028", "a" * 5000, MARK),
    *("[[ ## answer ## ]]\nx\n\n[[ ## completed ## ]]", "{question}", "list<" * 50, "None"),
    *("9" * 5000, "1e999999999", "sNaN", "2024-02-30", "0000-00-00", "24:00:60+99:99", f"urn:uuid:{UUID}"),
    *("../o.json", "/dev/stdin", "o.json", "a\0.json", "host/", "offline", "scripted", "\ud800", "(a+)+$"),
    *(
        {None: 1, 10**5000: 1},
        {1.5: b"\xff"},
        (1, "x"),
        _etf.Atom("ok"),
        msgspec.msgpack.Ext(5, b"x"),
        _etf.Opaque(PID),
        MOMENT,
        2**70,
    ),
    *(b"", b"\xff\xfe", b"x" * 70_000, 10**5000, BUFFER, TENSOR, {"$buffer": -1}, {"host": "good"}),
]


def nested(chance: random.Random) -> Any:
    """Return nested lists and maps, up to the depth that a format can encode."""
    value: Any = chance.choice(SCALARS)
    for _ in range(chance.choice((1, 2, 5, 100, 400))):
        value = [value] if chance.random() < 0.5 else {"k": value}
    return value


def any_value(chance: random.Random) -> Any:
    kind = chance.random()
    if kind < 0.7:
        return copy.deepcopy(chance.choice(SCALARS))
    if kind < 0.8:
        return nested(chance)
    if kind < 0.9:
        return [any_value(chance) for _ in range(chance.randrange(4))]
    if kind < 0.98:
        return {str(any_value(chance))[:40]: any_value(chance) for _ in range(chance.randrange(4))}
    return [[] for _ in range(20_000)]


def positions(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield container and key of everything in `value`, at every level."""
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, entry in list(entries):
        yield value, key
        if isinstance(entry, dict | list):
            yield from positions(entry)


def mutated(chance: random.Random, request: dict[str, Any]) -> dict[str, Any]:
    """Return the request with some values replaced, removed, added, renamed or copied from another request."""
    made = copy.deepcopy(request)
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3))):
        container, key = chance.choice([*positions(made)])
        kind = chance.randrange(6)
        if key in ("command", "id") and container is made and chance.random() < 0.9:
            continue
        if kind <= 2:
            container[key] = any_value(chance)
        elif kind == 3:
            del container[key]
        elif kind == 4 and isinstance(container, dict):
            container[chance.choice(("x", "session_id", f"{key}s", "", "self"))] = container[key]
        else:
            donor = chance.choice(REQUESTS)
            container[key] = copy.deepcopy(donor.get("args", {}))
    return made


def as_json(value: Any) -> bytes:
    """Encode in JSON also what msgspec refuses: NaN, and surrogates without their other half."""
    return json.dumps(value).encode()


def encoded(chance: random.Random, request: dict[str, Any]) -> bytes | None:
    """Return the request in a random format, alone or in a multipart frame, or None if it cannot be encoded."""
    encoders = (msgspec.json.encode, msgspec.msgpack.encode, _etf.encode, as_json)
    try:
        data = chance.choice(encoders)(request)
    except (msgspec.MsgspecError, OverflowError, RecursionError, ValueError, TypeError):
        return None
    if chance.random() < 0.1:
        data = framing_spec.joined(data, *(bytes(chance.randrange(200)) for _ in range(2)))
    return data if len(data) <= MAX_FRAME else None


def broken(chance: random.Random, data: bytes) -> bytes:
    """Return the frame with some bytes changed, removed or inserted."""
    made = bytearray(data)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(made) + 1)
        kind = chance.randrange(4)
        if kind == 0:
            made[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            del made[at : at + chance.randrange(20)]
        elif kind == 2:
            made[at:at] = bytes(chance.randrange(256) for _ in range(chance.randrange(9)))
        else:
            del made[at:]
    return bytes(made) or b"\0"  # an empty frame is a heartbeat


class Worker:
    """A worker, and the requests that it has not answered yet."""

    def __init__(self, chance: random.Random, folder: str) -> None:
        """folder: of its files."""
        self._chance = chance
        places = ("--state-dir", folder, "--store", f"sqlite:{folder}/sessions.db")
        more = ("--program", "shout=mock_module:Shout", "--allow-code-execution", "--max-frame", str(MAX_FRAME))
        self.peer = Peer("--quiet", *places, *more, adapter="dspy")
        self.asked: set[str] = set()  # ids of the worker's calls of the host
        self.planned: list[dict[str, Any]] = []
        self.sent = 0
        self.owed: dict[Any, bytes] = {}
        self.last = b""  # the last frame whose id is unknown

    def check_requests(self) -> None:
        """Raise Fault if there is a command for which there is no valid request."""
        known = {request["command"] for request in (*REQUESTS, *itertools.chain(*CONVERSATIONS))}
        missing = self.peer.call("describe")["result"]["commands"].keys() - known - {"shutdown"}
        if missing:
            raise Fault(f"no requests for {', '.join(sorted(missing))}")

    def send(self, request_id: Any, data: bytes) -> None:
        self.owed[request_id] = data
        self.peer.send_frame(data)
        self.sent += 1

    def receive(self) -> dict[str, Any]:
        """Return the next reply. Ignores events, and answers calls of the host."""
        while True:
            try:
                frame = self.peer.receive_frame()
            except AssertionError as late:
                owed = [data[:2000] for data in self.owed.values()]
                raise Fault(f"{late}; without a reply: {owed or self.last[:2000]}") from None
            if frame is None:
                raise Fault(f"the worker ended with {self.peer.wait()}: {self.peer.stderr()}")
            if not frame:
                continue
            if frame.startswith(framing_spec.MAGIC):
                frame, _ = framing_spec.parted(frame)
            format = format_of(frame)
            if format is None:
                raise Fault(f"a frame in an unknown format: {frame[:200]!r}")
            message = decoded(format, frame)
            if message["id"] in self.asked and "success" in message:
                continue  # a broken answer to a call that is over by now is taken for a request
            if "success" in message:
                return message
            if "command" in message:
                self.asked.add(message["id"])
                self.peer.send_frame(self._answer(format, message["id"]))

    def _answer(self, format: Any, call_id: str) -> bytes:
        """Return a valid or invalid answer to a tool call, which the worker must accept as the end of that call."""
        answer = copy.deepcopy(self._chance.choice(ANSWERS))
        for _ in range(self._chance.choice((0, 0, 1, 2))):
            answer[self._chance.choice([*answer, "x"])] = any_value(self._chance)
        answer = {"id": call_id, **answer}  # first, where it is found even if the rest is broken
        try:
            data: bytes = format.encode(answer)
        except (msgspec.MsgspecError, OverflowError, RecursionError, ValueError, TypeError):
            data = b""
        if not data or len(data) > MAX_FRAME:
            data = format.encode({"id": call_id, "success": False, "error": "no such tool"})
        return data

    def settle(self) -> None:
        """Wait until every request has a reply. Raises Fault for an unexpected reply."""
        while self.owed:
            reply = self.receive()
            sent = self.owed.pop(reply["id"], None)
            if sent is None:
                owed = [data[:2000] for data in self.owed.values()]
                raise Fault(f"an unexpected reply: {reply}; no reply yet to {owed}")
            check(reply, sent)

    def settle_any(self, data: bytes) -> None:
        """Send a frame whose id is unknown, and expect one reply with any id besides that to a ping."""
        answer = is_answer(data)
        self.last = data
        self.peer.send_frame(data)
        self.sent += 1
        self.peer.send({"id": "after", "command": "ping"})
        others = [self.receive()] if answer else [self.receive(), self.receive()]
        others = [reply for reply in others if reply["id"] != "after"]
        if len(others) != (0 if answer else 1):
            raise Fault(f"{len(others)} replies to {data[:2000]!r}")
        for reply in others:
            check(reply, data)

    def memory(self) -> int:
        """Return the resident memory in bytes."""
        with open(f"/proc/{self.peer.process.pid}/statm") as statm:
            return int(statm.read().split()[1]) * 4096

    def end(self) -> None:
        memory = self.memory()
        self.peer.close_input()
        status = self.peer.wait()
        output = self.peer.stderr()
        self.peer.finish()
        # DSPy logs the errors that its agents go on after.
        faults = [line for line in output.splitlines() if "Traceback" in line and '"logger":"dspy' not in line]
        if status or faults:
            raise Fault(f"the worker ended with {status}: {faults or output[-3000:]}")
        if memory > MOST_MEMORY:
            raise Fault(f"{memory >> 20} MiB after {self.sent} frames")


def is_answer(data: bytes) -> bool:
    """Return whether the frame may be a host's answer, which gets no reply."""
    return b"success" in data


def decoded(format: Any, frame: bytes) -> Any:
    """Decode a message. Signatures come back unchanged, even if they are not valid UTF-8."""
    try:
        return format.decode(frame)
    except UnicodeDecodeError:
        return format.decode(format.repair(frame, True))


def check(reply: dict[str, Any], sent: bytes) -> None:
    """Raise Fault if a reply reports a defect. If it is one of the host's functions, there is no type of exception."""
    if reply["success"]:
        return
    details = reply.get("details", {})
    if reply["code"] == "internal" or (reply["code"] == "handler_error" and "type" in details):
        raise Fault(f"{reply}\nto {sent[:2000]!r}")
    if reply["error"].startswith("the optimizer"):
        raise Fault(f"{reply}\nto {sent[:2000]!r}")


def run(seconds: float, seed: int) -> int:
    """Fuzz, and return how many frames were answered. Raises Fault."""
    with tempfile.TemporaryDirectory() as folder:
        return run_in(folder, seconds, random.Random(seed))


def run_in(folder: str, seconds: float, chance: random.Random) -> int:
    """Fuzz workers that share a folder."""
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        worker = Worker(chance, folder)
        try:
            worker.check_requests()
            while worker.sent < FRAMES_OF_A_WORKER and time.monotonic() < end:
                step(chance, worker)
            worker.settle()
            count += worker.sent
            worker.end()
        finally:
            worker.peer.finish()
    return count


def planned(chance: random.Random, worker: Worker) -> dict[str, Any]:
    """Return the next request: of a conversation, which is mutated less, or any other one."""
    if not worker.planned and chance.random() < 0.1:
        worker.planned = list(chance.choice(CONVERSATIONS))
    if not worker.planned:
        return mutated(chance, {"id": 0, **chance.choice(REQUESTS)})
    request = {"id": 0, **worker.planned.pop(0)}
    return mutated(chance, request) if chance.random() < 0.4 else request


def step(chance: random.Random, worker: Worker) -> None:
    request = planned(chance, worker)
    request_id = chance.choice((worker.sent, f"request-{worker.sent}", 2**60 + worker.sent))
    if chance.random() < 0.8:  # first, where it is found even if the rest is broken
        request.pop("id", None)
        request = {"id": request_id, **request}
    data = encoded(chance, request)
    if data is None or request.get("command") == "shutdown":
        return
    if request.get("id") == request_id and "success" not in request:
        worker.send(request_id, data)
        if len(worker.owed) >= BATCH or chance.random() < 0.2:
            worker.settle()
        return
    worker.settle()
    worker.settle_any(broken(chance, data) if chance.random() < 0.8 else data)


if __name__ == "__main__":
    sys.exit(main(__doc__, run, "frames, each with one reply"))
