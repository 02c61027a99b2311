"""Redaction: what is a secret, in which forms it is found, in which texts, and for how long."""

from __future__ import annotations

import base64
import gc
import html
import json
import os
import re
import subprocess
import sys
import threading
from urllib.parse import quote, quote_plus

import pytest

from bridge.security import redaction
from bridge.security.redaction import hold, redact, redact_in
from bridge.security.secret_values import is_secret

KEY = "sk-proj-Zq8/vT+3xW_1mB=="
ODD = "p\"w\\ö\n\t/'ß&<7 é  x%9"


@pytest.mark.parametrize(
    "value",
    [
        *("", "path", "error", "time", "none", "EMPTY", "password", "handler_error", "ValueError"),
        *("authentication", "application/json", "12345678", "2026-11-28", "127.0.0.1:8080"),
        *("aaaaaaaaaaaaaaaa1", "hush-hush", "Not Found", "maxTokens", "http://host"),
    ],
)
def test_words_and_numbers_are_not_secrets(value):
    """A key that is a common word must not garble texts."""
    assert not is_secret(value)
    with_it = hold([value])
    assert redact(f"{value} and {value}: a text") == f"{value} and {value}: a text"
    del with_it


@pytest.mark.parametrize(
    "value",
    [
        *(
            "sk-abc12345",
            "hunter2!x",
            "s3cr3t-9",
            "AKIAIOSFODNN7EXAMPLE",
            "correct horse battery staple",
        ),
        *("9f86d081884c7d65", "4929135768024871", KEY, ODD, "AIzaSyD-9tSrke72PouQMnMX"),
    ],
)
def test_what_is_random_is_a_secret(value):
    """Also in the middle of words."""
    assert is_secret(value)
    with_it = hold([value])
    assert redact(f"<{value}>x{value}x") == "<***>x***x"
    del with_it
    assert redact(value) == value


FORMS = {
    "json": lambda text: json.dumps(text)[1:-1],
    "json in utf-8": lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    "json with escaped slashes": lambda text: json.dumps(text)[1:-1].replace("/", "\\/"),
    "json with upper case": lambda text: re.sub(
        r"\\u[0-9a-f]{4}", lambda found: f"\\u{found[0][2:].upper()}", json.dumps(text)[1:-1]
    ),
    "repr": lambda text: repr(text)[1:-1],
    "repr of more": lambda text: repr(f"{text}\"'")[1:-4],
    "repr of bytes": lambda text: repr(text.encode())[2:-1],
    "ascii": lambda text: ascii(text)[1:-1],
    "unicode_escape": lambda text: text.encode("unicode_escape").decode(),
    "repr of json": lambda text: repr(json.dumps(text))[2:-2],
    "json of json": lambda text: json.dumps(json.dumps(text))[3:-3],
    "json of repr": lambda text: json.dumps(repr(text))[2:-2],
    "squeezed": lambda text: " ".join(text.split()),
    "without white space": lambda text: "".join(text.split()),
    "html": html.escape,
    "percent": lambda text: quote(text, safe=""),
    "percent but for slashes": quote,
    "percent in lower case": lambda text: re.sub("%..", lambda found: found[0].lower(), quote(text, safe="")),
    "plus for spaces": quote_plus,
    "percent twice": lambda text: quote(quote(text, safe=""), safe=""),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 without padding": lambda text: base64.b64encode(text.encode()).decode().rstrip("="),
    "base64 for addresses": lambda text: base64.urlsafe_b64encode(text.encode()).decode(),
    "base64 in an address": lambda text: quote(base64.b64encode(text.encode()).decode(), safe=""),
    "base64 in lines": lambda text: "\n".join(re.findall(".{1,12}", base64.b64encode(text.encode()).decode())),
    "hex": lambda text: text.encode().hex(),
    "hex in upper case": lambda text: text.encode().hex().upper(),
    "hex with colons": lambda text: text.encode().hex(":"),
    "hex with spaces": lambda text: text.encode().hex(" "),
    "list of bytes": lambda text: str(list(text.encode()))[1:-1],
    "repr of utf-16": lambda text: repr(text.encode("utf-16-le"))[2:-5],
    "every byte escaped": lambda text: "".join(f"\\x{byte:02X}" for byte in text.encode()),
    "every character escaped": lambda text: "".join(f"\\u{ord(each):04x}" for each in text),
    "every byte in percent": lambda text: "".join(f"%{byte:02x}" for byte in text.encode()),
    "decimal entities": lambda text: "".join(f"&#{ord(each)};" for each in text),
    "hexadecimal entities": lambda text: "".join(f"&#x{ord(each):x};" for each in text),
    "html twice": lambda text: html.escape(html.escape(text)),
    "json four times": lambda text: json.dumps(json.dumps(json.dumps(json.dumps(text))))[15:-15],
    "repr three times": lambda text: repr(repr(repr({"k": text}))).split(": ")[1].strip("\\'\"}"),
    "percent three times": lambda text: quote(quote(quote(text, safe=""), safe=""), safe=""),
    "json in an address": lambda text: quote(json.dumps(text)[1:-1], safe=""),
    "in lines": lambda text: "\n    ".join(re.findall("(?s).{1,9}", text)),
    "lines in json": lambda text: json.dumps("\r\n".join(re.findall("(?s).{1,9}", text)))[1:-1],
    "spaced": " ".join,
    "with zero width spaces": "\u200b".join,
    "misread as latin-1": lambda text: text.encode().decode("latin-1"),
}


