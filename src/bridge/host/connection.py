"""A connection to one worker: send requests, route what arrives to the calls, answer the worker's calls."""

from __future__ import annotations

import contextlib
import itertools
import logging
import sys
import threading
from typing import Any

from bridge import errors
from bridge._framing import Frame, Outbox, buffers_of, envelope_beginning, envelope_of, is_multipart
from bridge.host.calls import Call, OnEvent, OpenCalls
from bridge.host.launch import WorkerProcess
from bridge.host.pipes import Pipes
from bridge.host.timeouts import seconds_of
from bridge.host.tools import Tools, WrongArguments, error_text
from bridge.security.redaction import shorten
from bridge.wire._frames import codec_for, format_of, unknown_format
from bridge.wire._limits import limited
from bridge.wire.codec import Format
from bridge.wire.messages import Incoming
from bridge.wire.tensors import substitute

LONGEST_ERROR = 1000  # characters of a tool's error that are sent to the worker


class Connection:
    """The calls to one worker and the worker's calls back, over its pipes. Usable from any number of threads.

    tools: the functions that the worker may call.
    """

    def __init__(self, process: WorkerProcess, format: Format, max_frame: int, max_values: int) -> None:
        self.process = process
        self.format = format
        self.tools = Tools()
        self._max_frame = max_frame
        self._max_values = max_values
        self._ids = itertools.count(1)
        lock = threading.RLock()
        self._open_calls = OpenCalls(process, self._post, lock)
        self._pipes = Pipes(process, max_frame, self._receive, self._refuse_unread, self._fail_open_calls, lock)

    @property
    def end_reason(self) -> str | None:
        """Return the reason why nothing can be sent anymore; None while the connection is open."""
        return self._pipes.end_reason

    @property
    def is_usable(self) -> bool:
        """Return whether the worker belongs to this process, which is neither a fork nor ending."""
        return self._open_calls.are_usable

    def call(
        self,
        command: str,
        args: Any,
        timeout: float | None,
        session_id: str | None,
        traceparent: str | None,
        *,
        stream: bool = False,
        timing: bool = False,
        on_event: OnEvent | None = None,
    ) -> Call:
        """Send a request, and return its open call. The parameters are those of `Client.submit`.

        Raises NotEncodable and FrameTooLarge if the request cannot be encoded, DeadlineExceeded if
        the worker does not accept it in time, WorkerCrashed if the worker has ended.
        """
        self.process.check_own()
        if sys.is_finalizing():  # the threads that would receive the reply have stopped
            raise RuntimeError("a Client cannot call its worker while the interpreter is ending")
        seconds = seconds_of(timeout)
        call = Call(self._open_calls, next(self._ids), command, seconds, has_events=stream)
        request = {"id": call.id, "command": command, "args": {} if args is None else args}
        if session_id is not None:
            request["session_id"] = session_id
        if seconds is not None:
            request["timeout_ms"] = seconds * 1000
        if stream:
            request["stream"] = True
        if timing:
            request["timing"] = True
        if traceparent is not None:
            request["traceparent"] = traceparent
        self._send(call, self._encoded(request, "args"), on_event)
        return call

    def ignore_reply(self, call: Call) -> None:
        """Close a call, so that its reply is dropped."""
        self._open_calls.claim(call)

    def close(self, reason: str, timeout: float | None) -> int:
        """End the worker, killing it after `timeout` seconds, and return its exit status."""
        self._pipes.close(reason, timeout)
        assert self.process.exit_status is not None
        return self.process.exit_status

    def _send(self, call: Call, outbox: Outbox, on_event: OnEvent | None) -> None:
        self._open_calls.by_id[call.id] = call
        try:
            if on_event is not None:
                call.listen(on_event)
            self._pipes.send(outbox, call.deadline)
        except TimeoutError:
            call.expire()
            call.result()
        except ConnectionError as error:
            self._pipes.wait_until_lost()
            call.fail(self._crashed())
            raise self._crashed() from error
        except BaseException:
            call.cancel()
            raise

    def _post(self, command: str, args: dict[str, Any]) -> None:
        request = {"id": next(self._ids), "command": command, "args": args}
        self._pipes.post(self._encoded(request, "args"))

    def _encoded(self, message: dict[str, Any], name: str) -> Outbox:
        """Return `message` as a frame. name: the key of the caller's values. Raises NotEncodable, FrameTooLarge."""
        codec, limit = codec_for(self.format), self._max_frame
        outbox = codec.encoded(message, message[name], name, name, limit, uses_buffers=True)
        if outbox is None:
            raise errors.FrameTooLarge(f"{name} takes more than the {limit} bytes of a frame", limit=limit)
        return outbox

    def _receive(self, frame: Frame) -> None:
        """Pass a frame to the call that it belongs to. Raises InvalidFrame if it belongs to none."""
        envelope, format = frame, None
        try:
            has_buffers = is_multipart(frame)
            if has_buffers:
                envelope = envelope_of(frame)
            format = format_of(envelope)
            if format is None:
                raise errors.InvalidFrame(unknown_format(envelope))
            envelope = limited(envelope, self._max_frame, self._max_values)
            incoming: Incoming = format.decode(envelope, Incoming)
            if has_buffers:
                _substitute(incoming, buffers_of(frame))
        except Exception as error:
            self._refuse(format, envelope, error)
            return
        if incoming.command is not None:
            self._answer_on_a_thread(incoming)
        elif incoming.event is not None:
            call = self._open_calls.by_id.get(incoming.id)  # type: ignore[arg-type]  # our ids are integers
            if call is not None:
                call.add_event(incoming.event, incoming.data)
        elif incoming.id is None:
            self._receive_refusal(incoming)
        else:
            call = self._open_calls.by_id.get(incoming.id)  # type: ignore[arg-type]
            if call is not None:
                call.settle(incoming)

    def _refuse(self, format: Format | None, frame: Frame, error: Exception) -> None:
        """Fail the call that an unreadable frame belongs to. Raises InvalidFrame if it belongs to none."""
        text = errors.text_of(error)
        if not isinstance(error, errors.BridgeError):
            text = f"{type(error).__name__}: {text}"
        call = self._open_calls.by_id.get(format.find_id(frame)) if format else None  # type: ignore[arg-type]
        if call is None:
            raise errors.InvalidFrame(text) from error
        if not isinstance(error, errors.FrameTooLarge | errors.Overloaded):
            error = errors.InvalidFrame(f"the reply does not decode: {text}")
        if call.fail(error):
            self._post("cancel", {"id": call.id})  # the frame may have been an event of a call that goes on

    def _refuse_unread(self, beginning: Frame, error: errors.BridgeError) -> None:
        envelope = envelope_beginning(beginning)
        self._refuse(format_of(envelope), envelope, error)

    def _receive_refusal(self, refusal: Incoming) -> None:
        """Fail the only open call if the worker refuses a frame whose id it could not read."""
        error = errors.from_reply(refusal.code, refusal.error, refusal.category, refusal.details)
        open_calls = list(self._open_calls.by_id.values())
        if len(open_calls) == 1:
            open_calls[0].fail(error)
        else:
            _log.error("the worker refused a frame; a call will have no reply: %s", error)

    def _answer_on_a_thread(self, request: Incoming) -> None:
        try:
            self._open_calls.threads.run(lambda: self._answer(request))
        except RuntimeError as error:
            reply = _failure(request, errors.Overloaded(f"the host: {error}"))
            self._pipes.post(self._encoded(reply, "error"))

    def _answer(self, request: Incoming) -> None:
        """Reply to a call of the worker's, whatever its tool raises."""
        try:
            if request.command != "call_tool":
                raise errors.UnknownCommand(f"Unknown command: {request.command}")
            result = self.tools.call(request.args)
            outbox = self._encoded({"id": request.id, "success": True, "result": result}, "result")
        except BaseException as error:
            outbox = self._encoded(_failure(request, error), "error")
            if not isinstance(error, WrongArguments):  # those are a mistake of the language model
                with contextlib.suppress(Exception):  # a logging handler may fail; the reply must be sent
                    _log.exception("tool %s failed", request.args.get("name"))
        with contextlib.suppress(OSError):  # the worker has ended
            self._pipes.send(outbox)

    def _fail_open_calls(self) -> None:
        for call in list(self._open_calls.by_id.values()):
            call.fail(self._crashed())

    def _crashed(self) -> errors.WorkerCrashed:
        return errors.WorkerCrashed(self.end_reason or "", **self.process.crash_details())


def _failure(request: Incoming, error: BaseException) -> dict[str, Any]:
    """Return the reply to a call of the worker's that failed."""
    code = error.code if isinstance(error, errors.BridgeError) else errors.HandlerError.code
    text = shorten(error_text(error), LONGEST_ERROR).encode("utf-8", "replace").decode()
    return {"id": request.id, "success": False, "error": text, "code": code}


def _substitute(incoming: Incoming, buffers: tuple[Frame, ...]) -> None:
    incoming.result = substitute(incoming.result, buffers)
    incoming.data = substitute(incoming.data, buffers)
    incoming.args = substitute(incoming.args, buffers)


_log = logging.getLogger("bridge")
