"""A connection to one worker: requests become frames, and frames become what callers wait for."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Any, NamedTuple, TypeVar

from bridge import errors
from bridge._framing import Frame, Outbox, buffers_of, envelope_beginning, envelope_of, is_multipart
from bridge.host._inbox import CONCLUDE, EVENT, PAUSE, RECEIVE, REFUSE
from bridge.host.functions import KINDS, Functions
from bridge.host.logs import are_forwarded
from bridge.host.open_calls import CallCancelled, OpenCall, undecodable
from bridge.host.tools import WrongArguments, error_text
from bridge.host.transport import Loop, Transport
from bridge.host.worker import Worker
from bridge.options import check
from bridge.security.redaction import redact_in, shorten
from bridge.wire._frames import codec_for, format_of, unknown_format
from bridge.wire._limits import limited
from bridge.wire.codec import FORMATS, Format, by_name
from bridge.wire.messages import Incoming, ReceivedReply
from bridge.wire.tensors import substitute

Log = Callable[[dict[str, Any]], None]
Message = TypeVar("Message", bound=ReceivedReply)

LEAST_PAUSE = 0.01  # seconds between two checks of the deadlines of the open calls
LONGEST_ERROR = 1000  # characters of a function's error that are sent to the worker


class Settings(NamedTuple):
    """Represents the options of a client that are about its connection, whatever is at the other end."""

    format: Format
    max_frame: int
    max_values: int
    forwards_logs: bool

    @classmethod
    def checked(cls, format: str, max_frame: int, max_values: int, logs: str) -> Settings:
        """Return the options of `Client.start`. Raises ValueError if one of them is invalid."""
        known = by_name(format)
        if known is None:
            raise ValueError(f"unknown format {format!r}; known: {', '.join(each.name for each in FORMATS)}")
        for option, limit in (("max_frame", max_frame), ("max_values", max_values)):
            try:
                check(option, limit)
            except ValueError as error:
                raise ValueError(f"{option}: {error}") from None
        return cls(known, max_frame, max_values, are_forwarded(logs))


class Connection:
    """The calls to one worker and the worker's calls back. Nothing here waits.

    A subclass adds what differs between synchronous and asyncio clients: how a frame is waited for until it has been
    sent, where functions of the host run, and what follows the end of the worker. A connection may be used from any
    number of threads if its loop may.
    """

    def __init__(self, worker: Worker, settings: Settings, loop: Loop, log: Log | None) -> None:
        self.worker = worker
        self.format = settings.format
        self.functions = Functions()
        self.offers = {"buffers": True, "tools": False, "logs": log is not None}
        self.ids = itertools.count(1)
        self.lock = threading.RLock()
        self._max_frame = settings.max_frame
        self._longest_request = settings.max_frame
        self._max_values = settings.max_values
        self._log = log
        self._codec = codec_for(settings.format)
        self.transport = Transport(
            worker, settings.max_frame, loop, self._serve, self.progressed, self._lose, self.lock
        )
        self.inbox = self.transport.inbox
        self.inbox.forwards_logs = log is not None

    def introduce(self, hello: Any) -> None:
        """Take from the result of `hello` what is not known yet of the worker: its process id, and its limit."""
        self.worker.identify(hello)
        limit = hello.get("max_frame") if isinstance(hello, dict) else None
        if type(limit) is int and limit > 0:
            self._longest_request = min(self._longest_request, limit)

    def progressed(self) -> None:
        """Note, with the lock held, that a frame has been sent, or that nothing can be sent anymore."""
        raise NotImplementedError

    def answer(self, request: Incoming) -> None:
        """Answer a call of the worker later, on a thread or a task. Raises RuntimeError if that cannot be started."""
        raise NotImplementedError

    def lost(self) -> None:
        """Note the end of the worker. All calls have ended."""
        raise NotImplementedError

    @property
    def end_reason(self) -> str | None:
        """Return the reason why nothing can be sent anymore; None while the connection is open."""
        return self.transport.end_reason

    def request(
        self,
        call: OpenCall,
        args: Any,
        session_id: str | None,
        traceparent: str | None,
        timing: bool = False,
    ) -> None:
        """Open a call, and send its request. If the frame has to wait to be sent, it becomes the call's `outbox`.

        Raises NotEncodable and FrameTooLarge if the request cannot be encoded, WorkerCrashed if the worker has ended.
        """
        request = {"id": call.id, "command": call.command, "args": {} if args is None else args}
        if session_id is not None:
            request["session_id"] = session_id
        if call.timeout is not None:
            request["timeout_ms"] = call.timeout * 1000
        if call.events is not None:
            request["stream"] = True
        if timing:
            request["timing"] = True
        if traceparent is not None:
            request["traceparent"] = traceparent
        outbox = self.encoded(request, "args")
        try:
            self.inbox.open(call)
            if not self.transport.write(outbox):
                call.outbox = outbox
        except ConnectionError:
            call.fail(self.crashed())
            raise self.crashed() from None
        except BaseException:
            call.cancel()
            raise

    def post(self, command: str, args: dict[str, Any]) -> None:
        """Send a request without waiting, and ignore its reply."""
        self.post_frame(self.encoded({"id": next(self.ids), "command": command, "args": args}, "args"))

    def post_frame(self, outbox: Outbox) -> None:
        """Send a frame without waiting. Has no effect if the worker has ended."""
        with contextlib.suppress(ConnectionError):  # every call will end with the worker
            self.transport.write(outbox)

    def reply(self, request: Incoming, result: Any) -> Outbox:
        """Return the frame that answers a call of the worker. Raises NotEncodable and FrameTooLarge."""
        return self.encoded({"id": request.id, "success": True, "result": result}, "result")

    def chunk(self, request: Incoming, text: str) -> Outbox | None:
        """Return the frame that announces a piece of a model's reply, or None if the worker does not want that.

        Raises CallCancelled once the call that needs the reply has ended.
        """
        if request.call_id is not None and request.call_id not in self.inbox.calls:
            raise CallCancelled("the call that needs the reply has ended")
        if not text or not request.args.get("stream"):
            return None
        return self.encoded({"id": request.id, "event": "chunk", "data": {"text": text}}, "data")

    def failure(self, request: Incoming, error: BaseException, is_logged: bool = True) -> Outbox:
        """Return the frame that answers a call of the worker with an error.

        The error is logged with its stack if `is_logged`, unless it is a mistake of the language model, or nobody needs
        the reply.
        """
        if is_logged and not isinstance(error, WrongArguments | CallCancelled):
            with contextlib.suppress(Exception):  # a logging handler may fail; the reply must be sent
                kind = KINDS.get(request.command or "", request.command)
                _log.error("%s %s failed", kind, request.args.get("name"), exc_info=error)
        return self._error_reply(request, error)

    def encoded(self, message: dict[str, Any], name: str) -> Outbox:
        """Return `message` as a frame. name: the key of the caller's values. Raises NotEncodable, FrameTooLarge."""
        limit = self._longest_request
        outbox = self._codec.encoded(message, message[name], name, name, limit, uses_buffers=True)
        if outbox is None:
            raise errors.FrameTooLarge(f"{name} takes more than the {limit} bytes of a frame", limit=limit)
        return outbox

    def decode(self, frame: Frame) -> Incoming:
        """Return the message in a frame. Raises InvalidFrame."""
        return decoded(frame, Incoming, self._max_frame, self._max_values)

    def expire_calls(self) -> float:
        """End the calls whose time is over and that no caller waits for.

        Return when to check again, in seconds of time.monotonic(): infinity if none of the others has a deadline.
        """
        now, next_check = monotonic(), inf
        for call in list(self.inbox.calls.values()):
            if not call.caller_waits and (last := call.last_moment) is not None:
                if last <= now:
                    call.expire()
                else:
                    next_check = min(next_check, last)
        return max(next_check, now + LEAST_PAUSE)

    def crashed(self) -> errors.WorkerCrashed:
        """Return the error for a call that has no reply because the worker has ended."""
        return errors.WorkerCrashed(self.end_reason or self.worker.input_closed, **self.worker.crash_details())

    def _serve(self, kind: int, subject: Any) -> None:
        """Do a job of the inbox. Raises InvalidFrame for a frame that cannot be read and belongs to no call."""
        if kind == CONCLUDE:
            subject.conclude()
        elif kind == EVENT:
            subject.wake()
        elif kind == PAUSE:
            subject.pause()
        elif kind == RECEIVE:
            self._receive(subject)
        elif kind == REFUSE:
            beginning, error = subject
            self._refuse(envelope_beginning(beginning), error)

    def _receive(self, frame: Frame) -> None:
        """Pass on a frame that is not recognized by its first bytes."""
        try:
            incoming = self.decode(frame)
        except errors.BridgeError as error:
            self._refuse(envelope_beginning(frame), error)
            return
        if incoming.command is not None:
            try:
                self.answer(incoming)
            except RuntimeError as error:
                self.post_frame(self._error_reply(incoming, errors.Overloaded(f"the host: {error}")))
            return
        call = self.inbox.calls.get(incoming.id)  # type: ignore[arg-type]  # our ids are integers
        if incoming.event == "log" and self._log is not None:
            self._log(incoming.data)
        elif incoming.event is not None:
            if call is not None:
                self.inbox.add_event(call, frame)
        elif incoming.id is None:
            self._receive_refusal(incoming)
        elif call is not None:
            self.inbox.settle(call, frame)

    def _refuse(self, envelope: Frame, error: errors.BridgeError) -> None:
        """Fail the call that an unreadable frame belongs to. Raises `error` if it belongs to none."""
        format = format_of(envelope)
        call = self.inbox.calls.get(format.find_id(envelope)) if format else None  # type: ignore[arg-type]
        if call is None:
            raise error
        call.cancel(undecodable(error))  # in the worker too: the frame may have been an event of a call that goes on

    def _error_reply(self, request: Incoming, error: BaseException) -> Outbox:
        text = shorten(error_text(error), LONGEST_ERROR).encode("utf-8", "replace").decode()
        reply = {"id": request.id, "success": False, "error": text, "code": errors.HandlerError.code}
        if isinstance(error, errors.BridgeError):
            reply["code"] = error.code
            with contextlib.suppress(Exception):  # its details may be anything
                return self.encoded({**reply, "details": redact_in(error.details)}, "details")
        return self.encoded(reply, "error")

    def _receive_refusal(self, refusal: Incoming) -> None:
        """Fail the only open call if the worker refuses a frame whose id it could not read."""
        error = errors.from_reply(refusal.code, refusal.error, refusal.category, refusal.details)
        open_calls = list(self.inbox.calls.values())
        if len(open_calls) == 1:
            open_calls[0].fail(error)
        else:
            _log.error("the worker refused a frame; a call will have no reply: %s", error)

    def _lose(self) -> None:
        for call in list(self.inbox.calls.values()):
            call.fail(self.crashed())
        self.lost()


def decoded(frame: Frame, kind: type[Message], max_frame: int, max_values: int) -> Message:
    """Return the message of a kind in a frame, with arrays in place of its buffers. Raises InvalidFrame."""
    try:
        has_buffers = is_multipart(frame)
        envelope = envelope_of(frame) if has_buffers else frame
        format = format_of(envelope)
        if format is None:
            raise errors.InvalidFrame(unknown_format(envelope))
        incoming: Message = format.decode(limited(envelope, max_frame, max_values), kind)
        if has_buffers:
            _substitute(incoming, buffers_of(frame))
        return incoming
    except Exception as error:
        if isinstance(error, errors.FrameTooLarge | errors.Overloaded | errors.InvalidFrame):
            raise
        raise errors.InvalidFrame(f"{type(error).__name__}: {errors.text_of(error)}") from error


def _substitute(incoming: Any, buffers: tuple[Frame, ...]) -> None:
    if incoming.success is not None:
        incoming.result = substitute(incoming.result, buffers)
    elif incoming.event is not None:
        incoming.data = substitute(incoming.data, buffers)
    else:
        incoming.args = substitute(incoming.args, buffers)


_log = logging.getLogger("bridge")