@pytest.mark.parametrize("few", [0, 10_000])
@pytest.mark.parametrize("secret", [KEY, ODD])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_secret_is_found(form, secret, few, monkeypatch):
    """No part of it remains, whether there are few secrets or many."""
    monkeypatch.setattr(redaction, "FEW", few)
    text = FORMS[form](secret)
    with_it = hold([secret])
    assert redact(f"<{text}|") == "<***|"
    assert redact(f"<{text}|{text}|") == "<***|***|"
    del with_it


@pytest.mark.parametrize("before", ["\\", "\\x", "\\u", "%", "%2", "\\\\", "&", "&amp;", "=\n", "é", "\0"])
@pytest.mark.parametrize("secret", ["abc123DEF456-x", "n0-abcdef-12345", "41abcdef-98765x"])
def test_text_before_a_secret_does_not_hide_it(before, secret):
    """The text may be part of an invalid escape sequence."""
    with_it = hold([secret])
    assert redact(f"at{before}{secret} is wrong") in (
        f"at{before}*** is wrong",
        f"at{before.strip()}*** is wrong",
        "at*** is wrong",
    )
    del with_it


@pytest.mark.parametrize(
    "text",
    [
        *("plain", "C:\\new\\table", "100%25", "a &amp;&lt; b", "\\ud800 \\U0011ffff &#9999999;"),
        *("é\u200b中文 \U0001f600", "\\" * 999, "%" * 999, "&amp" * 99, "=\n=\r\n", "\\u{}\\x4"),
    ],
)
def test_texts_without_secrets_are_unchanged(text):
    """If a text contains a secret, only the secret is redacted."""
    with_it = hold([KEY])
    assert redact(text) == text
    assert redact(f"{text} {KEY} {text}") == f"{text} *** {text}"
    del with_it


@pytest.mark.parametrize("user", ["", "u", "us", "use", "user@example.com"])
def test_a_secret_is_found_in_the_base64_of_more(user):
    """The header of basic authentication has any text beside it."""
    secret = "Zq8vT3xW1mBk-9s"
    with_it = hold([secret])
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        header = encode(f"{user}:{secret}".encode()).decode()
        shown = redact(f"token {header} was refused")
        hidden = [each for each in shown.split(" ")[1].split("***") if each]
        assert "***" in shown
        assert sum(map(len, hidden)) <= len(user) * 4 / 3 + 6
    del with_it


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Authorization: Bearer abcd", "Authorization: Bearer ***"),
        ("'authorization': 'Basic dTpw'", "'authorization': 'Basic ***'"),
        ('{"x-api-key": "weak"}', '{"x-api-key": "***"}'),
        ("got Bearer abc123def456", "got Bearer ***"),
        ("at https://user:pw@host/v1", "at https://user:***@host/v1"),
        ("GET /v1?key=weak&n=1", "GET /v1?key=***&n=1"),
        ("a basic understanding is wanted?", "a basic understanding is wanted?"),
        ("the bearer authentication failed", "the bearer authentication failed"),
    ],
)
def test_unknown_credentials_are_redacted(text, shown):
    """They are in headers and addresses; prose is unchanged."""
    assert redact(text) == shown


