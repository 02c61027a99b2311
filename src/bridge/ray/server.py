"""What a node does with the frames of the host: it makes their calls in its pool, and replies."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from time import monotonic
from typing import Any

from bridge import errors
from bridge._framing import Frame, Outbox, Reader, Writer, envelope_beginning
from bridge.errors import BridgeError
from bridge.host.connection import decoded
from bridge.host.threads import Threads
from bridge.pool.pool import Pool
from bridge.ray.functions import HostCalls
from bridge.ray.logs import ToHost
from bridge.ray.node_pool import NodeCall, NodePool, Received
from bridge.ray.order import Order
from bridge.version import __version__
from bridge.wire._frames import codec_for, format_of
from bridge.wire.codec import by_name
from bridge.wire.messages import Event, Reply, TimedReply, failure, shortened

GRACE_SECONDS = 2.0  # for the open calls when the host has closed its side of the connection

_log = logging.getLogger("bridge.ray")


class Served:
    """Represents a call of the host, from its request to its reply."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._future: NodeCall | None = None
        self._is_cancelled = False
        self._may_emit = threading.Event()
        self._may_emit.set()

    def begin(self, future: NodeCall) -> None:
        """Note the future of the call, before it starts."""
        with self._lock:
            self._future = future
            is_cancelled = self._is_cancelled
        if is_cancelled:
            future.cancel()

    def is_made_as(self, call_id: Any) -> bool:
        """Return whether the call has this id in its worker."""
        return self._future is not None and self._future.is_made_as(call_id)

    def cancel(self) -> None:
        """Cancel the call, now or when it begins."""
        with self._lock:
            self._is_cancelled = True
            future = self._future
        self.resume()
        if future is not None:
            future.cancel()

    def pause(self) -> None:
        """Let events wait."""
        self._may_emit.clear()

    def resume(self) -> None:
        """Let events pass."""
        self._may_emit.set()

    def wait(self) -> None:
        """Wait while the call is paused."""
        self._may_emit.wait()


