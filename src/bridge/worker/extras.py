"""What `--telemetry` switches on: libraries of the extra of that name, which nobody else loads."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from bridge import errors
from bridge.telemetry.logs import warn

if TYPE_CHECKING:
    from bridge.worker.dispatch import Dispatcher

INSTALL = "pip install 'dspex-bridge[telemetry]'"
RETRY_AFTER = 0.1  # seconds; what loading takes


def switched_off(*_: Any) -> NoReturn:
    """In place of `Dispatcher.prometheus` where the operator has not asked for it."""
    raise errors.NotAllowed(f"this worker was not started with --telemetry, which needs the extra: {INSTALL}")


def loading(*_: Any) -> NoReturn:
    """The same until the libraries are there: a caller on the reading thread does not wait."""
    raise errors.Overloaded("the libraries of --telemetry are still being loaded", retry_after=RETRY_AFTER)


def load(dispatcher: Dispatcher) -> None:
    """Load the libraries and hand them to `dispatcher`; for a thread of its own. What fails, as a
    rule because it is not installed, is logged and refused from then on."""
    try:
        from bridge.telemetry import tracing
        from bridge.worker.metrics import prometheus
    except Exception as error:
        message = f"--telemetry: {error}; the extra is installed with: {INSTALL}"
        warn(message)
        dispatcher.prometheus = partial(_refuse, message)
    else:
        dispatcher.prometheus = partial(prometheus, dispatcher)
        tracing.start()


def _refuse(message: str, *_: Any) -> NoReturn:
    raise errors.NotAllowed(message)
