"""The dispatcher: request bytes in, reply bytes out, no pipe in sight.

The compiled path (`_dispatch.pyx`) answers what is well-formed and inline; here is everything that
takes a decision: what a broken request is answered, which thread runs a call, and when.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Self

import msgspec

from bridge import errors
from bridge._dispatch import Command, Context, Path, timestamp
from bridge._framing import Frame, Outbox
from bridge._watch import in_fork
from bridge.adapter import Adapter, AdapterFailed
from bridge.options import DEFAULTS, Options
from bridge.security.redaction import first_line
from bridge.telemetry import logs
from bridge.telemetry.logs import debug, logging_call, shown, warn
from bridge.wire.arrays import args_decoder
from bridge.wire.codec import Format, by_name
from bridge.wire.messages import Envelope, Failure, Id, Negotiation, ReceivedReply, Selection, failure
from bridge.wire.tensors import substitute
from bridge.worker import control, exporters, process, session_commands
from bridge.worker.calls import wake
from bridge.worker.order import Turn
from bridge.worker.session import Session
from bridge.worker.sessions import SessionArgs, Sessions
from bridge.worker.state import Worker
from bridge.worker.threads import Job

if TYPE_CHECKING:
    from bridge.adapter import Handler
    from bridge.worker.stores.protocol import Store

WARN_EVERY = 60.0  # seconds, at most so often, of overload


class Dispatcher:
    """Answers requests with the commands of `adapter` and with those that every worker has.

    store: where durable sessions are stored, in place of the one that `options` names.
    Raises StoreFailed if that cannot be opened, AdapterFailed, ValueError if an item of `options.api_bases` is not a
    pattern of addresses.
    """

    def __init__(self, adapter: Adapter, options: Options = DEFAULTS, *, store: Store | None = None) -> None:
        self.worker = Worker(adapter, options, store, self.end)
        self.worker.prometheus = exporters.refuse_while_loading if options.telemetry else exporters.refuse_while_off
        self.commands, self.sessions = self.worker.commands, self.worker.sessions
        self.calls, self.threads, self.host = self.worker.calls, self.worker.threads, self.worker.host
        self.arrival = threading.Lock()  # requests arrive one at a time, also without a pipe
        self._loading: list[threading.Thread] = []
        self._overloads = 0
        self._next_overload_warning = 0.0
        self.path = self.worker.path = Path(
            self.commands, self.calls.open, self, self.worker, options.max_frame, options.max_values
        )
        for each in (adapter, control.adapter, session_commands.adapter):
            self.add(each)

    def add(self, adapter: Adapter) -> None:
        """Add the commands of `adapter`. Raises AdapterFailed where one is there already."""
        for spec in adapter.commands.values():
            if spec.name in self.commands:
                raise AdapterFailed(f"two adapters have a command {spec.name!r}")
            decode = None if spec.args is None else args_decoder(spec.args)
            run = spec.handler
            if spec.lane.changes:
                run = partial(_in_turn, self.sessions, spec.handler)
            self.commands[spec.name] = Command(spec.name, run, decode, spec.lane.inline, spec)

    def start(self) -> None:
        """Load on threads what commands will need. Otherwise they load it when they are first called."""
        adapter = self.worker.adapter
        if self.worker.options.telemetry:
            self._in_background(exporters.load, self.worker)
        if adapter.warm_up is not None:
            self._in_background(_warm_up, adapter.name, adapter.warm_up)

    def stop_calls(self) -> None:
        """Ask open calls to stop, and wait up to `options.grace` seconds for them."""
        self.calls.stop_all()
        self.threads.drain(self.worker.options.grace)

    def close_store(self) -> None:
        """Close the store, if there is one, and wait up to `options.grace` seconds for that. It has all changes that
        were acknowledged."""
        if self.sessions.store is not None:
            closing = threading.Thread(target=self.sessions.store.close, daemon=True)
            closing.start()
            closing.join(self.worker.options.grace)

    def close(self) -> int:
        """End all calls and threads, and close the store. Return the number of threads that did not end.

        Open calls have `options.grace` seconds to finish. Those that do not are answered `cancelled`; their handlers
        have as long again, but at least a second, to reach their next step.
        """
        patience = max(self.worker.options.grace, 1.0)
        is_stuck = not self._wait_for_inline(patience)
        logs.forward(None, self.worker)
        self.stop_calls()
        for context in list(self.calls.open.values()):
            self.end(context, errors.Cancelled("the worker is closed"))
        ending = time.monotonic() + patience
        left = self.threads.stop(patience)
        left += not self.calls.stop(max(0.0, ending - time.monotonic()))
        for thread in self._loading:
            thread.join()
        self.close_store()
        return left + (is_stuck and not self._wait_for_inline(0.0))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait_for_inline(self, timeout: float) -> bool:
        """Wait for the inline command that runs, if one does. Return whether it has ended within `timeout` seconds."""
        has_ended = self.arrival.acquire(timeout=timeout)
        if has_ended:
            self.arrival.release()
        return has_ended

    def _in_background(self, load: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=load, args=args, name="bridge-warm-up", daemon=True)
        thread.start()
        self._loading.append(thread)

    def call(self, request: Any, timeout: float | None = None) -> bytes:
        """Return the reply to `request` (a payload without its length; any buffer), waited for.

        Raises TimeoutError if it takes longer than `timeout` seconds.
        """
        outbox = Outbox()
        done = threading.Event()
        late: list[Outbox] = []

        def deliver(reply: Outbox) -> None:
            late.append(reply)
            done.set()

        with self.arrival:
            self.path.answer(Frame.of(request), outbox, deliver)
        if len(outbox):
            return outbox.payload()
        if not done.wait(timeout):
            raise TimeoutError(f"no reply within {timeout} s")
        return late[0].payload()

    # What the compiled path asks for.

    def defer(self, context: Context) -> Failure | None:
        """Queue a call behind its session's earlier ones, or say why not."""
        try:
            self._refuse_overload(context)
            context.sessions = self._sessions_of(context)
            context.host = self.host
            context.job = Job(partial(self._run, context))
            context.gate = threading.Lock()
            context.turn = self._turn_of(context)
            self.calls.add(context)
            context.turn.enter()
        except Exception as error:
            self.calls.remove(context)
            return self._refused(self.fail(context, error))
        return None

    def refuse(
        self,
        format: Format | None,
        frame: Any,
        buffers: tuple[Frame, ...] | None,
        error: Exception,
    ) -> Failure | Selection | None:
        """Return the reply to a frame that cannot be read; None if it was the reply to a host call, which
        then fails."""
        request_id = None if format is None else format.find_id(frame)
        if self.host.is_asked(request_id):
            self.host.deliver(_unreadable(request_id, error))
            return None
        return self._refused(failure(request_id, _envelope_error(error), timestamp()))

    def receive(
        self, format: Format, frame: Any, buffers: tuple[Frame, ...] | None, message: Envelope
    ) -> Failure | Selection | None:
        """Take in a message that is not a request: the reply to a host call, or a negotiation of the format.

        Returns the reply to it, if any.
        """
        try:
            if message.command is None and message.success:
                self.host.deliver(_host_reply(format, frame, buffers))
                return None
            if message.command is None and message.type:
                return self._negotiate(format.decode(frame, Negotiation))
            missing = "id" if message.id is None else "command"
            raise errors.InvalidRequest(f"not a request: Object missing required field `{missing}`")
        except Exception as error:
            return self.refuse(format, frame, buffers, error)

    def reject(self, context: Context) -> Failure:
        """Return the answer to a request whose command is unknown or whose id is taken."""
        name = context.request.command
        error: errors.BridgeError
        if name in self.commands:
            error = errors.DuplicateId(f"a call with id {errors.shown(context.id)} is open already")
        else:
            error = errors.UnknownCommand(f"Unknown command: {str(name)[: errors.SHOWN]}", known=sorted(self.commands))
        return self._refused(failure(context.id, error, timestamp()))

    def fail(self, context: Context, error: BaseException) -> Failure:
        """Return the answer to a call whose handler raised."""
        if isinstance(error, errors.CallEnded) and context.ended is not None:
            error = context.ended
        # On a thread: too many calls wait for the host.
        if isinstance(error, errors.Overloaded) and context.running and context.job is not None:
            self._note_overload(error.message)
        if not isinstance(error, errors.BridgeError):
            with logging_call(context):
                warn(f"handler of {context.command.name} failed", error=error)
            error = errors.HandlerError(_one_line(error), type=type(error).__name__)
        return failure(context.id, error, timestamp())

    def not_encodable(self, context: Context, error: BaseException) -> Failure:
        """Return the answer where the result does not go into the request's format, or into
        a frame."""
        name = context.command.name
        if isinstance(error, MemoryError):
            error = errors.Overloaded.without_memory(f"to encode the result of {name}")
        if not isinstance(error, errors.BridgeError):
            error = errors.NotEncodable(
                f"the result of {name} cannot be encoded as {context.format.name}: {_one_line(error)}"
            )
        return failure(context.id, error, timestamp())

    def broken(self, request_id: Id | None, error: BaseException) -> Failure:
        """Return the answer where answering itself failed."""
        return failure(request_id, _fault(error), timestamp())

    def _refused(self, reply: Failure) -> Failure:
        self.worker.refused[reply.category] += 1
        debug("refused %r: %s: %.300s", shown(reply.id), reply.code, reply.error)
        if reply.code == errors.Overloaded.code:
            self._note_overload(reply.error)
        return reply

    def _note_overload(self, why: str) -> None:
        """Warn that calls are refused, but not of each."""
        self._overloads += 1
        now = time.monotonic()
        if now >= self._next_overload_warning:
            self._next_overload_warning = now + WARN_EVERY
            warn(f"calls are refused as overloaded ({self._overloads} so far): {why}")

    # Calls on threads.

    def _turn_of(self, context: Context) -> Turn:
        """Where the call waits for the ones before it. No session ever waits for another one: a
        change for all waits for no session, and what ends sessions holds none up."""
        start = partial(self.threads.submit, context.job)
        lane, changes = context.command.spec.lane, self.sessions.changes
        orders = [session.order for session in context.sessions]
        if _is_for_all(context):
            return Turn([changes], start)
        if lane.sessions == "all":
            return Turn([], start, orders)
        if not lane.loads or not changes.is_taken:
            context.shared = self.sessions.shared
            return Turn(orders, start)

        def see() -> None:
            context.shared = self.sessions.shared

        return Turn(orders, start, [changes], see)

    def _sessions_of(self, context: Context) -> list[Session]:
        """Those whose earlier calls come first; `end_…` lanes take theirs out of the table."""
        lane = context.command.spec.lane
        if lane.sessions == "none":
            return []
        # What ends sessions must not do so by args that it refuses.
        if lane.ends and context.command.decode is not None:
            context.command.decode(context.format, context.request.args, context.buffers)
        if lane.sessions == "all":
            return self.sessions.detach_all()
        if context.session_id is None:
            args = context.format.decode_args(context.request.args, SessionArgs, undecodable="refuse")
            context.session_id = args.session_id
        if lane.shares and context.session_id in (None, self.sessions.default_id):
            context.session_id = None
        if not lane.ends:
            return [self.sessions.open(context.session_id)]
        if context.session_id is None:
            raise errors.InvalidArgs("Session ID is required", path="args.session_id")
        return self.sessions.detach(context.session_id)

    def _run(self, context: Context) -> None:
        outbox, lane = Outbox(), context.command.spec.lane
        try:
            self.calls.end_if_late(context)
            self._load(context)
            if not lane.changes and lane.loads:
                context.release()
            if not context.answered:
                with logging_call(context):
                    self.path.run(context, outbox)
        except BaseException as error:  # a fault of ours must not cost the caller its reply
            outbox = Outbox()
            self.path.finish(context, outbox, self.broken(context.id, error))
            with logging_call(context):
                warn("a call broke the dispatcher", error=error)
        finally:
            # The next call must not change what this one's reply is still to be sent from.
            sends_first = outbox.apart and lane.changes
            try:
                if not sends_first:
                    context.release()
            finally:
                self._reply(context, outbox)
                context.release()

    def _load(self, context: Context) -> None:
        """Have the call's session as it was stored; a call that cannot is over."""
        session = context.session
        if session is None or context.answered or not context.command.spec.lane.loads:
            return
        if _is_for_all(context):
            return
        try:
            self.sessions.load(session)
        except errors.BridgeError as error:
            self.end(context, error)

    def end(self, context: Context, error: errors.BridgeError) -> bool:
        """Answer a call in place of its handler, which stops at its next step; whether it had
        no reply yet."""
        if not context.claim(error):
            return False
        wake(context)
        if not self._still_changes(context):
            context.release()
        if self.threads.write_off(context.job):
            debug(
                "the thread of %s %r does not come back; %d such threads",
                context.command.name,
                shown(context.id),
                self.threads.lost,
            )
        outbox = Outbox()
        self.path.finish(context, outbox, failure(context.id, error, timestamp()))
        self._reply(context, outbox)
        return True

    def _still_changes(self, context: Context) -> bool:
        """Whether the handler of an ended call keeps its turn until it is back: half of what it
        changes must not be stored with the next call's changes."""
        is_stored = self.sessions.store is not None and context.command.spec.lane.loads
        return is_stored and context.has_turn and not _is_for_all(context)

    def _reply(self, context: Context, outbox: Outbox) -> None:
        if not len(outbox):
            return
        if context.session is not None:  # first: what has open calls does not expire
            context.session.used = time.monotonic()
            context.session.is_new = False
        self.calls.remove(context)
        with contextlib.suppress(OSError):  # the host is gone
            rest = context.deliver(outbox)
            if rest is not None:
                rest()

    def await_resume(self, context: Context) -> None:
        """Wait until the host lets a paused stream go on, or the call is over."""
        with self.threads.waiting_for_host(context.job):
            context.paused.wait()

    def end_fork(self, error: BaseException | None) -> NoReturn:
        """End the child of a fork that comes back from a handler: the worker answers the call."""
        process.end_fork(error)

    def _refuse_overload(self, context: Context) -> None:
        open_calls, held, lost = len(self.calls.open), self.calls.bytes, self.threads.lost
        if open_calls >= self.threads.limit + self.threads.waiting + self.worker.options.queue:
            why = f"{open_calls} calls are open"
        elif lost > self.threads.limit:
            why = f"{lost} threads do not come back"
        elif held and held + context.frame_bytes > self.worker.options.queue_bytes:
            why = f"the requests of {open_calls} open calls have {held} bytes (--queue-bytes)"
        else:
            return
        details = {"retry_after": errors.RETRY_AFTER}
        if stuck := self.worker.stuck_s:
            details["stuck_s"] = round(stuck, 1)
        raise errors.Overloaded(why, **details)

    def _negotiate(self, offer: Negotiation) -> Selection:
        if offer.type != "protocol_negotiation":
            raise errors.InvalidRequest(f"not a request: unknown type {errors.shown(offer.type)}")
        known = [name for name in (self.worker.options.protocol, offer.preferred, *offer.supported) if name]
        chosen = next((name for name in known if by_name(name)), "json")
        return Selection("protocol_selected", chosen, timestamp())


