"""Making a request until it has a result: in a slot, and after some failures in another one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from bridge.errors import BridgeError
from bridge.host.open_calls import OpenCall
from bridge.pool.journal import Broadcast, Journal
from bridge.pool.providers import Providers
from bridge.pool.recovery import Recovery
from bridge.pool.requests import Request
from bridge.pool.routing import Router


class Runner:
    """Sends requests to the slots that the router finds, again where the policy says so.

    after: called with each request that has succeeded, and its result.
    """

    def __init__(
        self,
        router: Router,
        recovery: Recovery,
        providers: Providers,
        journal: Journal,
        after: Callable[[Request, Any], object],
    ) -> None:
        self._after = after
        self._router = router
        self._recovery = recovery
        self._providers = providers
        self.delay = recovery.delay
        self._journal = journal

    def run(self, request: Request) -> Any:
        """Make a request, and return its result. Raises the error that is final."""
        while True:
            call = self.send(request)
            try:
                result = call.result()
            except BridgeError as error:
                self.prepare_next(request, error)
            except BaseException:
                call.cancel()
                raise
            else:
                self.succeeded(request, result)
                return result

    def broadcast(self, request: Request) -> Broadcast:
        """Send a request to all workers, and return what `finish` waits for. Raises the error that is final."""
        request.slot = None
        self._router.await_ready(request)
        return self._journal.start(request)

    def finish(self, broadcast: Broadcast) -> Any:
        """Return the result of a request that was sent to all workers. Raises the error that is final."""
        while True:
            try:
                result = self._journal.finish(broadcast)
                self._after(broadcast.request, result)
                return result
            except BridgeError as error:
                self.prepare_next(broadcast.request, error)
                broadcast = self.broadcast(broadcast.request)

    def send(self, request: Request, on_end: Callable[[OpenCall], None] | None = None) -> OpenCall:
        """Send a request to a slot, and return the call. Raises the error that is final. on_end: of `Request.send`."""
        self._providers.admit(request)
        while True:
            request.slot = None
            try:
                slot = self._router.find(request)
                return request.send(slot, on_end)
            except BridgeError as error:
                self.prepare_next(request, error)

    def prepare_next(self, request: Request, error: BridgeError) -> None:
        """Wait until a request that has failed may be sent again. Raises `error` if it is final."""
        delay = self._recovery.delay(request, error)
        if delay is None:
            raise error
        if delay:
            time.sleep(delay)

    def succeeded(self, request: Request, result: Any) -> None:
        """Note that a request has succeeded."""
        assert request.slot is not None
        request.slot.served += 1
        request.settle(True)
        self._after(request, result)
