"""The nodes of a cluster as slots of a pool: an actor on each, started when the node joins and again when it ends."""

from __future__ import annotations

import itertools
import socket
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any

import msgspec
import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bridge import errors
from bridge.errors import BridgeError
from bridge.host.client import STOP_TIMEOUT, Client
from bridge.host.connect import not_connected
from bridge.host.connection import Settings
from bridge.pool.slots import History, Slot
from bridge.pool.supervisor import Supervisor
from bridge.ray import cluster
from bridge.ray.cluster import Node
from bridge.ray.node import GROUPS, NodeActor
from bridge.ray.tunnel import Actor, NodeSocket, Tunnel, reason_of
from bridge.version import __version__

CHECK = 2.0  # seconds between two looks at which nodes there are
JOIN_SECONDS = 60.0  # for the start of a node's actor and pool, besides the timeout for a worker
GONE = "it has left the cluster, or this process has"


class NodeSlot(Slot):
    """A slot whose worker is a node's actor."""

    __slots__ = ("node",)

    node: Node

    def attach(self, client: Client) -> None:
        """Give the slot its actor. Raises the errors of `Client.call` if the actor does not tell its limits."""
        self.client = client
        self.connection = client._connection
        self.calls = self.connection.inbox.calls
        hello = client.call("hello", {"offers": self.connection.offers})
        if hello["version"] != __version__:
            reason = f"it has dspex-bridge {hello['version']}, and this process {__version__}"
            raise not_connected(f"node {self.node.name}", reason)
        self.capacity = hello["capacity"]

    def send_ping(self) -> None:
        """Ask the actor whether it answers, without waiting."""
        self.ping = ping = self.open("hello", None, caller_waits=False)
        with suppress(BridgeError):  # its end will be noticed
            self.connection.request(ping, {"offers": self.connection.offers}, None, None)


def node_of(slot: Slot) -> Node:
    """Return the node of a slot."""
    assert isinstance(slot, NodeSlot)
    return slot.node


class Nodes(Supervisor):
    """Keeps an actor on each node of the cluster.

    settings: of the connections. options: of the nodes' pools. timeout: seconds for the start of an actor.
    """

    slot_type = NodeSlot

    def __init__(self, *parts: Any, settings: Settings, options: dict[str, Any], timeout: float | None) -> None:
        super().__init__(*parts)
        self._settings = settings
        self._options = msgspec.msgpack.encode(options)
        self._timeout = timeout
        self._nodes: dict[int, Node] = {}  # by the number of a slot
        self._actors: dict[int, Actor] = {}
        self._live: dict[str, Node] = {}
        self._pools = itertools.count(1)

    def start(self, least: int, most: int) -> None:
        """Start an actor on each node, and wait until all are ready or have failed.

        Raises the error of one if none is ready, and WorkerCrashed (category initialization) if there are no nodes.
        """
        self._look()
        if not self._live:
            raise not_connected("the Ray cluster", "none of its nodes offers a CPU")
        numbers = set(self._nodes)
        with self._slots.changed:
            while not self._have_started(numbers):
                self._slots.changed.wait()
        if not self._slots.ready and self.last_failure is not None:
            raise self.last_failure
        self.clock.later(CHECK, self._look_later)

    def grow(self) -> bool:
        """Return whether an actor is starting."""
        return self._slots.count("starting") > 0

    def kill(self, slot: Slot, reason: str) -> None:
        """End an actor that does not answer, and start it again."""
        super().kill(slot, f"node {node_of(slot).name}: {reason}")

    @property
    def is_failing(self) -> bool:
        """Return whether no node will be ready soon."""
        return super().is_failing or not self._slots.all

    def stop(self, timeout: float | None = STOP_TIMEOUT) -> None:
        """Stop all pools after the grace period of their open calls, and end the actors."""
        super().stop(timeout)
        for number in list(self._actors):
            self._kill_actor(number)

    def _have_started(self, numbers: set[int]) -> bool:
        starting = {slot.number for slot in self._slots.all if slot.state == "starting" and slot.history.faults == 0}
        return not (starting & numbers)

    def _look_later(self) -> None:
        if not self.closed:
            self.threads.run(self._look_again)

    def _look_again(self) -> None:
        try:
            self._look()
        finally:
            self.clock.later(CHECK, self._look_later)

    def _look(self) -> None:
        """Start actors on nodes that have joined, and end the connections to those that are gone."""
        found = {node.id: node for node in cluster.nodes()}
        with self._slots.changed:
            before, self._live = self._live, found
            slots = list(self._slots.all)
        for node in found.values():
            if node.id not in before:
                added = NodeSlot(next(self._numbers), History())
                self._nodes[added.number] = node
                self._add(added)
        for slot in slots:
            node = node_of(slot)
            if node.id in before and node.id not in found and slot.client is not None:
                self.kill(slot, GONE)

    def _launch(self, slot: Slot) -> Client:
        """Start a pool in the actor of a slot's node, and return the client of it."""
        until = None if self._timeout is None else monotonic() + JOIN_SECONDS + self._timeout
        node = node_of(slot)
        if node.id not in {each.id for each in cluster.nodes()}:
            self._live.pop(node.id, None)
            raise not_connected(f"node {node.name}", GONE)
        actor = self._actors.get(slot.number)
        if actor is None:
            actor = self._actors[slot.number] = _actor_on(node)
        number = next(self._pools)
        try:
            result = cluster.call(actor.open, number, self._options)
            failure = cluster.wait_for(result, until and until - monotonic())
        except Exception as error:  # not always a RayError
            if not isinstance(error, ActorUnavailableError | GetTimeoutError):
                self._kill_actor(slot.number)  # Ray does not start it again
            raise not_connected(f"node {node.name}", reason_of(error)) from error
        if failure:
            fields = msgspec.msgpack.decode(failure)
            text = f"node {node.name}: {fields['error']}"
            raise errors.from_reply(fields["code"], text, fields["category"], fields["details"])
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            worker = NodeSocket(node.name, ours, partial(cluster.kill, actor, restarts=True))
        Tunnel(actor, number, theirs, worker).start()
        return Client._of(worker, self._settings, (), until and until - monotonic())

    def _add(self, slot: Slot, delay: float = 0.0) -> None:
        if slot.number not in self._nodes:
            assert slot.replaces is not None
            self._nodes[slot.number] = self._nodes[slot.replaces.number]
        assert isinstance(slot, NodeSlot)
        slot.node = self._nodes[slot.number]
        super()._add(slot, delay)

    def _replace(self, slot: Slot, is_early: bool) -> None:
        if node_of(slot).id in self._live:
            super()._replace(slot, is_early)
        else:
            self._actors.pop(slot.number, None)

    def _stop(self, slot: Slot, timeout: float | None) -> None:
        assert slot.client is not None
        try:
            slot.client.stop(timeout)
            self._kill_actor(slot.number)  # before the slot is gone: then the connection to the cluster may end
        finally:
            super()._stop(slot, timeout)

    def _kill_actor(self, number: int) -> None:
        actor = self._actors.pop(number, None)
        if actor is not None:
            cluster.kill(actor, restarts=False)


def _actor_on(node: Node) -> Actor:
    """Return a new actor on a node, which Ray restarts there. It never repeats a call."""
    options: dict[str, Any] = {
        "concurrency_groups": GROUPS,
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node.id, soft=False),
    }
    return ray.remote(**options)(NodeActor).remote()
