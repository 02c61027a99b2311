"""RayPool: the pools of all nodes of a Ray cluster, which look like one."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from bridge.host.client import STOP_TIMEOUT, Client
from bridge.host.connection import Settings
from bridge.host.launch import check_process
from bridge.host.timeouts import START_TIMEOUT, seconds_of
from bridge.host.tools import Callables, Tool
from bridge.options import DEFAULT_MAX_FRAME, DEFAULT_MAX_VALUES
from bridge.pool.launcher import Starter
from bridge.pool.options import Workers, checked
from bridge.pool.pool import Pool
from bridge.pool.slots import OnTransition
from bridge.pool.upkeep import Life
from bridge.ray import cluster, report
from bridge.ray.nodes import Nodes, node_of
from bridge.ray.routing import NodeRecovery, NodeRouter

NO_LAUNCHER = Starter(Client.start)  # each slot has a node of its own, see `Nodes`


class RayPool(Pool):
    """The pools of all nodes of a Ray cluster, called like one `Pool`. Usable from any number of threads.

    An actor on each node that offers a CPU holds a pool of that node, also on nodes that join later. Calls without a
    session go to a node that has little to do, the calls of a session to the node that has it, and what calls without
    a session change is changed on all nodes. A call whose node is lost is made once more on another one if its command
    is idempotent, or if it has certainly not been started; otherwise it raises WorkerCrashed. Ray starts actors again
    that have ended. Durable sessions go on if the workers of all nodes have the same store.

    address: "HOST:PORT" of the cluster's head; "auto" for the cluster that runs on this machine; "local" to start one
    on it; None: RAY_ADDRESS, else "auto", else "local". Has no effect in a process that is connected to that cluster.
    The other options are those of `Pool`, for each node: `workers` by default one for each of its cores, `python` the
    node's own. Functions of the host (`tools`, `register`) run in this process. Raises the errors of `Pool`;
    WorkerCrashed (category initialization) if there is no cluster, or no node starts its pool; ValueError if this
    process is connected to another cluster.
    """

    _recovery = NodeRecovery

    def __init__(
        self,
        workers: Workers | None = None,
        *,
        address: str | None = None,
        connect: str | None = None,
        template: bool = True,
        affinity: Literal["strict", "hint"] = "strict",
        isolate: Literal["session"] | None = None,
        session_workers: int = 256,
        idle: float | None = None,
        max_requests: int | None = None,
        max_age: float | None = None,
        max_rss: int | None = None,
        name: str = "pool",
        on_event: OnTransition | None = None,
        adapter: str = "dspy",
        python: str = sys.executable,
        flags: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        format: str = "msgpack",
        max_frame: int = DEFAULT_MAX_FRAME,
        max_values: int = DEFAULT_MAX_VALUES,
        tools: Callables = (),
        logs: Literal["stderr", "logging"] = "stderr",
        timeout: float | None = START_TIMEOUT,
    ) -> None:
        checked(workers, affinity, isolate, session_workers, idle, max_requests, max_age, max_rss, on_event)
        check_process(adapter, python, flags, env)
        known = [Tool(function) for function in tools]
        settings = Settings.checked(format, max_frame, max_values, logs)
        options: dict[str, Any] = {
            "workers": workers,
            "connect": connect,
            "template": template,
            "affinity": affinity,
            "isolate": isolate,
            "session_workers": session_workers,
            "idle": idle,
            "max_requests": max_requests,
            "max_age": max_age,
            "max_rss": max_rss,
            "name": name,
            "adapter": adapter,
            "flags": list(flags),
            "env": None if env is None else dict(env),
            "format": format,
            "max_frame": max_frame,
            "max_values": max_values,
            "logs": logs,
            "timeout": seconds_of(timeout),
        }
        if python != sys.executable:  # otherwise each node's own
            options["python"] = python
        self._disconnects = cluster.connect(address, options["timeout"])
        try:
            self._prepare(name, on_event)
            parts = (self._slots, NO_LAUNCHER, self._functions, self._journal, self._threads, self._report)
            self._supervisor = Nodes(*parts, settings=settings, options=options, timeout=timeout)
            self._begin(
                (0, 0),
                Life(None),
                lambda: NodeRouter(self._slots, self._sessions, self._supervisor, affinity == "strict"),
                timeout,
                known,
            )
        except BaseException:
            self._leave()
            raise

    def session_info(self, session_id: str) -> dict[str, Any]:
        """Return the result of `get_session`, with the `node` and the `host` that have the session, and there the
        `slot` and the `pid` of its worker.

        Raises SessionNotFound.
        """
        home = self._sessions.homes.get(session_id)
        if home is None or not home.slot.is_usable:
            return super().session_info(session_id)
        self._check_own()
        node = node_of(home.slot)
        return {
            **home.slot.ask("node_session", {"session_id": session_id}, 30.0),
            "node": node.id,
            "host": node.name,
        }

    def stats(self) -> dict[str, Any]:
        """Return the statistics of all workers of all nodes together (`commands`, `process`), each worker's own
        (`workers`), and the pool's `status`."""
        self._check_own()
        return {**report.statistics(self._slots), "pool": self.status()}

    def status(self) -> dict[str, Any]:
        """Return the number of workers and of nodes in each state, of open calls and of sessions, and one map for each
        node, as `slots`."""
        return report.status(super().status(), self._slots)

    def health_check(self, timeout: float = 2.0) -> dict[str, Any]:
        """Ping each worker of each node. Return whether the pool is "healthy", "degraded" or "down", and one map for
        each node."""
        self._check_own()
        return report.health(self._slots, timeout)

    def stop(self, timeout: float | None = STOP_TIMEOUT) -> None:
        """Stop the workers of all nodes as `Pool.stop` does, and end the actors.

        Ends the connection to the cluster, or the cluster, if a pool has opened or started it and no other one uses it.
        """
        super().stop(timeout)
        self._leave()

    def __repr__(self) -> str:
        return f"<RayPool {self.name}: {self._supervisor.closed or f'{len(self._slots.ready)} nodes'}>"

    def _leave(self) -> None:
        if self._disconnects:
            self._disconnects = False
            cluster.disconnect()
