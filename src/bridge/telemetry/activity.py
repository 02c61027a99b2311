"""What a worker does, told while it happens: calls, the stages of a call, calls of language models.

Adapters tell of stages and models with `around`, the compiled path of calls; whoever wants to know
`listen`s. Where nobody does, a call costs one look.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, Protocol

from bridge._dispatch import observe
from bridge._histogram import now_ns
from bridge.errors import from_reply, shown
from bridge.telemetry.logs import call_facts, warn

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.wire.messages import Failure

Kind = Literal["call", "stage", "lm"]

UNKNOWN = "_OTHER"  # OpenTelemetry's word for what is not known; a host may send any name


class Activity:
    """Something that takes time.

    kind: "call" (of a command), "stage" (of a call), "lm" (one request to a language model).
    name: the command, or `_OTHER` where the worker has none of that name; a stage's or a model
    call's operation, such as execute_tool. facts: what is known of it besides, more at its end than
    at its start; of a call queued_ns. request_id, session_id, command, traceparent: the call's, as
    the host sent them; None outside of calls. parent: what it is a part of. started_ns, ended_ns:
    monotonic; ended_ns is 0 until then. listeners: who is told of it.
    """

    __slots__ = (
        "command",
        "ended_ns",
        "facts",
        "kind",
        "listeners",
        "name",
        "parent",
        "request_id",
        "session_id",
        "started_ns",
        "traceparent",
    )

    def __init__(
        self,
        kind: Kind,
        name: str,
        facts: dict[str, Any],
        listeners: tuple[Listener, ...],
        parent: Activity | None = None,
        *,
        request_id: int | str | None = None,
        session_id: str | None = None,
        command: str | None = None,
        traceparent: str | None = None,
    ) -> None:
        self.kind = kind
        self.name = name
        self.facts = facts
        self.listeners = listeners
        self.parent = parent
        self.request_id = request_id
        self.session_id = session_id
        self.command = command
        self.traceparent = traceparent
        self.started_ns = now_ns()
        self.ended_ns = 0

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name} of {shown(self.request_id)}>"


class Listener(Protocol):
    """Told of each activity twice, in the thread that does it: so it must be quick. What it raises
    is logged and hurts nobody."""

    def started(self, activity: Activity) -> None:
        """It begins. Those that are parts of it begin and end before it ends."""

    def complete(self, activity: Activity) -> None:
        """It went well."""

    def failed(self, activity: Activity, error: BaseException) -> None:
        """It did not. error: of a call the one of bridge.errors that its caller gets, secrets
        blotted out; of its parts what was raised, as it was raised."""


Wants = Callable[[str | None], bool]

_listeners: tuple[tuple[Listener, Wants | None], ...] = ()  # never changed, only replaced
_changing = threading.Lock()
_current: ContextVar[Activity | None] = ContextVar("activity", default=None)

End = Callable[[BaseException | None], None]


def listen(listener: Listener, wants: Wants | None = None) -> Callable[[], None]:
    """Tell `listener` of what begins in this process from now on, until the function that this
    returns is called. Of what has begun by then it is told the end, too.

    wants(traceparent): whether a call is one to tell of, with its parts; it must not raise. None:
    tell of all that happens, outside of calls too.
    """
    global _listeners
    with _changing:
        _listeners = (*_listeners, (listener, wants))
        observe(_begin_call)

    def stop() -> None:
        global _listeners
        with _changing:
            _listeners = tuple(each for each in _listeners if each[0] is not listener)
            if not _listeners:
                observe(None)

    return stop


def around(kind: Kind, name: str, **facts: Any) -> AbstractContextManager[dict[str, Any]]:
    """The activity that happens inside of a `with`, which gets its facts to add to them."""
    if not _listeners:
        return nullcontext(facts)
    parent = _current.get()
    if parent is None:
        listeners = tuple(listener for listener, wants in _listeners if wants is None)
    else:
        listeners = parent.listeners
    activity = Activity(kind, name, facts, listeners, parent)
    return _around(activity) if listeners else nullcontext(facts)


@contextmanager
def _around(activity: Activity) -> Iterator[dict[str, Any]]:
    parent = activity.parent
    if parent is not None:
        activity.request_id = parent.request_id
        activity.session_id = parent.session_id
        activity.command = parent.command
        activity.traceparent = parent.traceparent
    end = _begin(activity)
    try:
        yield activity.facts
    except BaseException as error:
        end(error)
        raise
    end(None)


def _begin_call(context: Context) -> Callable[[Failure | None], None]:
    traceparent = context.request.traceparent
    listeners = tuple([listener for listener, wants in _listeners if wants is None or wants(traceparent)])
    if not listeners:
        return _nobody_listens
    name = UNKNOWN if context.command is None else context.command.name
    activity = Activity("call", name, {}, listeners, **call_facts(context))
    activity.facts["queued_ns"] = activity.started_ns - context.received_ns
    end = _begin(activity)

    def end_call(failure: Failure | None) -> None:
        if failure is None:
            end(None)
        else:
            end(from_reply(failure.code, failure.error, failure.category, failure.details))

    return end_call


def _nobody_listens(failure: Failure | None) -> None:
    pass


def _begin(activity: Activity) -> End:
    listeners = activity.listeners
    token = _current.set(activity)
    for listener in listeners:
        _tell(listener.started, activity)

    def end(error: BaseException | None) -> None:
        activity.ended_ns = now_ns()
        _current.reset(token)
        for listener in reversed(listeners):
            if error is None:
                _tell(listener.complete, activity)
            else:
                _tell(listener.failed, activity, error)

    return end


def _tell(method: Callable[..., None], *arguments: Any) -> None:
    try:
        method(*arguments)
    except BaseException as error:
        warn(f"a listener failed in {method.__name__}", error=error)
