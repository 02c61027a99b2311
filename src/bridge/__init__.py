"""Run DSPy programs for any host, over a pipe.

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
    from bridge.adapter import Adapter, Ignored, NoArgs, Unchecked
    from bridge.errors import BridgeError
    from bridge.host.client import Client
    from bridge.options import Options
    from bridge.pool.pool import Pool
    from bridge.ray.pool import RayPool
    from bridge.records import Quota, Records
    from bridge.telemetry.activity import activity, listen
    from bridge.wire._etf import Atom, Opaque
    from bridge.wire.arrays import array
    from bridge.wire.tensors import Tensor
    from bridge.worker.dispatch import Dispatcher

# Each module is imported when one of its names is first used: a worker needs no client, a client no dispatcher.
_EXPORTS = {
    "Adapter": "bridge.adapter",
    "Atom": "bridge.wire._etf",
    "BridgeError": "bridge.errors",
    "Client": "bridge.host.client",
    "Context": "bridge._dispatch",
    "Dispatcher": "bridge.worker.dispatch",
    "Histogram": "bridge._histogram",
    "Ignored": "bridge.adapter",
    "NoArgs": "bridge.adapter",
    "Opaque": "bridge.wire._etf",
    "Options": "bridge.options",
    "Pool": "bridge.pool.pool",
    "Quota": "bridge.records",
    "RayPool": "bridge.ray.pool",
    "Records": "bridge.records",
    "Tensor": "bridge.wire.tensors",
    "Unchecked": "bridge.adapter",
    "activity": "bridge.telemetry.activity",
    "array": "bridge.wire.arrays",
    "errors": "bridge.errors",
    "listen": "bridge.telemetry.activity",
}

__all__ = [
    "Adapter",
    "Atom",
    "BridgeError",
    "Client",
    "Context",
    "Dispatcher",
    "Histogram",
    "Ignored",
    "NoArgs",
    "Opaque",
    "Options",
    "Pool",
    "Quota",
    "RayPool",
    "Records",
    "Tensor",
    "Unchecked",
    "__version__",
    "activity",
    "array",
    "errors",
    "listen",
]

NOT_BUILT = "the compiled part of bridge is missing ({name}); in a checkout type: pip install . (it needs a C compiler)"


def is_compiled(module: str | None) -> bool:
    """Return whether `module` is the name of a compiled module of this package, whether it has been built or not."""
    return module is not None and module.startswith("bridge.") and module.rpartition(".")[2].startswith("_")


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'bridge' has no attribute {name!r}")
    from importlib import import_module

    try:
        module = import_module(_EXPORTS[name])
        return module if name == "errors" else getattr(module, name)
    except ModuleNotFoundError as error:
        if is_compiled(error.name):
            raise ImportError(NOT_BUILT.format(name=error.name)) from None
        raise


def __dir__() -> list[str]:
    return __all__
