"""Addresses and patterns of addresses that requests and API keys may go to."""

from __future__ import annotations

import pytest

from bridge.security.destinations import Address, allows, pattern
from keys import KEY, configure


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("https://API.Example.com:443/v1", "https://api.example.com/v1"),
        ("http://example.com.:80", "http://example.com"),
        ("HTTP://example.com:8080/a?b=c", "http://example.com:8080/a?b=c"),
        ("https://bücher.example/x", "https://xn--bcher-kva.example/x"),
        ("http://127.1/v1", "http://127.0.0.1/v1"),
        ("http://0x7f000001", "http://127.0.0.1"),
        ("http://[0:0:0:0:0:0:0:1]:81/", "http://[::1]:81/"),
        ("https://u:p@host/v1", "https://u:p@host/v1"),
    ],
)
def test_addresses_have_a_normal_form(text, normal):
    """It does not depend on the spelling."""
    assert str(Address.parse(text)) == normal


@pytest.mark.parametrize(
    "text",
    [
        *("", "host/v1", "ftp://host", "file:///etc/passwd", "http:host", "http://", "gopher://h"),
        *("http://host\\@other", "http://a@b@c", "http://host /v1", "http://host/\nv1"),
        *("http://host/a/../b", "http://host/%2e%2e/b", "http://host/a%252e%252e%252fb"),
        *("http://host/a/..;/b", "http://host/.;x/b"),
        *("http://host/..%2fb", "http://host/a%5cb", "http://host/#f", "http://ho%73t/"),
        *(
            "http://[::1",
            "http://[fe80::1%25eth0]/",
            "http://1.2.3.4.5",
            "http://0x",
            "http://a..b",
        ),
        *(
            "http://host:99999",
            "http://host:0",
            "http://host:x",
            "http://*.example.com",
            "x" * 3000,
        ),
    ],
)
def test_invalid_addresses_are_refused(text):
    """The error does not contain the text."""
    with pytest.raises(ValueError, match=r"address|host") as raised:
        Address.parse(text)
    assert len(text) < 8 or text not in str(raised.value)


@pytest.mark.parametrize(
    ("allowed", "address", "matches"),
    [
        ("https://example.com", "https://example.com/v1/x", True),
        ("https://example.com:443/v1", "https://EXAMPLE.com./v1", True),
        ("https://example.com/v1", "https://example.com/v1/", True),
        ("https://example.com/v1", "https://example.com/v1beta", False),
        ("https://example.com/v1", "https://example.com/v1?key=x", True),
        ("https://example.com", "http://example.com", False),
        ("https://example.com", "https://example.com:8443", False),
        ("https://example.com", "https://user@example.com", False),
        ("https://example.com", "https://example.com.evil.net", False),
        ("https://example.com", "https://evil-example.com", False),
        ("https://*.example.com", "https://eu.example.com/v1", True),
        ("https://*.example.com", "https://example.com/v1", False),
        ("https://*.example.com", "https://a.b.example.com", False),
        ("https://llm-*.example.com", "https://llm-7.example.com", True),
        ("http://127.0.0.1:8000", "http://2130706433:8000/v1", True),
        ("http://[::1]:8000", "http://[0::1]:8000", True),
    ],
)
def test_a_pattern_means_a_host_and_a_beginning_of_paths(allowed, address, matches):
    """Addresses that only look similar do not match."""
    assert allows([pattern(allowed)], Address.parse(address)) is matches


@pytest.mark.parametrize(
    "address",
    [
        *(
            "http://169.254.169.254",
            "http://2852039166",
            "http://0xa9fea9fe",
            "http://169.254.43518",
        ),
        *("http://0251.0376.0251.0376", "http://0xA9.254.0251.254", "http://169.254.169.254."),
        *("http://[::ffff:169.254.169.254]", "http://[::ffff:a9fe:a9fe]", "http://[fe80::1]"),
        *("http://[fd00:ec2::254]", "http://[64:ff9b::a9fe:a9fe]", "http://[2002:a9fe:a9fe::1]"),
        *("http://100.100.100.200", "http://metadata.google.internal", "http://METADATA."),
        *(
            "http://\uff11\uff16\uff19.254.169.254",
            "http://169\u3002254\u3002169\u3002254",
            "http://169.254.0.1:8080",
        ),
        *("http://[::169.254.169.254]", "http://[::ffff:0:169.254.169.254]"),
        *("http://[64:ff9b:1::a9fe:a9fe]", "http://[2001:db8::5efe:a9fe:a9fe]"),
    ],
)
def test_metadata_and_link_local_addresses_are_forbidden(address, dispatcher):
    """This holds in every spelling, and with the host's own key."""
    reply = configure(dispatcher, model="openai/x", api_base=address, api_key=KEY)
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", "args.api_base")
    assert "metadata" in reply["error"]
    with pytest.raises(ValueError, match="metadata"):
        pattern(address)


def test_a_name_that_leads_to_a_forbidden_address_is_refused(dispatcher, monkeypatch):
    """The name is resolved by configure_lm."""
    import socket

    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: found)
    reply = configure(dispatcher, model="openai/x", api_base="http://nice.example", api_key=KEY)
    assert reply["code"] == "invalid_args"
    assert "leads to" in reply["error"]
