"""API keys: the addresses they are sent to, and their redaction."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from keys import KEY, SIGNATURE, call, configure
from openai_server import HTTPFault, OpenAIServer, fields

ENVIRONMENT_KEY = "sk-env-9876543210fedcba"


@pytest.mark.parametrize("bad", ["\n", "\0", "\x7f", "\x1b", "\r\nX-Other: 1", "\t", "ü", "€", "\u2028"])
@pytest.mark.parametrize("session", [{}, {"session_id": "s"}])
def test_a_key_that_cannot_be_sent_is_refused(bad, session, dispatcher):
    """The error does not contain it."""
    key = f"sk-secret{bad}secret-0123456789"
    reply = configure(dispatcher, model="openai/x", api_key=key, **session)
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", "args.api_key")
    assert "secret" not in reply["error"].replace("secrets", "")


def test_white_space_around_a_key_is_stripped(dispatcher):
    """Spaces and line breaks, as in a file."""
    with OpenAIServer(lambda prompt: fields(answer="yes")) as server:
        args = {"model": "openai/x", "api_base": server.url, "api_key": f" {KEY}\r\n"}
        assert configure(dispatcher, **args)["success"]
        assert ask(dispatcher)["success"]
    assert authorizations(server) == {f"Bearer {KEY}"}


def test_keys_of_the_environment_are_stripped_or_refused(start_peer):
    """The error names the variable."""
    with OpenAIServer(lambda prompt: fields(answer="yes")) as server:
        environment = {
            "OPENAI_API_KEY": f"{ENVIRONMENT_KEY}\n",
            "OPENAI_BASE_URL": server.url,
            "GROQ_API_KEY": "gsk-secret\nsecret-012345",
        }
        peer = start_peer(adapter="dspy", env=environment)
        reply = peer.call("configure_lm", {"model": "groq/x"})
        assert (reply["code"], reply["details"]["variable"]) == ("invalid_args", "GROQ_API_KEY")
        assert "gsk" not in json.dumps(reply)
        assert peer.call("configure_lm", {"model": "gpt-4o-mini"})["success"]
        assert peer.call("create_program", {"id": "qa", "signature": SIGNATURE})["success"]
        run = {"program_id": "qa", "inputs": {"question": "?"}}
        reply = peer.call("execute_program", run, timeout_ms=60_000)
        assert reply["success"], reply
    assert authorizations(server) == {f"Bearer {ENVIRONMENT_KEY}"}


def test_the_operators_key_goes_to_no_address_of_a_host(dispatcher, monkeypatch):
    """Neither to loopback, nor if the host sends an empty key; the provider's own address is allowed."""
    monkeypatch.setenv("OPENAI_API_KEY", ENVIRONMENT_KEY)
    with OpenAIServer(lambda prompt: fields(answer="yes")) as server:
        for base in (server.url, "https://api.openai.com.evil.example/v1", "http://localhost:1"):
            for key in ({}, {"api_key": ""}, {"api_key": " \n"}, {"api_key": None}):
                reply = configure(dispatcher, model="openai/x", api_base=base, **key)
                assert (reply["code"], reply["details"]["path"]) == (*("invalid_args", "args.api_base"),)
                assert "api_key" in reply["error"]
        assert not server.requests
    for base in ("https://api.openai.com/v1", "https://API.openai.com:443/v1/"):
        assert configure(dispatcher, model="openai/x", api_base=base)["success"]
    other = configure(dispatcher, model="groq/x", api_base="https://api.openai.com/v1")
    assert other["code"] == "invalid_args", "the key of another provider"


def test_identities_of_the_machine_go_to_no_address_of_a_host(dispatcher):
    """A key of the host does not change that."""
    for provider in ("bedrock", "vertex_ai", "azure", "gigachat"):
        args = {"model": f"{provider}/x", "api_base": "http://127.0.0.1:9", "api_key": KEY}
        reply = configure(dispatcher, **args)
        assert (reply["code"], reply["details"]["path"]) == ("invalid_args", "args.api_base")
        assert "--api-base" in reply["error"]


def test_the_operator_allows_addresses(start_peer):
    """--api-base PATTERN may be repeated; other addresses remain refused."""
    with OpenAIServer(lambda prompt: fields(answer="yes")) as server:
        peer = start_peer(
            *("--api-base", "https://*.example.com", "--api-base", server.url),
            adapter="dspy",
            env={"OPENAI_API_KEY": ENVIRONMENT_KEY},
        )
        args = {"model": "openai/x", "api_base": server.url}
        beside = peer.call("configure_lm", {**args, "api_base": f"{server.url}x"})
        assert beside["code"] == "invalid_args"
        assert peer.call("configure_lm", args)["success"]
        assert peer.call("create_program", {"id": "qa", "signature": SIGNATURE})["success"]
        run = {"program_id": "qa", "inputs": {"question": "?"}}
        reply = peer.call("execute_program", run, timeout_ms=60_000)
        assert reply["success"], reply
    assert authorizations(server) == {f"Bearer {ENVIRONMENT_KEY}"}


