"""The circuit breaker of each provider of models: while runs of programs fail because of a provider, no more are sent.

Which provider a run uses is known from the `configure_lm` of its session, or of all sessions, that the pool has made,
and from the `model` of the run. Runs whose provider is not known, and those on several models, are not guarded.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from bridge.pool.breaker import Breaker
from bridge.pool.requests import Request
from bridge.pool.slots import OnTransition

LOCAL = ("host", "offline", "scripted")  # providers in the worker's process, or in this one


class Providers:
    """Knows the providers of sessions. runs: the commands that may use a model. report: gets an event for each change
    of a circuit."""

    def __init__(self, runs: Container[str], report: OnTransition) -> None:
        self._runs = runs
        self._providers: dict[str | None, dict[str, str]] = {}  # by session, and by the name of the model
        self._breaker = Breaker(
            on_change=lambda provider, before, after: report(
                {"event": "breaker", "provider": provider, "from": before, "to": after}
            )
        )

    def configured(self, session: str | None, result: Any) -> None:
        """Note the result of `configure_lm` in a session, or None for all sessions."""
        if isinstance(result, dict) and isinstance(provider := result.get("provider"), str):
            self._providers.setdefault(session, {})[result.get("name", "")] = provider

    def forget(self, session: str) -> None:
        """Forget a session that has ended."""
        self._providers.pop(session, None)

    def admit(self, request: Request) -> None:
        """Give a request its permit if it needs one and has none. Raises CircuitOpen."""
        if request.permit is not None or request.command not in self._runs:
            return
        provider = self._provider(request)
        if provider is not None and provider not in LOCAL:
            request.permit = Permit(self._breaker, provider)

    def _provider(self, request: Request) -> str | None:
        name = request.args.get("model") if isinstance(request.args, dict) else None
        if not isinstance(name, str | None):
            return None
        found = (self._providers.get(session, {}).get(name or "") for session in (request.session, None))
        return next((provider for provider in found if provider is not None), None)


class Permit:
    """Lets one request use a provider. Counts as unused if it goes away without a call of `settle`.

    Raises CircuitOpen if no request may use the provider.
    """

    def __init__(self, breaker: Breaker, provider: str) -> None:
        self._is_settled = True
        self._breaker = breaker
        self._provider = provider
        self._permit = breaker.admit(provider)
        self._is_settled = False

    def settle(self, succeeded: bool | None) -> None:
        """Count the end of the request, once. succeeded: None if it says nothing about the provider."""
        if not self._is_settled:
            self._is_settled = True
            self._breaker.settle(self._provider, self._permit, succeeded)

    def __del__(self) -> None:
        self.settle(None)
