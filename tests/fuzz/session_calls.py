"""Calls of the session fuzzer: random requests, their effects on a model of a session, and checks of their replies."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from command import Fault

KEYS = ("a", "b", "c")
PROGRAMS = ("p", "q")
SLOW = "word " * 400
END = "cleanup_session"
READS = ("get_session_data", "list_programs")
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

    @property
    def only_reads(self) -> bool:
        """Return whether the call reads a session, whose later calls then do not wait for it."""
        return self.request["command"] in READS


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
