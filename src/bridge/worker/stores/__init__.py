"""Stores of durable sessions.

`protocol.Store` says what a store does. To add one, write a module with `open_store(location)` and enter its scheme in
`SCHEMES`; `group_commit` and `stored_records` are there to be reused.
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
    """The place of a store has no known form: the option is wrong, not the store."""


def open_store(place: str) -> Store:
    """Open the store at `place`, for instance ``sqlite:/var/lib/bridge.db``. Create it if it does not exist.

    Raises UnknownStore for a place of no known form, and StoreFailed for a store that cannot be used.
    """
    scheme, _, location = place.partition(":")
    if scheme not in SCHEMES or not location:
        forms = ", ".join(form for form, _ in SCHEMES.values())
        raise UnknownStore(f"the store {place[:100]!r} has no known form; known: {forms}")
    store: Store = import_module(SCHEMES[scheme][1]).open_store(location)
    return store