def test_a_secret_that_was_cut_off_is_found():
    """Libraries shorten responses before they can be redacted."""
    secret = "sk-0123456789-abcdefghij-klmno"
    with_it = hold([secret])
    assert redact(f"refused: {secret[:12]}") == "refused: ***"
    assert redact(f"refused: {secret[:12]}... (400)") == "refused: ***... (400)"
    assert redact(f"refused: {secret[:12]!r} (400)") == "refused: '***' (400)"
    assert redact(f"refused: {secret[:20]} (400)") == "refused: *** (400)"
    assert redact(f"refused: {secret[:12]} (400)") == f"refused: {secret[:12]} (400)"
    del with_it


def test_the_longest_secret_wins_and_overlapping_ones_are_covered():
    """A short key does not expose parts of others."""
    keys = ["abcd1234efgh", "abcd1234", "1234efgh5678", "xyz-98765432", "65432-abcd1234"]
    with_them = [hold([key]) for key in keys]
    assert redact("abcd1234efgh") == "***"
    assert redact("abcd1234efgh5678") == "***"
    assert redact("xyz-98765432-abcd1234efgh5678.") == "***."
    assert redact("abcd1234 abcd1234efg") == "*** ***"
    del with_them


def test_a_sessions_secrets_are_redacted_in_its_texts():
    """They are also redacted in texts of unknown sessions; those of the process are redacted everywhere."""
    with_them = hold(["key-of-a-1234567"], "a"), hold(["key-of-all-1234567"])
    text = "key-of-a-1234567 key-of-all-1234567"
    assert redact(text) == "*** ***"
    token = redaction.session.set("b")
    try:
        assert redact(text) == "key-of-a-1234567 ***"
        redaction.session.set("a")
        assert redact(text) == "*** ***"
    finally:
        redaction.session.reset(token)
    del with_them


def test_a_secret_is_redacted_until_its_last_holder_ends():
    """Several models may have the same secret."""
    first, second = hold([KEY], "a"), hold([KEY], "b")
    del first
    assert redact(KEY) == "***"
    del second
    gc.collect()
    assert redact(KEY) == KEY


def test_secrets_are_bounded_and_none_in_use_is_forgotten(monkeypatch):
    """More secrets are refused."""
    monkeypatch.setattr(redaction, "MOST_SECRETS", 500)
    with_them = []
    with pytest.raises(redaction.QuotaExceeded):
        with_them.extend(hold([f"key-{number}-abcdefg"]) for number in range(501))
    refused = f"key-{len(with_them)}-abcdefg"
    assert redact(f"key-0-abcdefg {refused}") == f"*** {refused}"
    with_them.clear()
    assert redact("key-0-abcdefg") == "key-0-abcdefg"
    with_them.append(hold([refused]))
    assert redact(refused) == "***"


def test_secrets_are_found_among_thousands_that_begin_alike():
    """Each is found; those that were dropped are not."""
    keys = [f"sk-proj-{number:05}-{number * 7919 % 99991:05}x" for number in range(3000)]
    with_them = {key: hold([key], key) for key in keys}
    for key in keys[::100]:
        assert redact(f"refused {key}.") == "refused ***."
        del with_them[key]
    assert redact(keys[0]) == keys[0]
    assert redact(keys[1]) == "***"


def test_secrets_come_and_go_while_others_are_redacted():
    """Many threads at the same time."""
    raised = []
    common = hold(["common-0123456789"])

    def come_and_go(number):
        try:
            for index in range(100):
                own = hold([f"secret-{number}-{index}-x1"], str(number))
                assert redact(f"secret-{number}-{index}-x1 common-0123456789") == "*** ***"
                del own
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=come_and_go, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not raised
    del common


def test_lists_and_maps_are_redacted():
    """Keys, values and bytes; other values are unchanged; a cyclic value ends."""
    with_it = hold(["hush-hush-0123"])
    value = {"a": ["hush-hush-0123", {"b": ("x", 1)}], "hush-hush-0123": b"hush-hush-0123", 2: 3}
    assert redact_in(value) == {"a": ["***", {"b": ["x", 1]}], "***": b"***", 2: 3}
    value["a"] = value
    assert "hush" not in str(redact_in(value))
    del with_it


