"""Make random calls to the sessions of two workers that share a store, for some time.

    python tests/fuzz/sessions.py [--seconds 60] [--seed N]

Calls create, change, read, run, stream, pause, cancel and end, with deadlines, in durable and other
sessions; some calls affect all sessions, and workers are killed. Every call must get one reply, no
event may follow it, and the content of a session must agree with a simple model: acknowledged
changes are present, others are present completely or not at all. The printed seed repeats a run.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

from command import Fault, main

from peer import Peer  # in the folder that the line above adds

DURABLE = ("d1", "d2")
VOLATILE = ("m1", "m2")  # each worker has its own
KEYS = ("a", "b", "c")
PROGRAMS = ("p", "q")
MOST_MEMORY = 700 << 20  # bytes of a worker with DSPy loaded
KILLS = 0.03  # share of the rounds
SLOW = "word " * 400
END = "cleanup_session"
END_ALL = ("cleanup", "reset_state")

# A call that fails with one of these may have had its effect; a call that fails otherwise has not.
UNCERTAIN = {"deadline_exceeded", "cancelled", "store_failed", "killed"}
EXPECTED = {
    *UNCERTAIN,
    *("session_lost", "program_exists", "program_not_found", "invalid_args", "lm_error"),
    *("lm_not_configured", "session_not_found"),
}


# The possible content of a session: data by key and definitions of programs by id, each a set of JSON
# texts; "" means that there is none.
Possible = dict[tuple[str, str], set[str]]


def nothing() -> Possible:
    slots = [("data", key) for key in KEYS] + [("program", each) for each in PROGRAMS]
    return {slot: {""} for slot in slots}


class Change:
    """The effect of a call on a session: functions from old to new JSON text, by slot."""

    def __init__(self, slots: dict[tuple[str, str], Callable[[str], str]]) -> None:
        self.slots = slots

    def apply(self, held: Possible, *, is_certain: bool) -> None:
        for slot, change in self.slots.items():
            after = {change(text) for text in held[slot]}
            held[slot] = after if is_certain else held[slot] | after


class Call:
    """One request, its effect on the model, and a check of its reply.

    check(reply, held): raises Fault for a reply that contradicts the model.
    """

    def __init__(
        self,
        session: str | None,
        command: str,
        args: dict[str, Any],
        change: Change | None = None,
        check: Callable[[dict[str, Any], Possible], None] | None = None,
        **envelope: Any,
    ) -> None:
        self.session = session
        self.request = {"command": command, "args": args, **envelope}
        if session is not None:
            self.request["session_id"] = session
        self.change = change
        self.check = check
        self.reply: dict[str, Any] | None = None


def put(text: str) -> Callable[[str], str]:
    return lambda old: text


def written(chance: random.Random, session: str) -> Call:
    """Return an update of data."""
    key = chance.choice(KEYS)
    kind = chance.randrange(4)
    if kind == 0:
        value: Any = {"n": chance.randrange(1000)} if chance.random() < 0.7 else "text"
        change = Change({("data", key): put(json.dumps(value))})
        return Call(session, "update_session_data", {"key": key, "value": value}, change)
    if kind == 1:
        values = {each: {"all": chance.randrange(1000)} for each in KEYS}
        change = Change({("data", each): put(json.dumps(v)) for each, v in values.items()})
        args = {"operation": "merge", "value": values}
        return Call(session, "update_session_data", args, change)
    if kind == 2:
        args = {"operation": "delete", "key": key}
        return Call(session, "update_session_data", args, Change({("data", key): put("")}))
    entry = {chance.choice("xyz"): chance.randrange(1000)}

    def merged(old: str) -> str:
        before = json.loads(old or "{}")
        return json.dumps({**before, **entry}) if isinstance(before, dict) else old

    def check(reply: dict[str, Any], held: Possible) -> None:
        is_map = {isinstance(json.loads(text or "{}"), dict) for text in held["data", key]}
        expect(reply, "invalid_args", possible=False in is_map, certain=True not in is_map)

    args = {"operation": "merge", "key": key, "value": entry}
    return Call(session, "update_session_data", args, Change({("data", key): merged}), check)


def expect(reply: dict[str, Any], code: str, *, possible: bool, certain: bool) -> None:
    """Raise Fault if an error of that code contradicts the model."""
    if (reply.get("code") == code and not possible) or (reply["success"] and certain):
        raise Fault(f"{code} is {'certain' if certain else 'impossible'} here")


def read(chance: random.Random, session: str) -> Call:
    def check(reply: dict[str, Any], held: Possible) -> None:
        if not reply["success"]:
            return
        data = reply["result"]["data"]
        if data.keys() - set(KEYS):
            raise Fault("keys that nobody wrote")
        for key in KEYS:
            known(held, ("data", key), json.dumps(data[key]) if key in data else "")

    return Call(session, "get_session_data", {}, None, check)


def known(held: Possible, slot: tuple[str, str], text: str) -> None:
    """Check a slot against the model, which then contains only the text that was seen."""
    possible = {json.dumps(json.loads(each), sort_keys=True) if each else "" for each in held[slot]}
    seen = json.dumps(json.loads(text), sort_keys=True) if text else ""
    if seen not in possible:
        raise Fault(f"{slot} is {text!r}, expected one of {sorted(possible)}")
    held[slot] = {text}


def signature(name: str) -> dict[str, Any]:
    return {"name": name, "inputs": [{"name": "q"}], "outputs": [{"name": "a"}]}


def created(chance: random.Random, session: str) -> Call:
    program, name = chance.choice(PROGRAMS), chance.choice(("One", "Two"))
    if_exists = chance.choice(("error", "keep", "replace"))

    def after(old: str) -> str:
        return name if if_exists == "replace" else old or name

    def check(reply: dict[str, Any], held: Possible) -> None:
        if if_exists == "error":
            there = held["program", program]
            expect(reply, "program_exists", possible=there != {""}, certain="" not in there)

    args = {"id": program, "signature": signature(name), "if_exists": if_exists}
    return Call(session, "create_program", args, Change({("program", program): after}), check)


def is_there(program: str) -> Callable[[dict[str, Any], Possible], None]:
    def check(reply: dict[str, Any], held: Possible) -> None:
        there = held["program", program]
        expect(reply, "program_not_found", possible="" in there, certain=there == {""})

    return check


def deleted(chance: random.Random, session: str) -> Call:
    program = chance.choice(PROGRAMS)
    change = Change({("program", program): put("")})
    return Call(session, "delete_program", {"program_id": program}, change, is_there(program))


def listed(chance: random.Random, session: str) -> Call:
    def check(reply: dict[str, Any], held: Possible) -> None:
        if reply["success"]:
            found = {p["id"]: p["signature"]["name"] for p in reply["result"]["programs"]}
            for program in PROGRAMS:
                name = found.get(program, "")
                if name not in held["program", program]:
                    raise Fault(f"{program} is {name!r}, not of {held['program', program]}")
                held["program", program] = {name}

    return Call(session, "list_programs", {}, None, check)


def executed(chance: random.Random, session: str) -> Call:
    program = chance.choice(PROGRAMS)
    args = {"program_id": program, "inputs": {"q": chance.choice(("Why?", SLOW))}}
    more = {"stream": True} if chance.random() < 0.5 else {}
    return Call(session, "execute_program", args, None, is_there(program), **more)


def configured(chance: random.Random, session: str) -> Call:
    answers = [f"[[ ## a ## ]]\n{SLOW}\n\n[[ ## completed ## ]]"] * 3
    args = {"provider": "scripted", "answers": answers}
    return Call(session, "configure_lm", args)


def ended(chance: random.Random, session: str) -> Call:
    slots = {slot: put("") for slot in nothing()}
    return Call(session, END, {}, Change(slots))


def all_ended(chance: random.Random, session: str) -> Call:
    return Call(None, chance.choice(END_ALL), {})


def configured_for_all(chance: random.Random, session: str) -> Call:
    return Call(None, "configure_lm", {"provider": "offline"})


def watched(chance: random.Random, session: str) -> Call:
    command = chance.choice(("get_stats", "list_sessions", "ping", "get_session"))
    args = {"session_id": session} if command == "get_session" else {}
    return Call(None, command, args)


STEPS: list[tuple[Callable[[random.Random, str], Call], float]] = [
    *((written, 8), (read, 6), (created, 5), (deleted, 2), (listed, 4), (executed, 6)),
    *((configured, 1), (ended, 1), (all_ended, 0.5), (configured_for_all, 1), (watched, 2)),
]


class Worker:
    """A worker, the possible content of its own sessions, and the calls that it has not answered yet."""

    numbers = itertools.count(1)

    def __init__(self, store: str) -> None:
        flags = ("--store", f"sqlite:{store}", "--threads", "8", "--grace", "0.5", "--quiet")
        self.peer = Peer(*flags, adapter="dspy")
        self.held = {session: nothing() for session in VOLATILE}
        self.owed: dict[int, Call] = {}
        self.answered: set[int] = set()
        self.is_killed = False
        self._ask("configure_lm", provider="offline")
        for session in DURABLE:
            self.make_durable(session)

    def make_durable(self, session: str) -> None:
        for _ in range(2):  # the first call fails if another worker has taken over the session
            reply = self._ask("create_session", session_id=session, durable=True)
            if reply["success"]:
                return
        raise Fault(f"{session} is not durable: {reply}")

    def _ask(self, command: str, **args: Any) -> dict[str, Any]:
        reply: dict[str, Any] = self.peer.ask({"id": 0, "command": command, "args": args})
        if not reply["success"] and reply["code"] != "session_lost":
            raise Fault(f"{command} {args}: {reply}")
        return reply

    def send(self, call: Call) -> int:
        number = next(self.numbers)
        self.owed[number] = call
        self._write({"id": number, **call.request})
        return number

    def control(self, command: str, of: int) -> None:
        """Pause, resume or cancel a call."""
        self.send(Call(None, command, {"id": of}))

    def _write(self, message: dict[str, Any]) -> None:
        if not self.is_killed:
            self.peer.send(message)

    def kill(self) -> None:
        self.peer.process.kill()
        self.is_killed = True

    def settle(self) -> None:
        """Read until every call has a reply, or until the end of a killed worker."""
        while self.owed:
            frame = self.peer.receive_frame()
            if frame is None:
                if not self.is_killed:
                    raise Fault(f"ended with {self.peer.wait()}: {self.peer.stderr()[-3000:]}")
                for call in self.owed.values():
                    call.reply = {"success": False, "code": "killed"}
                self.owed.clear()
                return
            self._take(json.loads(frame))

    def _take(self, message: dict[str, Any]) -> None:
        number = message["id"]
        if "event" in message:
            if number in self.answered or not self.owed[number].request.get("stream"):
                raise Fault(f"an unexpected event: {message}")
            return
        call = self.owed.pop(number, None)
        if call is None:
            raise Fault(f"an unexpected reply: {message}")
        self.answered.add(number)
        call.reply = message

    def finish(self) -> None:
        """End the worker, and check its memory and stderr."""
        with open(f"/proc/{self.peer.process.pid}/statm") as statm:
            memory = int(statm.read().split()[1]) * 4096
        self.peer.close_input()
        status = self.peer.wait()
        output = self.peer.stderr()
        if status or "Traceback" in output or memory > MOST_MEMORY:
            raise Fault(f"ended with {status}, {memory >> 20} MiB: {output[-3000:]}")


class World:
    """Two workers, their store, and the model of its content."""

    def __init__(self, chance: random.Random, folder: str) -> None:
        self.chance = chance
        self.store = f"{folder}/sessions.db"
        self.workers = [Worker(self.store), Worker(self.store)]
        self.held = {session: nothing() for session in DURABLE}
        self.calls = 0

    def round(self) -> None:
        """Make some concurrent calls, those of a durable session to one worker only, and check their replies."""
        chance = self.chance
        owner = {session: chance.randrange(2) for session in DURABLE}
        sent: list[tuple[int, Call]] = []
        for _ in range(chance.randrange(1, 12)):
            session = chance.choice(DURABLE + VOLATILE)
            at = owner.get(session, chance.randrange(2))
            call = chance.choices([s for s, _ in STEPS], [w for _, w in STEPS])[0](chance, session)
            if self._fits(call, [one for _, one in sent]):
                sent.append((at, self._send(self.workers[at], call)))
        # An ended session is in memory only, until it is made durable again.
        ended_here = {call.session for _, call in sent if call.request["command"] == END}
        dead = chance.randrange(2) if chance.random() < KILLS and not ended_here else None
        if dead is not None:
            time.sleep(chance.random() * 0.01)
            self.workers[dead].kill()
        for worker in self.workers:
            worker.settle()
        for at, call in sent:
            self._learn(self.workers[at], call)
        self.calls += len(sent)
        for session in ended_here & {*DURABLE}:
            self.workers[owner[session]].make_durable(session)
        if dead is not None:
            self.workers[dead].peer.finish()
            self.workers[dead] = Worker(self.store)

    @staticmethod
    def _fits(call: Call, others: list[Call]) -> bool:
        """Return whether a call can be in one round with others.

        A call that ends one session cannot be with one that ends all: the session may be in memory only by then.
        """
        ends = {END, *END_ALL}
        kinds = {one.request["command"] for one in (call, *others)} & ends
        return END not in kinds or len(kinds) == 1

    def _send(self, worker: Worker, call: Call) -> Call:
        chance = self.chance
        if chance.random() < 0.1:
            call.request["timeout_ms"] = chance.choice((0.01, 1, 20))
        number = worker.send(call)
        if call.request.get("stream") and chance.random() < 0.5:
            worker.control("pause", number)
            worker.control(chance.choice(("resume", "cancel")), number)
        elif chance.random() < 0.08:
            worker.control("cancel", number)
        return call

    def _learn(self, worker: Worker, call: Call) -> None:
        reply = call.reply
        assert reply is not None
        code = None if reply["success"] else reply["code"]
        try:
            if code is not None and code not in EXPECTED:
                raise Fault("an unexpected error")
            if call.request["command"] in END_ALL:
                for held in worker.held.values():  # whatever the reply is, these sessions end when the request arrives
                    Change({slot: put("") for slot in held}).apply(held, is_certain=code != "killed")
            if call.session is None:
                return
            held = self.held.get(call.session) or worker.held[call.session]
            if call.check is not None and code not in UNCERTAIN:
                call.check(reply, held)
            takes_at_once = call.request["command"] == END
            if call.change is not None and (code is None or code in UNCERTAIN):
                call.change.apply(held, is_certain=code is None)
            elif call.change is not None and takes_at_once and code == "session_lost":
                call.change.apply(held, is_certain=False)
        except Fault as fault:
            raise Fault(f"{fault}\nrequest: {call.request}\nreply: {reply}") from None


def run(seconds: float, seed: int) -> int:
    """Fuzz, and return the number of calls. Raises Fault."""
    chance = random.Random(seed)
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        world = World(chance, folder)
        try:
            while time.monotonic() < end:
                world.round()
            for worker in world.workers:
                worker.finish()
        finally:
            for worker in world.workers:
                worker.peer.finish()
    return world.calls


if __name__ == "__main__":
    sys.exit(main(__doc__, run, "calls, each as the model says"))
