"""DSPy programs for any host, over a pipe.

from bridge import Client

with Client.start() as client:
    client.call("ping")
"""

from typing import TYPE_CHECKING, Any

from bridge.version import __version__

if TYPE_CHECKING:
    from bridge import errors
    from bridge._dispatch import Context
    from bridge._histogram import Histogram
    from bridge.adapter import Adapter
    from bridge.errors import BridgeError
    from bridge.host.client import Client
    from bridge.worker.dispatch import Dispatcher

# Loaded when first asked for: a worker needs no client, a client no dispatcher.
_DOORS = {
    "Adapter": "bridge.adapter",
    "BridgeError": "bridge.errors",
    "Client": "bridge.host.client",
    "Context": "bridge._dispatch",
    "Dispatcher": "bridge.worker.dispatch",
    "Histogram": "bridge._histogram",
    "errors": "bridge.errors",
}

__all__ = [
    "Adapter",
    "BridgeError",
    "Client",
    "Context",
    "Dispatcher",
    "Histogram",
    "__version__",
    "errors",
]


NOT_BUILT = (
    "the compiled part of bridge is missing ({name}); in a checkout type: pip install . (which needs a C compiler)"
)


def is_compiled(module: str | None) -> bool:
    """Return whether `module` is one of the compiled modules of this package, built or not."""
    return module is not None and module.startswith("bridge.") and module.rpartition(".")[2].startswith("_")


def __getattr__(name: str) -> Any:
    if name not in _DOORS:
        raise AttributeError(f"module 'bridge' has no attribute {name!r}")
    from importlib import import_module

    try:
        module = import_module(_DOORS[name])
        return module if name == "errors" else getattr(module, name)
    except ModuleNotFoundError as error:
        if is_compiled(error.name):
            raise ImportError(NOT_BUILT.format(name=error.name)) from None
        raise


def __dir__() -> list[str]:
    return __all__