ENVIRONMENT = {
    "OPENAI_API_KEY": "sk-env-0000000001",
    "SOMETOKEN": "tok-env-0000000002\n",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+3",
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzE-0000000005==",
    "PGPASSWORD": "pg-00-pass-06",
    "DATABASE_URL": "postgres://app:db%2Fpw-00000007@db/app",
    "SENTRY_DSN": "https://0123456789abcdef08@sentry.example/1",
    "GITHUB_PAT": "ghp_000000000009abc",
    "STRIPE_KEY": "rk_live_000000010abc",
    "REGISTRY_AUTH": "dXNlcjpwYXNzMDAwMDAwMTE=",
    "SMTP_PASS": "smtp-000000012x",
    "GOOGLE_CREDENTIALS": '{"type": "service", "private_key": "-----BEGIN-MIIEv0000013abc"}',
    "DB_CREDENTIALS": "host=db;user=app;password=cred-0000014x",
    "API_KEYS": "first-000000015a,second-00000016b",
    "WHATEVER": "redis://:redis-00000017c@cache:6379",
    "SERVICE_CREDENTIALS": json.dumps(
        {"key": "-----BEGIN X-----\nMIIE00000018abcd\n", "uri": "https://a.example/o/auth"}
    ),
    "MIXED_KEYS": "https://a.example/x,listed-0000019abc",
    "AWS_SECRET_KEY": "/JalrXUtnFEMIK7MDENGbPxRfiCYEX000020ab+",
    "STORAGE_CONNECTION_STRING": "Protocol=https;AccountKey=q83vEjRWeJ000021==;Suffix=core.example",
    "MY_PROVIDER": "sk-proj-000022abcdefGHIJKL",
    "SOMETHING": "--with ghp_000023abcdefGHIJKLMNO",
    "OTEL_EXPORTER_OTLP_HEADERS": "x-team=hdr-000024abcd",
    "CHAT_WEBHOOK": "https://hooks.example/services/T000/hook000025abcd",
    "ApiKeyOfMine": "camel-000026abcd",
    "APIKEYPROD": "joined-000027abcd",
    "service.api-key": "dotted-000028abcd",
}
HIDDEN = [
    *("sk-env-0000000001", "tok-env-0000000002", "wJalrXUtnFEMI/K7MDENG+3"),
    *("AKIAIOSFODNN7EXAMPLE", "FwoGZXIvYXdzE-0000000005==", "pg-00-pass-06"),
    *("db/pw-00000007", "db%2Fpw-00000007", "0123456789abcdef08", "ghp_000000000009abc"),
    *("rk_live_000000010abc", "dXNlcjpwYXNzMDAwMDAwMTE=", "smtp-000000012x"),
    *("-----BEGIN-MIIEv0000013abc", "cred-0000014x", "first-000000015a", "second-00000016b"),
    *("redis-00000017c", "MIIE00000018abcd", "listed-0000019abc", "q83vEjRWeJ000021=="),
    *("/JalrXUtnFEMIK7MDENGbPxRfiCYEX000020ab+", "sk-proj-000022abcdefGHIJKL"),
    *("ghp_000023abcdefGHIJKLMNO", "hdr-000024abcd", "hook000025abcd", "camel-000026abcd"),
    *("joined-000027abcd", "dotted-000028abcd"),
]
SHOWN = {
    "KEYBOARD_LAYOUT": "de-latin1-nodeadkeys",
    "SSH_AUTH_SOCK": "/tmp/ssh-XXXX123/agent.77",
    "PWD": "/home/somebody/project-1",
    "PASSWORD_FILE": "secrets/password-1.txt",
    "TOKEN_LIMIT": "100000000",
    "AUTH": "disabled",
    "TOKEN_FILE_PATH": "/run/secrets/Openai1/Token",
    "KEYS_URL": "core.example",
    "HOMEPAGE": "https://example.com/about-us-2",
}


def test_secrets_of_the_environment_are_known_by_name_and_form():
    """Keys, tokens, passwords, credentials and addresses with passwords are secrets, and nothing else."""
    program = (
        "import json, sys\nfrom bridge.security.redaction import redact\n"
        "print(json.dumps([redact(each) for each in json.load(sys.stdin)]))"
    )
    asked = [*HIDDEN, *SHOWN.values()]
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps([f"<{each}>" for each in asked]),
        env={**os.environ, **ENVIRONMENT, **SHOWN},
        capture_output=True,
        text=True,
        check=True,
    )
    shown = dict(zip(asked, json.loads(done.stdout), strict=True))
    assert {each: shown[each] for each in HIDDEN} == dict.fromkeys(HIDDEN, "<***>")
    assert {each: shown[each] for each in SHOWN.values()} == {each: f"<{each}>" for each in SHOWN.values()}