def _warm_up(name: str, warm_up: Callable[[], None]) -> None:
    started = time.monotonic()
    warm_up()
    logs.info(f"the libraries of {name} are loaded: {time.monotonic() - started:.1f} s")


def _host_reply(format: Format, frame: Any, buffers: tuple[Frame, ...] | None) -> ReceivedReply:
    """The host's reply to a call of the worker. Raises what decoding raises."""
    reply: ReceivedReply = format.decode(frame, ReceivedReply)
    if reply.success is None:
        raise errors.InvalidRequest("a reply whose `success` is null")
    if buffers is not None:
        reply.result = substitute(reply.result, buffers)
    return reply


def _unreadable(request_id: Id | None, error: Exception) -> ReceivedReply:
    """The failure in place of a reply of the host that cannot be read."""
    if isinstance(error, MemoryError):
        error = errors.Overloaded.without_memory("to decode it")
    text = f"the reply of the host cannot be read: {errors.text_of(error)}"
    code = error.code if isinstance(error, errors.BridgeError) else errors.InvalidFrame.code
    return ReceivedReply(request_id, False, error=text, code=code)


def _is_for_all(context: Context) -> bool:
    """Whether the call changes what all sessions share, and no session."""
    return context.command.spec.lane.shares and context.session_id is None


