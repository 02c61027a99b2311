"""Where requests to a model may be sent: addresses, patterns that the operator allows, and addresses that no host may
name."""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

import msgspec

PORTS = {"http": 80, "https": 443}
LONGEST = 2048  # characters
RESOLVING = 1.0  # seconds to wait for the resolution of a name

_HOST = re.compile(r"(?!-)[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
_WILD_HOST = re.compile(r"[a-z0-9_*-]+(?:\.[a-z0-9_*-]+)*")
_NUMBER = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)")

# The metadata services of clouds, which hand out credentials: link-local, AWS, Alibaba, Azure, Google.
FORBIDDEN = tuple(
    map(
        ipaddress.ip_network,
        (
            *("169.254.0.0/16", "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32"),
            *("fe80::/10", "fd00:ec2::/32", "fd20:ce::/32"),
        ),
    )
)
FORBIDDEN_NAMES = re.compile(r"(?:metadata|instance-data)(?:\..*)?|.*\.metadata\.google\.internal|metadata\.goog")
# IPv6 networks whose addresses end with an IPv4 address: compatible, translated, NAT64.
_ENDS_WITH_IPV4 = tuple(map(ipaddress.ip_network, ("::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48")))
_ISATAP = (0x00005EFE, 0x02005EFE)


class Address(msgspec.Struct, frozen=True):
    """Represents an http or https address in normal form.

    host: lower case, without a trailing dot, international names as ASCII, numbers as dotted IPv4 or compressed IPv6.
    port: always set. user: "user:password", or empty.
    """

    scheme: str
    host: str
    port: int
    path: str = ""
    query: str = ""
    user: str = ""

    @classmethod
    def parse(cls, text: str, *, wild: bool = False) -> Address:
        """Parse an address. wild: whether the host may contain `*`.

        Raises ValueError, whose text contains no part of the address, because that may contain a secret.
        """
        if len(text) > LONGEST:
            raise ValueError(f"an address may have at most {LONGEST} characters")
        if "\\" in text or not text.isprintable() or " " in text:
            raise ValueError("an address must not contain backslashes, white space or control characters")
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            raise ValueError("this is not an address like https://host/v1") from None
        if parts.scheme not in PORTS or not parts.hostname or port == 0:
            raise ValueError("expected an address like https://host/v1")
        if "#" in text:
            raise ValueError("an address must not have a fragment (#…)")
        user, _, _ = parts.netloc.rpartition("@")
        if "@" in user:
            raise ValueError("an address must not have more than one @ before its path")
        _check_path(parts.path)
        host = _host(parts.hostname, wild)
        return cls(parts.scheme, host, port or PORTS[parts.scheme], parts.path, parts.query, user)

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == PORTS[self.scheme] else f":{self.port}"
        query = f"?{self.query}" if self.query else ""
        return f"{self.scheme}://{user}{host}{port}{self.path}{query}"

    def __repr__(self) -> str:
        return f"<Address at {self.host}>"

    def matches(self, pattern: Address) -> bool:
        """Return whether this address matches `pattern`: it has the same scheme, port and host, and its path equals the
        path of the pattern or continues it. `*` in the host of the pattern matches any characters of one label. An
        address with a user matches no pattern."""
        if (self.scheme, self.port) != (pattern.scheme, pattern.port) or self.user:
            return False
        host = re.escape(pattern.host).replace(r"\*", "[^.:]*")
        prefix = pattern.path.rstrip("/")
        return re.fullmatch(host, self.host) is not None and (
            self.path.rstrip("/") == prefix or self.path.startswith(f"{prefix}/")
        )

    @property
    def is_forbidden(self) -> bool:
        """Return whether requests must never be sent there, because it is the metadata service of a cloud or a name of
        one."""
        try:
            return _is_forbidden(self.host)
        except ValueError:
            return FORBIDDEN_NAMES.fullmatch(self.host) is not None

    def leads_to_forbidden(self) -> bool:
        """Return whether the host resolves to a forbidden address within a second."""
        found: list[str] = []

        def resolve() -> None:
            try:
                every = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError):
                return
            found.extend(str(each[4][0]) for each in every)

        resolving = threading.Thread(target=resolve, name="bridge-resolve", daemon=True)
        resolving.start()
        resolving.join(RESOLVING)
        return any(_is_forbidden(each.partition("%")[0]) for each in found)


def pattern(text: str) -> Address:
    """Parse a pattern of allowed addresses: scheme://host[:port][/path]. Raises ValueError."""
    address = Address.parse(text, wild=True)
    if address.user or address.query:
        raise ValueError("a pattern must not have a user or a query")
    if address.is_forbidden:
        raise ValueError("link-local and metadata addresses cannot be allowed")
    return address


def allows(patterns: Iterable[Address], address: Address) -> bool:
    """Return whether `address` matches one of `patterns`."""
    return any(address.matches(each) for each in patterns)


def _check_path(path: str) -> None:
    for _ in range(8):
        decoded = unquote(path)
        names = {segment.partition(";")[0] for segment in decoded.split("/")}
        if "\\" in decoded or {".", ".."} & names:
            raise ValueError("the path of an address must not contain . or ..")
        if decoded.count("/") != path.count("/"):
            raise ValueError("the path of an address must not contain an encoded slash")
        if decoded == path:
            return
        path = decoded
    raise ValueError("the path of the address is percent-encoded too many times")


def _host(name: str, wild: bool) -> str:
    if ":" in name:
        if "%" in name:
            raise ValueError("the host contains characters that are not allowed in an IPv6 address")
        try:
            return str(ipaddress.IPv6Address(name))
        except ValueError:
            raise ValueError("the host is not a valid IPv6 address") from None
    try:
        name = name.encode("idna").decode().lower()
    except UnicodeError:
        if not name.isascii():
            raise ValueError("the host is not a valid domain name") from None
    name = name.removesuffix(".")
    if not (_WILD_HOST if wild else _HOST).fullmatch(name):
        raise ValueError("the host contains characters that are not allowed in a domain name")
    if not _NUMBER.fullmatch(name.rpartition(".")[2]):
        return name
    try:
        # Also 2852039166, 0xa9fea9fe, 0251.0376.0251.0376 and 169.254.43518.
        return str(ipaddress.IPv4Address(socket.inet_aton(name)))
    except OSError:
        raise ValueError("the host is not a valid IPv4 address") from None


def _is_forbidden(host: str) -> bool:
    address = ipaddress.ip_address(host)
    every: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = [address]
    if isinstance(address, ipaddress.IPv6Address):
        teredo = address.teredo[1] if address.teredo else None
        every += [each for each in (address.ipv4_mapped, address.sixtofour, teredo) if each]
        number = int(address)
        if any(address in network for network in _ENDS_WITH_IPV4) or number >> 32 & 0xFFFFFFFF in _ISATAP:
            every.append(ipaddress.IPv4Address(number & 0xFFFFFFFF))
    return any(each in network for each in every for network in FORBIDDEN)
