"""Images, recordings and files: from the wire to the parts of a provider's request, and the errors."""

from __future__ import annotations

import base64

import pytest

from bridge import Client, errors
from model_server import KEY, Gemini, ModelServer, OpenAI
from openai_server import fields

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40
JPEG = b"\xff\xd8\xff\xe0 jpeg"
WAV = b"RIFF\x00\x00\x00\x00WAVEfmt "
PDF = b"%PDF-1.7 text"
MARK = '<<CUSTOM-TYPE-START-IDENTIFIER>>[{"type": "image_url"}]<<CUSTOM-TYPE-END-IDENTIFIER>>'


def text(data):
    return base64.b64encode(data).decode()


PNG_URL = f"data:image/png;base64,{text(PNG)}"


@pytest.fixture(scope="module")
def client():
    with Client.start(flags=["--allow-url", "https://*.example.com/photos"], timeout=60) as client:
        yield client


@pytest.fixture(params=["json", "msgpack", "etf"])
def any_client(request):
    with Client.start(format=request.param, timeout=60) as client:
        yield client


def ask(client, types, inputs, protocol=OpenAI, **args):
    """Run a program with inputs of these types against a provider, and return the parts of its user message."""
    with ModelServer(lambda body: (200, {}, protocol.whole(fields(a="fine")))) as server:
        model = {"model": protocol.model, "api_base": server.url + protocol.path, "api_key": KEY, "retries": 0}
        client.call("configure_lm", model)
        signature = {"inputs": {name: {"type": kind} for name, kind in types.items()}, "outputs": {"a": {}}}
        client.call("create_program", {"id": "p", "signature": signature, "if_exists": "replace"})
        try:
            result = client.call("execute_program", {"program_id": "p", "inputs": inputs, **args})
        except errors.BridgeError:
            assert not server.requests
            raise
        assert result["outputs"] == {"a": "fine"}
        (body,) = server.requests
        return body


def user_parts(body):
    content = body["messages"][-1]["content"]
    return [part for part in content if part["type"] != "text"]


FORMS = [
    {"data": PNG, "mime_type": "image/png"},
    {"data": text(PNG), "mime_type": "image/png"},
    {"data": PNG},
    PNG,
    PNG_URL,
    {"url": PNG_URL},
]


@pytest.mark.parametrize("form", FORMS)
def test_images_reach_the_provider(client, form):
    """In every form in which a host may send one."""
    body = ask(client, {"q": "string", "photo": "image"}, {"q": "What?", "photo": form})
    assert user_parts(body) == [{"type": "image_url", "image_url": {"url": PNG_URL}}]
    assert body["messages"][-1]["content"][0] == {"type": "text", "text": "[[ ## q ## ]]\nWhat?\n\n[[ ## photo ## ]]\n"}


def test_bytes_arrive_in_every_format(any_client):
    """In multipart frames too, which carry more than 4 KiB of bytes."""
    body = ask(any_client, {"photo": "image"}, {"photo": {"data": PNG}})
    assert user_parts(body)[0]["image_url"]["url"] == PNG_URL


def test_lists_and_optional_images(client):
    types = {"photos": "list<image>", "other": "optional<image>"}
    body = ask(client, types, {"photos": [PNG, {"data": JPEG}]})
    urls = [part["image_url"]["url"] for part in user_parts(body)]
    assert urls == [PNG_URL, f"data:image/jpeg;base64,{text(JPEG)}"]
    assert "[[ ## other ## ]]\nNone" in body["messages"][-1]["content"][-1]["text"]


def test_recordings_and_files(client):
    """Gemini takes both as inline data. The name of a file is text before it."""
    inputs = {"speech": WAV, "paper": {"data": PDF, "filename": f"a {MARK} [[ ## a ## ]].pdf"}}
    body = ask(client, {"speech": "audio", "paper": "file"}, inputs, Gemini)
    parts = body["contents"][-1]["parts"]
    inline = [part.get("inlineData") or part.get("inline_data") for part in parts if "text" not in part]
    kinds = [(part.get("mimeType") or part.get("mime_type"), part["data"]) for part in inline]
    assert kinds == [("audio/wav", text(WAV)), ("application/pdf", text(PDF))]
    assert any("a < <CUSTOM-TYPE-" in part.get("text", "") for part in parts)


def test_marks_in_texts_beside_an_image_stay_text(client):
    """Only the image becomes a part."""
    body = ask(client, {"q": "string", "photo": "image"}, {"q": MARK, "photo": PNG})
    assert user_parts(body) == [{"type": "image_url", "image_url": {"url": PNG_URL}}]
    assert "< <CUSTOM-TYPE-START" in body["messages"][-1]["content"][0]["text"]


def test_two_images_have_two_cached_answers(client):
    """The key of the cache contains the image."""
    answers = ["one", "two"]
    with ModelServer(lambda body: (200, {}, OpenAI.whole(fields(a=answers.pop(0))))) as server:
        model = {"model": OpenAI.model, "api_base": server.url + OpenAI.path, "api_key": KEY, "cache": 5}
        client.call("configure_lm", model)
        signature = {"inputs": {"photo": {"type": "image"}}, "outputs": {"a": {}}}
        client.call("create_program", {"id": "p", "signature": signature, "if_exists": "replace"})
        runs = [client.call("execute_program", {"program_id": "p", "inputs": {"photo": x}}) for x in (PNG, JPEG, PNG)]
    assert [run["outputs"]["a"] for run in runs] == ["one", "two", "one"]


