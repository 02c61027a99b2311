"""Stores of durable sessions.

`protocol.Store` is the interface. To add a store, write a module with `open_store(location)` and add its scheme to
`SCHEMES`; it may use `group_commit`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from bridge import errors
from bridge.options import shown_store

if TYPE_CHECKING:
    from bridge.worker.stores.protocol import Store

# By the scheme of `--store SCHEME:LOCATION`: how a location is written, and the module that opens it. A module is
# loaded when its first store is opened, because its database library would slow down the start of every worker.
_POSTGRES = ("postgresql://[USER@]HOST[:PORT]/DATABASE", "bridge.worker.stores.postgres")
SCHEMES = {
    "sqlite": ("sqlite:PATH", "bridge.worker.stores.sqlite"),
    "postgresql": _POSTGRES,
    "postgres": _POSTGRES,
}

# What to install if the library of a store is missing.
EXTRAS = {"psycopg": "dspex-bridge[postgres]"}


class UnknownStore(errors.StoreFailed, ValueError):
    """Raised for the name of a store that has no known form: the option is wrong, not the store."""


def open_store(name: str) -> Store:
    """Open the store `name`, for instance ``sqlite:/var/lib/bridge.db``. Create it if it does not exist.

    Raises UnknownStore for a name of no known form, and StoreFailed for a store that cannot be used.
    """
    scheme, _, location = name.partition(":")
    if scheme not in SCHEMES or not location:
        forms = ", ".join(dict.fromkeys(form for form, _ in SCHEMES.values()))
        raise UnknownStore(f"the store {shown_store(name)} has no known form; known: {forms}")
    try:
        module = import_module(SCHEMES[scheme][1])
    except ImportError as error:
        library = next((each for each in EXTRAS if each in str(error)), None)
        if library is None:
            raise
        raise errors.StoreFailed(
            f"the store {scheme}: needs {library}: pip install '{EXTRAS[library]}' ({error})"
        ) from error
    store: Store = module.open_store(location)
    return store
