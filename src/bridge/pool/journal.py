"""What all workers of a pool share: the calls without a session that have changed it, in their order.

They are made in every worker. A worker that starts later gets them before its first call.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any

from bridge import errors
from bridge.errors import BridgeError
from bridge.host.open_calls import OpenCall
from bridge.pool.replaced import MOVED_TO_THE_END, REMOVES, key_of, whole_of, with_id
from bridge.pool.requests import Request
from bridge.pool.slots import Slot

SHARED_LANES = ("session", "everyone", "end_all")  # of commands that change what calls without a session see
SHARED_COMMANDS = ("set_log_level",)  # of another lane, which change it too
MOST_ENTRIES = 10_000
REPLAY_SECONDS = 60.0  # for one entry in a worker that starts
OVERLOAD_PAUSE = 0.05  # seconds until a worker without room is asked again

_log = logging.getLogger("bridge.pool")


class Entry:
    """A call that succeeded.

    version: when it was added, which its place in the order does not show. whole: the key of what it is a part of.
    """

    __slots__ = ("args", "command", "version", "whole")

    def __init__(self, command: str, args: Any, version: int) -> None:
        self.command = command
        self.args = args
        self.version = version
        self.whole = whole_of(command, args)


class Broadcast:
    """A request on its way to all workers. calls: by slot; an error in place of a call that could not be sent."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.calls: dict[Slot, OpenCall | BridgeError] = {}

    def send(self, slot: Slot) -> None:
        """Send the request to a slot without waiting."""
        request = self.request
        try:
            call = slot.open(request.command, request.left())
            slot.connection.request(call, request.args, None, request.traceparent)
            self.calls[slot] = call
        except BridgeError as error:
            self.calls[slot] = error


class Journal:
    """The shared state of the workers. Usable from any number of threads.

    lanes: the lane of each command. diverged: called with a slot that has refused what others have accepted.
    """

    def __init__(self, diverged: Callable[[Slot], object]) -> None:
        self.lanes: dict[str, str] = {}
        self._diverged = diverged
        self._lock = threading.RLock()
        self._entries: dict[Hashable, Entry] = {}
        self._members: list[Slot] = []
        self._open: list[Broadcast] = []
        self._version = 0

    def __len__(self) -> int:
        return len(self._entries)

    def use(self, commands: dict[str, Any]) -> frozenset[str]:
        """Take the lanes from `describe`, and return the names of the commands that are made in all workers."""
        self.lanes = {name: spec["lane"] for name, spec in commands.items()}
        shared = [name for name, lane in self.lanes.items() if lane in SHARED_LANES or name in SHARED_COMMANDS]
        return frozenset(shared)

    def join(self, slot: Slot) -> None:
        """Bring a new worker up to date. From then on it gets what the others get. Raises WorkerCrashed."""
        done = 0
        while True:
            with self._lock:
                missing = [entry for entry in self._entries.values() if entry.version > done]
                if not missing:
                    for broadcast in self._open:
                        broadcast.send(slot)
                    self._members.append(slot)
                    return
                done = self._version
            for entry in missing:
                self._replay(slot, entry)

    def leave(self, slot: Slot) -> None:
        """Send nothing more to a worker."""
        with self._lock:
            if slot in self._members:
                self._members.remove(slot)

    def start(self, request: Request) -> Broadcast:
        """Send a request to all workers, and return the broadcast for `finish`. Raises QuotaExceeded."""
        request.args = with_id(request.command, copy.deepcopy(request.args))
        broadcast = Broadcast(request)
        with self._lock:
            if len(self._entries) >= MOST_ENTRIES and key_of(request.command, request.args) not in self._entries:
                raise errors.QuotaExceeded(
                    f"the calls without a session have changed what {len(self._entries)} entries hold, which is the"
                    " limit of a pool: use sessions",
                    limit=MOST_ENTRIES,
                )
            for slot in self._members:
                broadcast.send(slot)
            self._open.append(broadcast)
        return broadcast

    def finish(self, broadcast: Broadcast) -> Any:
        """Wait for the replies of all workers, and return the first result. Raises an error if none has succeeded."""
        results: dict[Slot, Any] = {}
        failures: dict[Slot, BridgeError] = {}
        while not self._conclude(broadcast, results, failures):
            for slot in [slot for slot in list(broadcast.calls) if slot not in results and slot not in failures]:
                try:
                    results[slot] = self._result(broadcast, slot)
                    slot.served += 1
                except BridgeError as error:
                    failures[slot] = error
        if not results:
            raise self._failure(broadcast, failures)
        for slot, failure in failures.items():
            if not isinstance(failure, errors.WorkerCrashed):
                _log.warning("worker %s does not accept %s: %s", slot.pid, broadcast.request.command, failure)
                self._diverged(slot)
        return next(iter(results.values()))

    def _result(self, broadcast: Broadcast, slot: Slot) -> Any:
        """Wait for the result of one worker, asking it again while it has no room."""
        while True:
            call = broadcast.calls[slot]
            if isinstance(call, BridgeError):
                raise call
            try:
                return call.result()
            except errors.Overloaded:
                left = broadcast.request.left()
                time.sleep(OVERLOAD_PAUSE if left is None else min(left, OVERLOAD_PAUSE))
                broadcast.send(slot)

    def _failure(self, broadcast: Broadcast, failures: dict[Slot, BridgeError]) -> BridgeError:
        """Return the error of a request that no worker has accepted: of a worker that lives, if there is one."""
        request = broadcast.request
        chosen = sorted(failures.items(), key=lambda item: isinstance(item[1], errors.WorkerCrashed))
        if not chosen:
            return errors.WorkerCrashed("no worker is ready")
        request.slot, error = chosen[0]
        call = broadcast.calls[request.slot]
        request.attempts += 1
        request.call, request.started = (None, False) if isinstance(call, BridgeError) else (call, True)
        return error

    def _conclude(self, broadcast: Broadcast, results: dict[Slot, Any], failures: dict[Slot, BridgeError]) -> bool:
        """Record a request that all workers have answered. Return False if there are some that have not."""
        with self._lock:
            if len(broadcast.calls) > len(results) + len(failures):
                return False
            if broadcast in self._open:
                self._open.remove(broadcast)
                if results:
                    self._record(broadcast.request, next(iter(results.values())))
            return True

    def _record(self, request: Request, result: Any) -> None:
        command, lanes = request.command, self.lanes
        if lanes.get(command) == "end_all":
            self._entries = {
                key: entry for key, entry in self._entries.items() if lanes.get(entry.command) != "session"
            }
            return
        if isinstance(result, dict) and result.get("status") == "exists":  # nothing has changed
            return
        self._version += 1
        key = key_of(command, request.args) or (self._version,)
        if command in REMOVES or command in MOVED_TO_THE_END:
            self._entries.pop(key, None)
            for part in [name for name, entry in self._entries.items() if entry.whole == key]:
                del self._entries[part]
        if command not in REMOVES:
            self._entries[key] = Entry(command, request.args, self._version)

    def _replay(self, slot: Slot, entry: Entry) -> None:
        try:
            slot.ask(entry.command, entry.args, REPLAY_SECONDS)
        except errors.WorkerCrashed:
            raise
        except BridgeError as error:
            _log.warning("worker %s does not accept %s: %s", slot.pid, entry.command, error)
