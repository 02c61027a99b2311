"""Report that a template is ready: to the host, to systemd, and to the person at the terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from typing import Any

from bridge import errors
from bridge.template.control import Control
from bridge.version import __version__

_log = logging.getLogger("bridge.template")


def announce(control: Control | None, path: str, adapter: str, forks: bool) -> None:
    """Report that the template listens. forks: whether its workers are forked, not spawned."""
    address = f"unix:{path}"
    if control is not None:
        message: dict[str, Any] = {"type": "ready", "listen": errors.readable(address), "pid": os.getpid()}
        control.send({**message, "version": __version__, "adapter": adapter, "forks": forks})
        return
    _notify_systemd()
    how = "forked" if forks else "spawned"
    line = f"dspex-bridge: listening on {address} with the adapter {adapter}; process {os.getpid()}, workers are {how}"
    with contextlib.suppress(OSError):  # nobody can read it
        print(line, file=sys.stderr, flush=True)


def _notify_systemd() -> None:
    """Report the readiness of a service with Type=notify, see sd_notify(3)."""
    address = os.environ.pop("NOTIFY_SOCKET", None)
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
            notified.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)
    except OSError as error:
        _log.warning("systemd cannot be notified at %s: %s", address, error)