def _in_turn(sessions: Sessions, handler: Handler, args: Any, context: Context) -> Any:
    """Run a handler that changes its session. Of a durable one the changes are on disk when this
    returns, and taken back where it raises."""
    if _is_for_all(context):
        return _change_for_all(sessions, handler, args, context)
    session: Session = context.session
    try:
        result = handler(args, context)
        if context.has_turn and not in_fork():
            session.commit()
    except BaseException:
        if context.has_turn and not in_fork():
            session.undo()
        raise
    return result


def _change_for_all(sessions: Sessions, handler: Handler, args: Any, context: Context) -> Any:
    """Run a handler that changes what all sessions share: a copy of it, which counts from then on
    if the handler returns before the call is over."""
    context.shared = dict(sessions.shared)
    result = handler(args, context)
    with context.gate:
        if not context.answered:
            sessions.shared = context.shared
    return result


def _envelope_error(error: Exception) -> errors.BridgeError:
    if isinstance(error, errors.BridgeError):
        return error
    if isinstance(error, MemoryError):
        return errors.Overloaded.without_memory("to decode the request")
    if isinstance(error, RecursionError):
        return errors.InvalidRequest("the request is nested too deeply")
    if isinstance(error, msgspec.ValidationError):
        return errors.InvalidRequest(f"not a request: {errors.text_of(error)}")
    return errors.InvalidFrame(f"the frame does not decode: {errors.text_of(error)}")


def _fault(error: BaseException) -> errors.BridgeError:
    if isinstance(error, MemoryError):
        return errors.Overloaded.without_memory("to answer the call")
    return errors.Internal(f"a fault of the worker: {type(error).__name__}")


def _one_line(error: BaseException) -> str:
    """The error's first line behind its type."""
    name, text = type(error).__name__, first_line(errors.words_of(error), 1000)
    return f"{name}: {text}" if text else name