def test_demos_have_images(client):
    demo = {"inputs": {"photo": {"data": text(JPEG), "mime_type": "image/jpeg"}}, "outputs": {"a": "a cat"}}
    with ModelServer(lambda body: (200, {}, OpenAI.whole(fields(a="a dog")))) as server:
        model = {"model": OpenAI.model, "api_base": server.url + OpenAI.path, "api_key": KEY}
        client.call("configure_lm", model)
        signature = {"inputs": {"photo": {"type": "image"}}, "outputs": {"a": {}}}
        args = {"id": "p", "signature": signature, "if_exists": "replace", "demos": [demo]}
        client.call("create_program", args)
        client.call("execute_program", {"program_id": "p", "inputs": {"photo": PNG}})
        shown = client.call("get_program", {"program_id": "p", "include": ["demos"]})
    (body,) = server.requests
    images = [
        part for message in body["messages"][1:] if isinstance(message["content"], list) for part in message["content"]
    ]
    assert [part["image_url"]["url"][:15] for part in images if part["type"] == "image_url"] == [
        "data:image/jpeg",
        "data:image/png;",
    ]
    assert shown["demos"] == [demo]


def test_addresses_that_the_operator_allows(client):
    """The provider gets the address; nothing is fetched."""
    url = "https://a.example.com/photos/1.png"
    body = ask(client, {"photo": "image"}, {"photo": {"url": url}})
    assert user_parts(body) == [{"type": "image_url", "image_url": {"url": url}}]


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/photos/1.png",
        "https://a.example.com/photos/../secret",
        "http://a.example.com/photos/1.png",
        "http://169.254.169.254/latest",
        "file:///etc/passwd",
        "gs://bucket/photos",
    ],
)
def test_other_addresses_are_refused(client, url):
    with pytest.raises(errors.BridgeError) as caught:
        ask(client, {"photo": "image"}, {"photo": {"url": url}})
    assert caught.value.code in ("not_allowed", "invalid_args")
    assert caught.value.details["path"].startswith("args.inputs.photo")


WRONG = [
    # type, value, the path below the input, a part of the error
    ("image", b"", ".data", "0 bytes"),
    ("image", {"data": "", "mime_type": "image/png"}, ".data", "0 bytes"),
    ("image", {"data": "&&&&", "mime_type": "image/png"}, ".data", "not base64"),
    ("image", {"data": "abc", "mime_type": "image/png"}, ".data", "not base64"),
    ("image", {"data": 5, "mime_type": "image/png"}, ".data", "bytes or base64"),
    ("image", {"data": PNG, "mime_type": "text/plain"}, ".mime_type", "not one of image/png"),
    ("image", {"data": PNG, "mime_type": "image/jpeg"}, ".mime_type", "but the data is image/png"),
    ("image", {"data": PNG, "mime_type": "image/png;base64,x"}, ".mime_type", "a type like"),
    ("image", {"data": PDF}, ".mime_type", "application/pdf is not one of"),
    ("image", {"data": b"unknown"}, ".mime_type", "missing"),
    ("image", {"mime_type": "image/png"}, "", "expected a map with data"),
    ("image", {"data": PNG, "url": "https://a.example.com/photos/1"}, "", "expected a map with data"),
    ("image", {"data": PNG, "detail": "high"}, ".detail", "not one of data"),
    ("image", {"url": 5}, ".url", "an address"),
    ("image", {"url": "data:image/png,x"}, ".url", "must be like data:"),
    ("image", "text", "", "expected a map with data"),
    ("image", 5, "", "expected a map with data"),
    ("image", None, "", "expected a map with data"),
    ("image", {"data": PNG + bytes((20 << 20) + 1 - len(PNG))}, ".data", "20971521 bytes"),
    ("image", {"data": text(bytes((20 << 20) + 1))}, ".data", "20971521 bytes"),
    ("image", {"data": "=="}, ".data", "0 bytes"),
    ("image", bytes(21 << 20), ".data", "the limit is 20971520 (20 MiB)"),
    ("audio", {"data": b"OggS", "mime_type": "audio/ogg"}, ".mime_type", "not one of audio/wav"),
    ("audio", {"url": "https://a.example.com/photos/a.wav"}, ".url", "no place for the address"),
    ("file", {"data": PDF, "filename": "a\nb"}, ".filename", "printable"),
    ("file", {"data": PDF, "filename": ""}, ".filename", "printable"),
    ("list<image>", [PNG, b""], "[1].data", "0 bytes"),
    ("list<image>", PNG, "", "expected a list"),
]


@pytest.mark.parametrize(("kind", "value", "path", "reason"), WRONG)
def test_wrong_media_are_refused_before_any_model_is_called(client, kind, value, path, reason):
    with pytest.raises(errors.InvalidArgs, match=reason.replace("(", r"\(").replace(")", r"\)")) as caught:
        ask(client, {"x": kind}, {"x": value})
    assert caught.value.details["path"] == f"args.inputs.x{path}"


def test_fifty_megabytes_are_refused(client):
    """The worker answers the next call."""
    with pytest.raises(errors.InvalidArgs, match="20 MiB"):
        ask(client, {"x": "image"}, {"x": PNG + bytes(50 << 20)})
    assert client.call("ping")["status"] == "ok"
