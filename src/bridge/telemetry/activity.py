"""Activities, reported to listeners while they happen: calls, the stages of a call, requests to language models.

Adapters report stages and models with `activity`, the compiled path reports calls. While there is no listener, a call
costs one comparison more.
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

UNKNOWN = "_OTHER"  # how OpenTelemetry names an unknown method; a host may send any name


class Activity:
    """Represents something that takes time.

    kind: "call" (of a command), "stage" (of a call), "lm" (one request to a language model).
    name: the command, or `_OTHER` if the worker has no command of that name; for a stage or a request to a model the
    operation, such as execute_tool. facts: further attributes, some of which are added before the end; a call has
    queued_ns. request_id, session_id, command, traceparent: those of the call, as the host sent them; None outside
    of calls. parent: the activity that this one is part of. started_ns, ended_ns: monotonic; ended_ns is 0 until the
    end. listeners: those that the activity is reported to.
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
    """Observes activities. It is called at the start and at the end of each, in the thread that performs the activity,
    so it must return quickly. What it raises is logged and has no other effect."""

    def started(self, activity: Activity) -> None:
        """Note that `activity` begins. Its parts begin and end before it ends."""

    def complete(self, activity: Activity) -> None:
        """Note that `activity` has succeeded."""

    def failed(self, activity: Activity, error: BaseException) -> None:
        """Note that `activity` has failed.

        error: for a call, the one of bridge.errors that its caller gets, redacted; for its parts, the exception as it
        was raised.
        """


Wants = Callable[[str | None], bool]

_listeners: tuple[tuple[Listener, Wants | None], ...] = ()  # never changed, only replaced
_changing = threading.Lock()
_current: ContextVar[Activity | None] = ContextVar("activity", default=None)

End = Callable[[BaseException | None], None]


def listen(listener: Listener, wants: Wants | None = None) -> Callable[[], None]:
    """Report the activities of this process to `listener`, until the returned function is called.

    An activity that has been reported as started is reported as ended even after that.
    wants(traceparent): returns whether to report a call, with its parts; it must not raise. None: report all
    activities, also those outside of calls.
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


def activity(kind: Kind, name: str, **facts: Any) -> AbstractContextManager[dict[str, Any]]:
    """Report the body of a `with` statement as an activity. The statement gets its facts, a dict, to add to."""
    if not _listeners:
        return nullcontext(facts)
    parent = _current.get()
    if parent is None:
        listeners = tuple(listener for listener, wants in _listeners if wants is None)
    else:
        listeners = parent.listeners
    return _reported(Activity(kind, name, facts, listeners, parent)) if listeners else nullcontext(facts)


@contextmanager
def _reported(activity: Activity) -> Iterator[dict[str, Any]]:
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
        return _ignore_end
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


def _ignore_end(failure: Failure | None) -> None:
    pass


def _begin(activity: Activity) -> End:
    listeners = activity.listeners
    token = _current.set(activity)
    for listener in listeners:
        _notify(listener.started, activity)

    def end(error: BaseException | None) -> None:
        activity.ended_ns = now_ns()
        _current.reset(token)
        for listener in reversed(listeners):
            if error is None:
                _notify(listener.complete, activity)
            else:
                _notify(listener.failed, activity, error)

    return end


def _notify(method: Callable[..., None], *arguments: Any) -> None:
    try:
        method(*arguments)
    except BaseException as error:
        warn(f"a listener failed in {method.__name__}", error=error)