class Server:
    """Answers the frames that arrive at a socket, with a pool that it starts.

    options: of the pool. Raises the errors of `Pool`.
    """

    def __init__(self, connected: socket.socket, options: dict[str, Any]) -> None:
        self._socket = connected
        self._max_frame, self._max_values = options["max_frame"], options["max_values"]
        format = by_name(options["format"])
        assert format is not None
        self._codec = codec_for(format)
        self._writer = Writer(connected.fileno())
        self._threads = Threads("bridge-ray-node")
        self._order = Order(self._threads.run)
        self._calls: dict[Any, Served] = {}
        self._ended = threading.Condition()
        self._host = HostCalls(self._send_value, self._host_id)
        self._log = ToHost(self._send_log) if options["logs"] == "logging" else None
        if self._log is not None:
            logging.getLogger().addHandler(self._log)
            logging.getLogger().setLevel(logging.DEBUG)
        self.pool = NodePool(self._host.ask, **options)

    def start(self) -> None:
        """Answer frames on a thread from now on."""
        threading.Thread(target=self._serve, name="bridge-ray-frames", daemon=True).start()

    def stop(self, timeout: float | None) -> None:
        """Stop the pool, and close the connection."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._host.close()
        self.pool.stop(timeout)
        if self._log is not None:
            logging.getLogger().removeHandler(self._log)

    def _serve(self) -> None:
        reader = Reader(self._socket.fileno(), self._max_frame)
        try:
            while (frame := reader.read()) is not None:
                try:
                    self._receive(decoded(frame, Received, self._max_frame, self._max_values))
                except BridgeError as error:
                    self._refuse(frame, error)
        except Exception:
            _log.exception("the connection to the host has failed")
        until = monotonic() + GRACE_SECONDS
        with self._ended:
            self._ended.wait_for(lambda: not self._calls, max(0.0, until - monotonic()))
        for served in list(self._calls.values()):
            served.cancel()
        self.stop(GRACE_SECONDS)

    def _receive(self, message: Received) -> None:
        """Take a message. Nothing here waits."""
        own = OWN.get(message.command or "")
        if message.command is None:
            self._host.receive(message)
        elif own is not None:
            own(self, message)
        else:
            self._add(message)

    def _refuse(self, frame: Frame, error: BridgeError) -> None:
        """Fail the call that an unreadable frame belongs to."""
        if isinstance(error, errors.InvalidFrame):
            error = errors.InvalidRequest(f"not a request: {errors.text_of(error)}")
        envelope = envelope_beginning(frame)
        format = format_of(envelope)
        self._fail(format.find_id(envelope) if format else None, error)

    def _add(self, message: Received) -> None:
        assert message.command is not None
        self._calls[message.id] = served = Served()
        session_id = message.session_id
        if session_id is None and isinstance(message.args, dict):
            named = message.args.get("session_id")
            session_id = named if isinstance(named, str) else None
        begin = partial(self._begin, message, served, monotonic())
        if self.pool.is_shared(message.command, session_id):
            self._order.add_shared(begin)
        else:
            self._order.add(session_id, begin)

    def _begin(self, message: Received, served: Served, received: float) -> None:
        on_event = partial(self._emit, message.id, served) if message.stream else None
        try:
            call = self.pool.call_of(message, monotonic() - received, on_event, partial(self._reply, message))
            served.begin(call)
            if not call.done():
                call.start()
        except BaseException as error:
            self._fail(message.id, error)

    def _host_id(self, call_id: Any) -> Any:
        """Return the host's id of a call that a worker makes, or None if it has ended."""
        return next((id for id, served in list(self._calls.items()) if served.is_made_as(call_id)), None)

    def _emit(self, call_id: Any, served: Served, event: str, data: Any) -> None:
        served.wait()
        outbox = self._codec.encoded(Event(call_id, event, data), data, "data", "data", self._max_frame, True)
        if outbox is None:
            raise errors.ReplyTooLarge(f"an event takes more than the {self._max_frame} bytes of a frame")
        self._send(outbox)

    def _reply(self, message: Received, future: NodeCall) -> None:
        try:
            result = future.result()
            reply: Reply = Reply(message.id, True, result, _now())
            if message.timing:
                reply = TimedReply(message.id, True, result, _now(), dict(future.timing))
            outbox = self._codec.encoded(reply, result, "result", "result", self._max_frame, True)
            if outbox is None:
                raise errors.ReplyTooLarge(f"the result takes more than the {self._max_frame} bytes of a frame")
        except BaseException as error:
            self._fail(message.id, error)
        else:
            self._end(message.id, outbox)

    def _fail(self, call_id: Any, error: BaseException) -> None:
        if not isinstance(error, BridgeError):
            _log.error("a call has failed", exc_info=error)
            error = errors.Internal(f"{type(error).__name__}: {errors.text_of(error)}")
        failed = failure(call_id, error, _now())
        outbox = self._codec.encoded(failed, failed, "details", "details", self._max_frame, False)
        if outbox is None:
            failed = shortened(failed, self._max_frame)
            outbox = self._codec.encoded(failed, failed, "details", "details", self._max_frame, False)
        self._end(call_id, outbox)

    def _end(self, call_id: Any, outbox: Outbox | None) -> None:
        self._send(outbox)
        with self._ended:
            self._calls.pop(call_id, None)
            self._ended.notify_all()

    def _send(self, outbox: Outbox | None) -> None:
        if outbox is not None:
            with contextlib.suppress(OSError):  # the connection has ended, which `_serve` notices
                self._writer.flush(outbox)

    def _send_value(self, message: dict[str, Any], name: str) -> None:
        outbox = self._codec.encoded(message, message[name], name, name, self._max_frame, True)
        if outbox is None:
            raise errors.FrameTooLarge(f"{name} takes more than the {self._max_frame} bytes of a frame")
        self._send(outbox)

    def _send_log(self, line: dict[str, Any]) -> None:
        with contextlib.suppress(BridgeError):
            self._send_value({"id": None, "event": "log", "data": line}, "data")

    def _answer(self, message: Received, result: Any) -> None:
        self._send(
            self._codec.encoded(
                Reply(message.id, True, result, _now()), result, "result", "result", self._max_frame, False
            )
        )

    def _hello(self, message: Received) -> None:
        self._answer(
            message,
            {
                "version": __version__,
                "accepted": ["buffers", "tools"],
                "pid": os.getpid(),
                "max_frame": self._max_frame,
                "capacity": self.pool.capacity(),
            },
        )

    def _control(self, message: Received) -> None:
        change, done = CONTROLS[message.command or ""]
        try:
            served = self._calls.get(message.args["id"])
        except (TypeError, LookupError):
            raise errors.InvalidArgs("args.id: must be the id of a call") from None
        if served is not None:
            change(served)
        self._answer(message, {"id": message.args["id"], done: served is not None})

    def _report(self, message: Received) -> None:
        self._threads.run(partial(self._send_report, message))

    def _send_report(self, message: Received) -> None:
        try:
            self._answer(message, REPORTS[message.command or ""](self.pool, **message.args))
        except BaseException as error:
            self._fail(message.id, error)


# What the host asks a node about its own pool.
REPORTS: dict[str, Callable[..., dict[str, Any]]] = {
    "node_health": Pool.health_check,
    "node_session": Pool.session_info,
    "node_stats": Pool.stats,
    "node_status": Pool.status,
}

# What changes an open call, and how the reply says so.
CONTROLS: dict[str, tuple[Callable[[Served], object], str]] = {
    "cancel": (Served.cancel, "cancelled"),
    "pause": (Served.pause, "paused"),
    "resume": (Served.resume, "resumed"),
}

OWN: dict[str, Callable[[Server, Received], None]] = {
    "hello": Server._hello,
    **dict.fromkeys(CONTROLS, Server._control),
    **dict.fromkeys(REPORTS, Server._report),
}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
