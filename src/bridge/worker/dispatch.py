"""The dispatcher: bytes of requests in, bytes of replies out, without a pipe.

The compiled path (`_dispatch.pyx`) answers well-formed requests of inline commands. The decisions are made here: the
reply to a broken request, which thread runs a call, and when.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Self

import msgspec

from bridge import errors
from bridge._dispatch import Command, Context, FastPath, timestamp
from bridge._framing import Frame, Outbox
from bridge.adapter import Adapter, AdapterFailed
from bridge.options import DEFAULTS, Options
from bridge.telemetry import logs
from bridge.telemetry.logs import debug, logging_call, shown, warn
from bridge.wire.arrays import args_decoder
from bridge.wire.codec import Format, by_name
from bridge.wire.messages import Envelope, Failure, Id, Negotiation, Selection, failure
from bridge.worker import control, exporters, failures, limits, process, session_commands
from bridge.worker.calls import Call, change_shared
from bridge.worker.host_calls import decoded_reply, unreadable
from bridge.worker.order import Turn
from bridge.worker.session import Session, in_transaction
from bridge.worker.sessions import SessionArgs
from bridge.worker.state import Worker
from bridge.worker.threads import Job

if TYPE_CHECKING:
    from bridge.worker.stores.protocol import Store

WARN_EVERY = 60.0  # seconds between warnings of overload


class Dispatcher:
    """Answers requests with the commands of `adapter` and with those that every worker has.

    store: the store of durable sessions; None: the one that `options` names, if any.
    Raises StoreFailed if the store cannot be opened, AdapterFailed if two adapters have the same command, ValueError if
    an item of `options.api_bases` is not a pattern of addresses.
    """

    def __init__(self, adapter: Adapter, options: Options = DEFAULTS, *, store: Store | None = None) -> None:
        self.worker = Worker(adapter, options, store)
        self.worker.prometheus = exporters.refuse_while_loading if options.telemetry else exporters.refuse_while_off
        self.commands, self.sessions = self.worker.commands, self.worker.sessions
        self.calls, self.threads, self.host = self.worker.calls, self.worker.threads, self.worker.host
        self.arrival = threading.Lock()  # requests arrive one at a time, also without a pipe
        self._loading: list[threading.Thread] = []
        self._overloads = 0
        self._next_overload_warning = 0.0
        new_call = partial(Call, self.threads, self.host)
        self.path = self.worker.path = self.calls.path = FastPath(
            self.commands, self.calls.open, new_call, self, self.worker, options.max_frame, options.max_values
        )
        for each in (adapter, control.adapter, session_commands.adapter):
            self.add(each)

    def add(self, adapter: Adapter) -> None:
        """Add the commands of `adapter`. Raises AdapterFailed if another adapter has one of them."""
        for spec in adapter.commands.values():
            if spec.name in self.commands:
                raise AdapterFailed(f"two adapters have a command {spec.name!r}")
            decode = None if spec.args is None else args_decoder(spec.args)
            run = spec.handler
            if spec.lane.shares:
                run = partial(change_shared, self.sessions, spec.handler)
            elif spec.lane.changes:
                run = partial(in_transaction, spec.handler)
            self.commands[spec.name] = Command(spec.name, run, decode, spec.lane.inline, spec)

    def start(self) -> None:
        """Start to load, on other threads, what commands need. Without this they load it when they are first called."""
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
            self.calls.end(context, errors.Cancelled("the worker is closed"))
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
        """Wait for the inline command that is running, if any. Return whether it has ended within `timeout` seconds."""
        has_ended = self.arrival.acquire(timeout=timeout)
        if has_ended:
            self.arrival.release()
        return has_ended

    def _in_background(self, load: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=load, args=args, name="bridge-warm-up", daemon=True)
        thread.start()
        self._loading.append(thread)

    def call(self, request: Any, timeout: float | None = None) -> bytes:
        """Wait for the reply to `request`, the payload of a frame in any buffer, and return its payload.

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

    # Called by the compiled path.

    def defer(self, call: Call) -> Failure | None:
        """Queue a call after the earlier ones of its sessions. Return the reply if the call is refused."""
        try:
            self._refuse_overload(call)
            call.sessions = self._sessions_of(call)
            call.job = Job(partial(self.calls.run, call))
            call.turn = self._turn_of(call)
            self.calls.add(call)
            call.turn.enter()
        except Exception as error:
            self.calls.remove(call)
            if isinstance(error, MemoryError):
                error = errors.Overloaded.without_memory("to queue the call")
            return self._refused(self.fail(call, error))
        return None

    def _sessions_of(self, call: Call) -> list[Session]:
        """Return the sessions whose earlier calls come first. If the call ends them, remove them from the table."""
        lane = call.lane
        if lane.sessions == "none":
            return []
        # A call must not end sessions if its args are refused.
        if lane.ends and call.command.decode is not None:
            call.command.decode(call.format, call.request.args, call.buffers)
        if lane.sessions == "all":
            return self.sessions.detach_all()
        if call.session_id is None:
            args = call.format.decode_args(call.request.args, SessionArgs, undecodable="refuse")
            call.session_id = args.session_id
        if lane.shares and call.session_id in (None, self.sessions.default_id):
            call.session_id = None
            call.changes_shared = True
        if not lane.ends:
            return [self.sessions.open(call.session_id)]
        if call.session_id is None:
            raise errors.InvalidArgs("Session ID is required", path="args.session_id")
        return self.sessions.detach(call.session_id)

    def _turn_of(self, call: Call) -> Turn:
        """Return the turn that the call waits for, which starts its job.

        No session ever waits for another one: a change for all sessions waits for none of them, and a call that ends
        sessions delays none of them.
        """
        start = partial(self.threads.submit, call.job)
        orders = [session.order for session in call.sessions]
        changes = self.sessions.changes
        if call.changes_shared:
            return Turn([changes], start)
        if call.lane.sessions == "all":
            return Turn([], start, orders)
        if not call.lane.loads or not changes.is_taken:
            call.shared = self.sessions.shared
            return Turn(orders, start)

        def update_shared() -> None:
            call.shared = self.sessions.shared

        return Turn(orders, start, [changes], update_shared)

    def _refuse_overload(self, call: Call) -> None:
        open_calls, queued_bytes, lost = len(self.calls.open), self.calls.bytes, self.threads.lost
        if open_calls >= self.threads.limit + self.threads.waiting + self.worker.options.queue:
            why = f"{open_calls} calls are open"
        elif self.threads.unfinished > open_calls + self.threads.limit + self.worker.options.queue:
            why = "too many calls that are over are still in the queue of the threads"
        elif lost > self.threads.limit:
            why = f"{lost} threads are still busy with calls that are over"
        elif queued_bytes and queued_bytes + call.frame_bytes > self.worker.options.queue_bytes:
            why = f"the requests of {open_calls} open calls have {queued_bytes} bytes (--queue-bytes)"
        else:
            return
        stuck = self.worker.stuck_s
        raise errors.Overloaded.refused(why, **({"stuck_s": round(stuck, 1)} if stuck else {}))

    def refuse(
        self,
        format: Format | None,
        frame: Any,
        buffers: tuple[Frame, ...] | None,
        error: Exception,
    ) -> Failure | Selection | None:
        """Return the reply to a frame that is not a request.

        None if it belongs to a host call: an event, or the reply, without which the call fails if it cannot be read.
        """
        if format is not None and isinstance(error, msgspec.ValidationError):
            try:
                reply = decoded_reply(format, frame, buffers)
                if reply is not None:
                    self.host.deliver(reply)
                    return None
                if self.host.deliver_event(format, frame):
                    return None
                selection = self._negotiate(format, frame)
                if selection is not None:
                    return selection
            except (MemoryError, RecursionError) as raised:
                error = raised
        request_id = None if format is None else format.find_id(frame)
        if self.host.is_asked(request_id):
            self.host.deliver(unreadable(request_id, error))
            return None
        return self._refused(failure(request_id, failures.of_frame(error), timestamp()))

    def receive(
        self, format: Format, frame: Any, buffers: tuple[Frame, ...] | None, message: Envelope
    ) -> Failure | Selection | None:
        """Take in a message without id or command, and return the reply to it, if any."""
        missing = "id" if message.id is msgspec.UNSET else "command"
        error = msgspec.ValidationError(f"Object missing required field `{missing}`")
        return self.refuse(format, frame, buffers, error)

    def reject(self, context: Context) -> Failure:
        """Return the reply to a request whose command is unknown, or whose id an open call has."""
        name = context.request.command
        error: errors.BridgeError
        if name in self.commands:
            error = errors.DuplicateId(f"a call with id {errors.shown(context.id)} is open already")
        else:
            error = errors.UnknownCommand(f"Unknown command: {str(name)[: errors.SHOWN]}", known=sorted(self.commands))
        return self._refused(failure(context.id, error, timestamp()))

    def fail(self, context: Context, error: BaseException) -> Failure:
        """Return the reply to a call whose handler raised `error`."""
        if isinstance(context, Call):
            if isinstance(error, errors.CallEnded) and context.ended is not None:
                error = context.ended
            if isinstance(error, errors.Overloaded) and self.calls.open.get(context.id) is context:
                self._note_overload(error.message)  # for calls that are not open, `_refused` does that
        if not isinstance(error, errors.BridgeError):
            with limits.lifted(), logging_call(context):  # the handler may have used up the memory
                warn(f"handler of {context.command.name} failed", error=error)
        return failure(context.id, failures.of_handler(error), timestamp())

    def not_encodable(self, context: Context, error: BaseException) -> Failure:
        """Return the reply to a call whose result cannot be encoded, or is longer than a frame."""
        refused = failures.of_result(error, context.command.name, context.format.name)
        return failure(context.id, refused, timestamp())

    def broken(self, request_id: Id | None, error: BaseException) -> Failure:
        """Return the reply to a request that the worker itself failed to answer."""
        return failure(request_id, failures.of_worker(error), timestamp())

    def _refused(self, reply: Failure) -> Failure:
        self.worker.refused[reply.category] += 1
        debug("refused %r: %s: %.300s", shown(reply.id), reply.code, reply.error)
        if reply.code == errors.Overloaded.code:
            self._note_overload(reply.error)
        return reply

    def _note_overload(self, why: str) -> None:
        """Warn that calls are refused as overloaded, at most every `WARN_EVERY` seconds."""
        self._overloads += 1
        now = time.monotonic()
        if now >= self._next_overload_warning:
            self._next_overload_warning = now + WARN_EVERY
            warn(f"calls are refused as overloaded ({self._overloads} so far): {why}")

    def end_fork(self, error: BaseException | None) -> NoReturn:
        """End the child of a fork that has returned from its handler: the worker answers the call."""
        process.end_fork(error)

    def _negotiate(self, format: Format, frame: Any) -> Selection | None:
        offer = format.decode_or_none(frame, Negotiation)
        if offer is None or offer.type != "protocol_negotiation":
            return None
        known = [name for name in (self.worker.options.protocol, offer.preferred, *offer.supported) if name]
        chosen = next((name for name in known if by_name(name)), "json")
        return Selection("protocol_selected", chosen, timestamp())


def _warm_up(name: str, warm_up: Callable[[], None]) -> None:
    started = time.monotonic()
    warm_up()
    logs.info(f"the libraries of {name} are loaded: {time.monotonic() - started:.1f} s")
