"""The addresses of workers that hosts connect to."""

from __future__ import annotations

import os

PREFIX = "unix:"
LONGEST_PATH = 107  # bytes, because sun_path of sockaddr_un has 108 on Linux, with the zero at the end


def unix_path(address: str) -> str:
    """Return PATH of the address "unix:PATH". Raise ValueError, with what is wrong, for any other text."""
    if not isinstance(address, str) or not address.startswith(PREFIX):
        raise ValueError(f"{address!r} is not an address like unix:/run/bridge.sock")
    path = address.removeprefix(PREFIX)
    if not path or "\0" in path:
        raise ValueError(f"{address!r} has no path; an address looks like unix:/run/bridge.sock")
    if path.endswith("/"):
        raise ValueError(f"{address!r} is the name of a folder; a socket needs a name in it, as {address}bridge.sock")
    try:
        length = len(os.fsencode(path))
    except UnicodeEncodeError:
        raise ValueError(f"{address!r} is not the name of a file") from None
    if length > LONGEST_PATH:
        raise ValueError(f"the path of a socket has at most {LONGEST_PATH} bytes, not {length}: {path}")
    return path