@pytest.mark.parametrize("text", ["example.com", "https://u@h", "https://h?x", "http://[fe80::1]"])
def test_an_invalid_pattern_is_a_usage_error(text, start_peer):
    """It is one line with the status of wrong usage."""
    peer = start_peer("--api-base", text)
    assert peer.wait() == 2
    assert "--api-base" in peer.stderr()
    assert "Traceback" not in peer.stderr()


def test_a_host_of_the_library_allows_addresses_as_an_option():
    """The option is `api_bases`; an invalid pattern is an error in the options."""
    from bridge import embed

    with pytest.raises(ValueError, match=r"api_bases: .*metadata"):
        embed.open(b'{"adapter": "echo", "api_bases": ["http://169.254.169.254"]}', False)


def test_headers_of_the_environment_go_to_openai_only(start_peer):
    """OpenAI's client adds them for every provider that it serves."""
    headers = {"OPENAI_CUSTOM_HEADERS": "x-gateway: Basic gw-1234\nx-team: t-1234"}
    ids = {"OPENAI_ORG_ID": "org-1", "OPENAI_ORGANIZATION": "org-2", "OPENAI_PROJECT_ID": "proj-1"}
    with OpenAIServer(lambda prompt: fields(answer="yes")) as server:
        peer = start_peer(adapter="dspy", env={**headers, **ids})
        assert peer.call("create_program", {"id": "qa", "signature": SIGNATURE})["success"]
        args = {"model": "sambanova/x", "api_base": server.url, "api_key": KEY}
        assert peer.call("configure_lm", args)["success"]
        run = {"program_id": "qa", "inputs": {"question": "?"}}
        assert peer.call("execute_program", run, timeout_ms=60_000)["success"]
    ((sent, _),) = server.requests
    assert not {*sent.values()} & {"Basic gw-1234", "t-1234", *ids.values()}
    assert authorizations(server) == {f"Bearer {KEY}"}


@contextmanager
def serving(answer):
    """Answer POST requests on loopback with `answer(handler)`, and yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            answer(self)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def redirecting(target, status):
    """Serve redirects to `target`."""

    def answer(handler):
        handler.rfile.read(int(handler.headers["Content-Length"]))
        handler.send_response(status)
        handler.send_header("Location", f"{target}{handler.path.removeprefix('/v1')}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with serving(answer) as url:
        yield url


def test_redirects_take_no_key_to_another_host(start_peer):
    """With DSPy's client and with LiteLLM's two, each redirect ends the run with an error."""
    peer = start_peer(adapter="dspy")
    assert peer.call("create_program", {"id": "qa", "signature": SIGNATURE})["success"]
    run = {"program_id": "qa", "inputs": {"question": "?"}}
    with OpenAIServer(lambda prompt: fields(answer="yes")) as server:
        for status in (302, 307):
            with redirecting(server.url.replace("127.0.0.1", "localhost"), status) as url:
                for model in (
                    "openai/x",
                    "anthropic/x",
                    "together_ai/x",
                    "mistral/x",
                    "cohere_chat/x",
                ):
                    args = {"model": model, "api_base": url, "api_key": KEY}
                    assert peer.call("configure_lm", args)["success"]
                    reply = peer.call("execute_program", run, timeout_ms=60_000)
                    assert reply["code"] == "lm_error", (model, status, reply)
                    assert KEY not in json.dumps(reply)
        assert not server.requests


def test_a_sessions_key_hides_nothing_in_others_and_goes_with_it(dispatcher):
    """A key that is a word of the errors destroys none; its own is hidden, also from a run that
    was under way when it was replaced."""
    word = "question-0123456789"
    configure(dispatcher, model="openai/x", api_key=word, session_id="a")
    missing = {"program_id": word, "inputs": {}}
    ours = call(dispatcher, "execute_program", **missing, session_id="a")
    assert ours["error"].startswith("Program not found: ***")
    theirs = call(dispatcher, "execute_program", **missing, session_id="b")
    assert theirs["error"].startswith(f"Program not found: {word}")
    configure(dispatcher, provider="scripted", answers=[], session_id="a")
    again = call(dispatcher, "execute_program", **missing, session_id="a")
    assert again["error"].startswith(f"Program not found: {word}")
    configure(dispatcher, model="openai/x", api_key=word, session_id="a")
    call(dispatcher, "cleanup_session", session_id="a")
    again = call(dispatcher, "execute_program", **missing, session_id="a")
    assert again["error"].startswith(f"Program not found: {word}")


def test_a_key_is_hidden_in_the_errors_of_a_run_that_outlives_its_configuration(dispatcher):
    """The provider repeats it after the session got another model."""
    arrived, go_on = threading.Event(), threading.Event()

    def refused(prompt):
        arrived.set()
        assert go_on.wait(30)
        raise HTTPFault(401, f"{'x' * 990} Incorrect API key provided: {KEY} ({KEY[::-1]})")

    replies = []
    with OpenAIServer(refused) as server:
        configure(dispatcher, model="openai/x", api_base=server.url, api_key=KEY, session_id="s")
        running = threading.Thread(target=lambda: replies.append(ask(dispatcher, request_id="late", session_id="s")))
        running.start()
        assert arrived.wait(30)
        configure(dispatcher, provider="scripted", answers=[], session_id="s")
        go_on.set()
        running.join()
    (reply,) = replies
    assert reply["code"] == "lm_error"
    for cut in range(8, len(KEY)):
        assert KEY[:cut] not in json.dumps(reply)


@pytest.mark.parametrize("provider", ["openai", "anthropic", "together_ai"])
def test_a_key_that_a_library_cuts_is_hidden(provider, dispatcher):
    """This holds at each length at which DSPy and LiteLLM cut responses."""
    body = b""

    def answer(handler):
        handler.rfile.read(int(handler.headers["Content-Length"]))
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    with serving(answer) as url:
        args = {"model": f"{provider}/x", "api_base": url, "api_key": KEY, "retries": 0}
        assert configure(dispatcher, **args)["success"]
        for status, limit in ((200, 200), (400, 200), (400, 500), (500, 1000)):
            for before in (5, 9, 14, 20):
                body = b"x" * (limit - before) + KEY.encode() + b" and more"
                reply = ask(dispatcher)
                assert reply["code"] == "lm_error"
                assert KEY[:8] not in json.dumps(reply), (status, limit, before)


def test_a_result_is_not_changed(dispatcher):
    """It is the user's, and is not redacted."""
    with OpenAIServer(lambda prompt: fields(answer=f"it is {KEY}")) as server:
        configure(dispatcher, model="openai/x", api_base=server.url, api_key=KEY, session_id="s")
        reply = ask(dispatcher, session_id="s")
    assert reply["result"]["outputs"]["answer"] == f"it is {KEY}"


