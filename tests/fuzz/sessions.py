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
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

from command import Fault, main
from session_calls import END, END_ALL, EXPECTED, STEPS, UNCERTAIN, Call, Change, nothing, put

from peer import Peer  # in the folder that the line above adds

DURABLE = ("d1", "d2")
VOLATILE = ("m1", "m2")  # each worker has its own
MOST_MEMORY = 700 << 20  # bytes of a worker with DSPy loaded
KILLS = 0.03  # share of the rounds


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
        """Return whether a call can be in one round after others.

        A call that ends one session cannot be with one that ends all: the session may be in memory only by then. A read
        may see what later calls change, which the model does not know.
        """
        if call.change is not None and any(one.session == call.session and one.only_reads for one in others):
            return False
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
