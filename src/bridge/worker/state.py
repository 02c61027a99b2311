"""The state of a worker, which its dispatcher, its control commands, its statistics and its watchdog share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bridge._histogram import now_ns
from bridge.adapter import AdapterFailed
from bridge.records import Quota
from bridge.worker.calls import Calls
from bridge.worker.host_calls import HostCalls
from bridge.worker.sessions import Sessions
from bridge.worker.threads import Threads

if TYPE_CHECKING:
    from bridge._dispatch import Command, FastPath
    from bridge.adapter import Adapter
    from bridge.options import Options
    from bridge.security.destinations import Address
    from bridge.worker.session import Session
    from bridge.worker.stores.protocol import Store


class Worker:
    """Holds the options, commands, threads, open calls and sessions of a worker. Handlers get it as `context.worker`.

    has_dspy, has_gemini: whether the adapter finds these libraries. refused: how many frames did not become a call,
    by the category of the error. may_be_stuck: whether `stuck_s` was above 0 when the watchdog last checked; unlike
    `stuck_s` it costs nothing to read. path, prometheus: set by the dispatcher. prometheus(open calls, sessions,
    uptime): returns the statistics as Prometheus text, or raises NotAllowed or Overloaded.
    """

    path: FastPath
    prometheus: Callable[..., dict[str, str]]

    def __init__(self, adapter: Adapter, options: Options, store: Store | None) -> None:
        self.adapter = adapter
        self.options = options
        self.has_dspy, self.has_gemini = adapter.available("dspy"), adapter.available("gemini")
        self.commands: dict[str, Command] = {}
        self.refused: Counter[str] = Counter()
        self.may_be_stuck = False
        self.threads = Threads(options.threads, options.waiting)
        self.host = HostCalls(options.max_frame)
        self.sessions = Sessions(
            "anonymous" if options.mode == "pool-worker" else "default",
            adapter,
            self._sessions_in_use,
            limit=options.max_sessions,
            ttl=options.session_ttl,
            quota=Quota(options.session_programs, options.session_bytes),
            store=_opened(options.store) if store is None else store,
            shared={
                "api_bases": _patterns("api_bases", options.api_bases),
                "key_variables": options.api_key_envs,
                "urls": _patterns("allow_urls", options.allow_urls),
                "configures_itself": options.mode == "pool-worker",
                "programs": _programs(adapter, options.programs),
            },
        )
        self.calls = Calls(self.threads, self.sessions, options.queue_target)

    @property
    def stuck_s(self) -> float:
        """Return the seconds for which all threads have been busy without progress; 0 if less than `stuck_after`.

        Calls that wait for the host do not count.
        """
        if not self.threads.is_full or not self.options.stuck_after:
            return 0.0
        progressed_ns, now = self.threads.progressed_ns, now_ns()
        limit = int(self.options.stuck_after * 1e9)
        if now - progressed_ns < limit:
            return 0.0
        steps = (call.stepped_ns for call in list(self.calls.open.values()) if call.running)
        idle = now - max(progressed_ns, *steps, 0)
        return idle / 1e9 if idle >= limit else 0.0

    def _sessions_in_use(self) -> set[Session]:
        calls = list(self.calls.open.values())
        return {call.session for call in calls if call.session is not None}


def _patterns(option: str, texts: tuple[str, ...]) -> tuple[Address, ...]:
    if not texts:
        return ()
    from bridge.security.destinations import pattern  # loads modules that the start of a worker does not need

    try:
        return tuple(map(pattern, texts))
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None


def _programs(adapter: Adapter, given: tuple[str, ...]) -> dict[str, Any]:
    """Load the operator's programs. Raises AdapterFailed."""
    if not given:
        return {}
    if adapter.load_programs is None:
        raise AdapterFailed(f"program {given[0]!r}: the adapter {adapter.name!r} runs no programs of the operator")
    return adapter.load_programs(given)


def _opened(name: str | None) -> Store | None:
    """Open the store `name`; None: there is no store. Raises StoreFailed."""
    if name is None:
        return None
    from bridge.worker.stores import open_store  # loads modules that a worker without a store does not need

    return open_store(name)