@pytest.mark.parametrize("mode", ["pool-worker", "standalone"])
def test_a_pools_worker_configures_itself(mode, start_peer):
    """It uses GEMINI_API_KEY and logs that; a standalone worker asks for configure_lm."""
    answer = {"role": "model", "parts": [{"text": fields(answer="yes")}]}
    usage = {"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5}
    body = {
        "candidates": [{"content": answer, "finishReason": "STOP", "index": 0}],
        "usageMetadata": usage,
    }
    requests = []

    def respond(handler):
        handler.rfile.read(int(handler.headers["Content-Length"]))
        requests.append((handler.path, handler.headers["x-goog-api-key"]))
        data = json.dumps(body).encode()
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    with serving(respond) as url:
        environment = {"GEMINI_API_KEY": ENVIRONMENT_KEY, "GEMINI_API_BASE": url}
        peer = start_peer("--mode", mode, adapter="dspy", env=environment)
        assert peer.call("create_program", {"id": "qa", "signature": SIGNATURE})["success"]
        run = {"program_id": "qa", "inputs": {"question": "?"}}
        reply = peer.call("execute_program", run, timeout_ms=60_000)
        peer.close_input()
        assert peer.wait() == 0
    if mode == "standalone":
        assert reply["code"] == "lm_not_configured"
        assert not requests
        return
    assert reply["success"], reply
    assert reply["result"]["outputs"] == {"answer": "yes"}
    assert reply["result"]["model"].startswith("gemini/gemini-")
    assert {key for _, key in requests} == {ENVIRONMENT_KEY}
    lines = [json.loads(line) for line in peer.stderr().splitlines()]
    (line,) = [line for line in lines if line["logger"] == "bridge.worker"]
    assert "no language model was configured" in line["message"]
    assert ENVIRONMENT_KEY not in peer.stderr()


def authorizations(server):
    """Return the Authorization headers of the received requests."""
    return {
        value for headers, _ in server.requests for name, value in headers.items() if name.lower() == "authorization"
    }


def ask(dispatcher, session_id=None, **more):
    """Run a new program."""
    call(dispatcher, "create_program", id="qa", signature=SIGNATURE, session_id=session_id, **more)
    run = {"program_id": "qa", "inputs": {"question": "?"}}
    return call(dispatcher, "execute_program", **run, session_id=session_id, **more)
