"""The exporters of --telemetry: statistics as Prometheus text, calls as OpenTelemetry spans.

Their libraries belong to the extra `telemetry` of the package. Nothing else loads them.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NoReturn

from bridge import errors
from bridge.telemetry.logs import warn
from bridge.worker.state import Worker

INSTALL = "pip install 'dspex-bridge[telemetry]'"
RETRY_AFTER = 0.1  # seconds; about as long as loading takes


def refuse_while_off(*_: Any) -> NoReturn:
    """Raise NotAllowed: this is `Worker.prometheus` of a worker without --telemetry."""
    raise errors.NotAllowed(f"this worker was not started with --telemetry, which needs: {INSTALL}")


def refuse_while_loading(*_: Any) -> NoReturn:
    """Raise Overloaded: this is `Worker.prometheus` until the libraries are loaded. Callers must not wait, because
    they are on the thread that reads frames."""
    raise errors.Overloaded("the libraries of --telemetry are still being loaded", retry_after=RETRY_AFTER)


def load(worker: Worker) -> None:
    """Load the libraries, set `worker.prometheus`, and start to make spans.

    A failure, usually because the libraries are not installed, is logged, and refuses later requests for Prometheus
    text.
    """
    try:
        from bridge.telemetry import tracing
        from bridge.worker.metrics import prometheus
    except Exception as error:
        message = f"--telemetry: {error}; to install what it needs: {INSTALL}"
        warn(message)
        worker.prometheus = partial(_refuse, message)
    else:
        worker.prometheus = partial(prometheus, worker)
        tracing.start()


def _refuse(message: str, *_: Any) -> NoReturn:
    raise errors.NotAllowed(message)
