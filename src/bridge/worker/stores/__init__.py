"""Stores of durable sessions.

`protocol.Store` is the interface. To add a store, write a module with `open_store(location)` and add its scheme to
`SCHEMES`; it may use `group_commit`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from bridge import errors

if TYPE_CHECKING:
    from bridge.worker.stores.protocol import Store

# By the scheme of `--store SCHEME:LOCATION`: how a location is written, and the module that opens it. A module is
# loaded when its first store is opened, because its database library would slow down the start of every worker.
SCHEMES = {"sqlite": ("sqlite:PATH", "bridge.worker.stores.sqlite")}


class UnknownStore(errors.StoreFailed, ValueError):
    """Raised for the name of a store that has no known form: the option is wrong, not the store."""


def open_store(name: str) -> Store:
    """Open the store `name`, for instance ``sqlite:/var/lib/bridge.db``. Create it if it does not exist.

    Raises UnknownStore for a name of no known form, and StoreFailed for a store that cannot be used.
    """
    scheme, _, location = name.partition(":")
    if scheme not in SCHEMES or not location:
        forms = ", ".join(form for form, _ in SCHEMES.values())
        raise UnknownStore(f"the store {name[:100]!r} has no known form; known: {forms}")
    store: Store = import_module(SCHEMES[scheme][1]).open_store(location)
    return store
