"""The address of a PostgreSQL store: a URL as libpq reads it, without a password."""

from __future__ import annotations

import os

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from bridge import errors

# Parameters of libpq.
PASSWORDS = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")

# What libpq would use instead waits for a server that has gone for minutes, or for ever.
DEFAULTS = {
    "connect_timeout": "5",  # s, for each host
    "keepalives_idle": "10",  # s
    "keepalives_interval": "5",  # s
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",  # ms
    "fallback_application_name": "dspex-bridge",
}


def conninfo(url: str) -> str:
    """Return `url` as a connection string of libpq, with defaults that notice a server that has gone.

    Raises StoreFailed, without any part of the URL that may be a password, for one that has a password or that libpq
    does not understand.
    """
    userinfo = url.partition("//")[2].partition("?")[0].rpartition("@")[0]
    if ":" in userinfo:
        raise _has_password()
    if "\0" in url or any("\ud800" <= sign <= "\udfff" for sign in url):
        # libpq would stop at a zero byte; surrogates are what Python reads from bytes that are not UTF-8.
        raise _not_text()
    try:
        given = {name: str(value) for name, value in conninfo_to_dict(url).items() if value is not None}
    except UnicodeDecodeError:  # in percent encoding
        raise _not_text() from None
    except psycopg.Error as error:
        # libpq quotes what it does not understand, which may be a part of a password.
        reason = "" if "@" in url else f": {' '.join(str(error).split())}"
        raise errors.StoreFailed(f"the URL of the PostgreSQL store is not one that libpq understands{reason}") from None
    if any(given.get(name) for name in PASSWORDS):
        raise _has_password()
    hosts = (given.get(name) or os.environ.get(f"PG{name.upper()}", "") for name in ("host", "hostaddr"))
    if any("," in each for each in hosts) and not os.environ.get("PGTARGETSESSIONATTRS"):
        given.setdefault("target_session_attrs", "read-write")  # the others are replicas
    defaults = dict(DEFAULTS)
    if os.environ.get("PGCONNECT_TIMEOUT"):
        del defaults["connect_timeout"]
    return make_conninfo("", **{**defaults, **given, "client_encoding": "UTF8"})


def _not_text() -> errors.StoreFailed:
    return errors.StoreFailed("the URL of the PostgreSQL store has a zero byte, or bytes that are not UTF-8")


def _has_password() -> errors.StoreFailed:
    return errors.StoreFailed(
        "the URL of the PostgreSQL store has a password, which the list of processes would show;"
        " set PGPASSWORD or PGPASSFILE, or use a service file (postgresql:///?service=NAME)"
    )
