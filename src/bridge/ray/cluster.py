"""The Ray cluster: connect to one that runs, or start one on this machine, and see which nodes it has."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError, RaySystemError

from bridge import errors

# Ray reads this in every process that it starts from here on.
USAGE_STATISTICS = {"RAY_USAGE_STATS_ENABLED": "0"}

LEAST_SECONDS = 0.001  # for a connection; a socket with a timeout of 0 would not wait at all

_lock = threading.Lock()
_users = 0  # pools that use the connection which one of them has opened


class Node(NamedTuple):
    """Represents a node that can have workers. id: Ray's, in hexadecimal digits. name: of its host, for people."""

    id: str
    name: str


def connect(address: str | None, timeout: float | None) -> bool:
    """Connect this process to a Ray cluster, unless it is, and return whether `disconnect` has to be called.

    address: "HOST:PORT" of the head, "auto" for the cluster that runs on this machine, "local" to start one on it;
    None: RAY_ADDRESS, else "auto", else "local". timeout: seconds until somebody answers at HOST:PORT.

    Raises WorkerCrashed (category initialization) if there is none, ValueError for an address of Ray Client, and for
    another address than the one that this process is connected to.
    """
    global _users
    if address is not None and "://" in address:
        raise ValueError(f"address: {address!r} is one of Ray Client, with which a pool cannot run; use HOST:PORT")
    with _lock:
        if ray.is_initialized():
            current = ray.get_runtime_context().gcs_address
            if address not in (None, "auto", "local", current):
                raise ValueError(f"address: this process is connected to the Ray cluster at {current} already")
            _users += _users > 0
            return _users > 0
        _open(address, timeout)
        _users = 1
        return True


def disconnect() -> None:
    """End the connection that `connect` has opened, and the cluster if that was started, after its last user."""
    global _users
    with _lock:
        _users -= 1
        if _users == 0:
            ray.shutdown()


def nodes() -> list[Node]:
    """Return the nodes that are alive and offer a CPU: heads are often started without one, to have no work.

    An empty list once this process is not connected anymore, whereas Ray would connect it again.
    """
    with _lock:
        known = ray.nodes() if ray.is_initialized() else []
    return [
        Node(each["NodeID"], each.get("NodeManagerHostname") or each["NodeManagerAddress"])
        for each in known
        if each["Alive"] and each["Resources"].get("CPU", 0) > 0
    ]


def call(method: Any, *args: Any) -> Any:
    """Call a method of an actor, and return Ray's reference to the result. Raises RayError if not connected."""
    _check_connected()
    return method.remote(*args)


def wait_for(result: Any, timeout: float | None = None) -> Any:
    """Return the result of a call of an actor. Raises RayError, also when this process is not connected anymore."""
    _check_connected()
    return ray.get(result, timeout=timeout)


def kill(actor: Any, *, restarts: bool) -> None:
    """End an actor, if it can be reached. restarts: whether Ray starts it again."""
    with contextlib.suppress(Exception):
        _check_connected()
        ray.kill(actor, no_restart=not restarts)


def _check_connected() -> None:
    """Raise RayError once `ray.shutdown` was called, by whomever. Ray itself would start another cluster then."""
    if not ray.is_initialized():
        raise RaySystemError("this process has ended its connection to the cluster")


def _open(address: str | None, timeout: float | None) -> None:
    os.environ.update(USAGE_STATISTICS)
    _reach(address or os.environ.get("RAY_ADDRESS", ""), timeout)
    options: dict[str, Any] = {"logging_level": "ERROR", "include_dashboard": False}
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if in_main_thread else None
    try:
        ray.init(address=address, log_to_driver=False, **options)
    except (OSError, RayError, RuntimeError) as error:
        raise _not_connected(address, error) from error
    finally:
        if handler not in (None, signal.SIG_DFL):  # Ray has put its own in the place of the application's
            signal.signal(signal.SIGTERM, handler)


def _reach(address: str, timeout: float | None) -> None:
    """Raise an error if nobody listens at "HOST:PORT". Ray itself would try for minutes, and end the process then."""
    host, _, port = address.rpartition(":")
    seconds = None if timeout is None else max(timeout, LEAST_SECONDS)
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), seconds).close()
        except (OSError, OverflowError) as error:
            raise _not_connected(address, error) from error


def _not_connected(address: str | None, error: Exception) -> errors.WorkerCrashed:
    reason = getattr(error, "strerror", None) or errors.text_of(error)
    failure = errors.WorkerCrashed(f"cannot connect to the Ray cluster at {address or 'its address'}: {reason}")
    failure.category = "initialization"
    return failure
