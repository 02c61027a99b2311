"""The health check of a server of workers. A container runs it every few seconds, so it loads almost nothing."""

from __future__ import annotations

import socket
import time

HEARTBEAT = bytes(4)  # an empty frame, which is answered with an empty frame


class Unhealthy(Exception):
    """Raised with what is wrong with a server."""


def check(path: str, seconds: float) -> None:
    """Send a heartbeat to the server that listens on the Unix socket `path`, and wait up to `seconds` for the answer.

    The server answers without a worker and as soon as it is ready. Raises Unhealthy if it does not.
    """
    end = time.monotonic() + seconds
    received = b""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(seconds)
            connection.connect(path)
            connection.sendall(HEARTBEAT)
            while HEARTBEAT.startswith(received) and received != HEARTBEAT:
                connection.settimeout(max(end - time.monotonic(), 1e-3))
                chunk = connection.recv(len(HEARTBEAT) - len(received))
                if not chunk:
                    raise Unhealthy("it has closed the connection")
                received += chunk
    except TimeoutError:
        raise Unhealthy(f"no answer within {seconds:g} s") from None
    except BlockingIOError:
        raise Unhealthy("too many connections wait to be accepted") from None
    except OSError as error:
        raise Unhealthy(error.strerror or str(error)) from None
    if received != HEARTBEAT:
        raise Unhealthy("what it has sent is no heartbeat")
