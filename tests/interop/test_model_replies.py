"""Replies of models over HTTP: texts in any form, refusals, unreadable replies."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from bridge import Client, Dispatcher, errors
from bridge.adapters.dspy import adapter
from bridge.adapters.dspy.engines import supervised
from model_server import KEY, PROTOCOLS, Anthropic, Gemini, LiteLLM, ModelServer, OpenAI
from openai_server import fields

SIGNATURE = {"inputs": [{"name": "q"}], "outputs": [{"name": "a"}]}
ARGS = {"program_id": "p", "inputs": {"q": "?"}}


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client.start() as client:
        client.call("ping", timeout=60)
        yield client


@pytest.fixture(params=PROTOCOLS, ids=lambda protocol: protocol.__name__)
def protocol(request):
    return request.param


def create(client, *outputs, **more):
    signature = {"inputs": [{"name": "q"}], "outputs": list(outputs) or [{"name": "a"}]}
    client.call("cleanup")
    client.call("create_program", {"id": "p", "signature": signature, **more}, timeout=60)


def run(client, protocol, said, *, stream=False, status=200, piece=1 << 30, args=ARGS):
    """Return the result, and the streamed text of each field. Raises the error of the call."""
    with ModelServer(lambda body: (status, {}, said)) as server:
        server.piece = piece
        settings = {"model": protocol.model, "api_base": server.url + protocol.path, "api_key": KEY}
        client.call("configure_lm", {**settings, "retries": 0}, timeout=60)
        if not stream:
            return client.call("execute_program", args, timeout=60), {}
        chunks: dict[str, str] = {}
        call = client.stream("execute_program", args, timeout=60)
        for event, data in call:
            if event == "chunk":
                chunks[data["field"]] = chunks.get(data["field"], "") + data["text"]
        return call.result(), chunks


def failure(client, protocol, said, **more):
    with pytest.raises(errors.LMError) as raised:
        run(client, protocol, said, **more)
    return raised.value


@pytest.mark.parametrize(
    ("texts", "answer"),
    [
        (["x \ud83d", "\ude00 y"], "x \U0001f600 y"),
        (["\ud83d", "\ude00"], "\U0001f600"),
        (["\ud83d", "x"], "\ufffdx"),
        (["x\ude00y", "\ud83d"], "x\ufffdy\ufffd"),
        (["\ude00\ud83d", "\ud83d", "\ude00"], "\ufffd\ufffd\U0001f600"),
    ],
)
def test_halves_of_characters(client, protocol, texts, answer):
    """Two halves in two deltas become one character; a half alone becomes U+FFFD."""
    create(client)
    said = protocol.events(["[[ ## a ## ]]\n", *texts])
    result, chunks = run(client, protocol, said, stream=True)
    assert result["outputs"] == chunks == {"a": answer}
    whole = protocol.whole("[[ ## a ## ]]\n" + "".join(texts))
    assert run(client, protocol, whole)[0]["outputs"] == {"a": answer}


def test_bytes_of_a_character_may_come_apart(client, protocol):
    create(client)
    said = protocol.events(["[[ ## a ## ]]\n", "x \U0001f600 é", " y"])
    raw = [event if isinstance(event, bytes) else json.dumps(event, ensure_ascii=False).encode() for event in said]
    result, chunks = run(client, protocol, raw, stream=True, piece=1)
    assert result["outputs"] == chunks == {"a": "x \U0001f600 é y"}


def test_half_a_character_in_an_error(client, protocol):
    """The provider's error is reported."""
    body = {"error": {"message": "no \ud83d", "type": "x", "code": "x", "status": "X"}}
    error = failure(client, protocol, body, status=400)
    assert error.details["status"] == 400
    assert "no \ufffd" in str(error)


def test_half_a_character_from_a_model_does_not_reach_the_next_prompt(client, protocol):
    """The thought of an agent is part of its next prompt."""

    def look(x: str) -> str:
        return x

    client.call("cleanup")
    client.register_tools([look])
    program = {"id": "p", "signature": SIGNATURE, "program_type": "react"}
    client.call("create_program", program)
    said = fields(next_thought="t \ud83d", next_tool_name="finish", next_tool_args="{}")
    said = fields(reasoning="r \ude00", a="x") + "\n\n" + said
    result, _ = run(client, protocol, protocol.whole(said))
    assert result["outputs"] == {"reasoning": "r \ufffd", "a": "x"}


@pytest.mark.parametrize(
    ("type", "text", "value"),
    [
        ("dict<string, string>", r'{"k\ud83d": "v\ude00", "w": "\ud83d\ude00"}', None),
        ("list<any>", r'["x\ud83d", {"y": ["\ude00"]}]', ["x\ufffd", {"y": ["\ufffd"]}]),
        ("string", r"C:\users\ud83d", r"C:\users\ud83d"),
    ],
)
def test_half_a_character_as_an_escape_sequence(client, type, text, value):
    """This holds in values of every type except text, which is not JSON."""
    create(client, {"name": "a", "type": type})
    if value is None:
        value = {"k\ufffd": "v\ufffd", "w": "\U0001f600"}
    result, _ = run(client, OpenAI, OpenAI.whole(f"[[ ## a ## ]]\n{text}"))
    assert result["outputs"] == {"a": value}


def test_half_a_character_in_the_arguments_of_a_tool(client):
    seen = []

    def look(x: str) -> str:
        seen.append(x)
        return "well"

    client.call("cleanup")
    client.register_tools([look])
    client.call("create_program", {"id": "p", "signature": SIGNATURE, "program_type": "react"})
    said = fields(next_thought="t", next_tool_name="look", next_tool_args=r'{"x": "a\ud83d"}')
    run(client, OpenAI, OpenAI.whole(fields(reasoning="r", a="x") + "\n\n" + said))
    assert set(seen) == {"a\ufffd"}


def test_a_tool_call_that_cannot_be_sent_ends_the_run():
    """An event that is longer than a frame is not shown to the model as a traceback."""

    def look(x: str) -> str:
        return "short"

    args = json.dumps({"x": "long" * 2000})
    said = fields(next_thought="t", next_tool_name="look", next_tool_args=args)
    with Client.start(max_frame=4096, tools=[look]) as client:
        client.call("create_program", {"id": "p", "signature": SIGNATURE, "program_type": "react"})
        with ModelServer(lambda body: (200, {}, OpenAI.events([said]))) as server:
            base = {"api_base": server.url + OpenAI.path, "api_key": KEY}
            client.call("configure_lm", {"model": OpenAI.model, **base}, timeout=60)
            stream = client.stream("execute_program", ARGS)
            list(stream)
            with pytest.raises(errors.ReplyTooLarge):
                stream.result(60)
    assert len(server.requests) == 1


def test_a_reply_without_a_field(client, protocol):
    """The error has the expected fields, the fields found, and the reply."""
    create(client, {"name": "a"}, {"name": "the score", "type": "float"})
    reply = "[[ ## a ## ]]\nfine\n\n[[ ## note ## ]]\nwell\n\n[[ ## completed ## ]]"
    for said, stream in ((protocol.whole(reply), False), (protocol.events([reply]), True)):
        error = failure(client, protocol, said, stream=stream)
        assert error.details == {
            "lm_code": "adapter_parse_error",
            "expected": ["a", "the score"],
            "found": ["a", "note"],
            "reply": reply,
        }
        assert "no field the score" in str(error)


def test_a_field_of_another_type(client, protocol):
    create(client, {"name": "a"}, {"name": "the score", "type": "float"})
    reply = "[[ ## a ## ]]\nfine\n\n[[ ## the_score ## ]]\nhigh"
    error = failure(client, protocol, protocol.whole(reply))
    assert error.details["field"] == "the score"
    assert error.details["expected"] == error.details["found"] == ["a", "the score"]
    assert error.details["reply"] == reply


@pytest.mark.parametrize("reply", ["", "  \n", "just text", '{"a": 1}', "[[ ## a ##"])
def test_a_reply_without_fields(client, protocol, reply):
    create(client)
    error = failure(client, protocol, protocol.whole(reply))
    assert error.details["lm_code"] == "adapter_parse_error"
    assert (error.details["expected"], error.details["found"]) == (["a"], [])
    assert error.details["reply"].strip() == reply.strip()


def test_a_long_reply_is_cut_between_characters(client):
    """It is cut at 4096 bytes, and secrets are redacted before that."""
    create(client)
    reply = "é" * 2040 + KEY + "é" * 1_000_000
    error = failure(client, OpenAI, OpenAI.whole(reply))
    cut = error.details["reply"]
    assert len(cut.encode()) <= 4096
    assert cut.startswith("é" * 2040)
    assert KEY[:4] not in cut
    assert "\ufffd" not in cut


@pytest.mark.parametrize(
    "type", ["any", "list", "dict", "integer", "list<string>", "dict<string, any>", "float", "date"]
)
@pytest.mark.parametrize("text", ["[" * 3000, "{" * 3000, '{"a":' * 3000, "[" * 3000 + "]" * 3000])
def test_an_answer_of_brackets(client, type, text):
    """It is an answer of its type or an error of the model, never an internal error."""
    create(client, {"name": "a", "type": type})
    try:
        result, _ = run(client, OpenAI, OpenAI.whole(f"[[ ## a ## ]]\n{text}"))
    except (errors.LMError, errors.NotEncodable) as error:
        said = error
    else:
        said = result["outputs"].keys()
    if isinstance(said, errors.LMError):
        assert said.details["field"] == "a"
    elif isinstance(said, errors.NotEncodable):
        assert type in ("any", "list", "dict", "dict<string, any>")
    else:
        assert said == {"a"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("body", [b"null", b"[]", b"no JSON", b'{"choices": [{"message": null}]}'])
def test_a_response_that_is_not_an_answer(client, protocol, body, stream):
    """The provider's error is one line, without a traceback of a library."""
    create(client)
    error = failure(client, protocol, [body] if stream else body, stream=stream)
    assert "Traceback" not in str(error)
    assert ".py" not in str(error)
    assert "\n" not in str(error)


FINISH = {OpenAI: "length", LiteLLM: "length", Anthropic: "max_tokens", Gemini: "MAX_TOKENS"}


def test_a_truncated_answer(client, protocol):
    """The result reports it, and so does the error if the reply cannot be read."""
    create(client)
    said = "[[ ## a ## ]]\nhalf of"
    result, _ = run(client, protocol, protocol.whole(said, FINISH[protocol]))
    assert (result["outputs"], result["truncated"]) == ({"a": "half of"}, True)
    result, _ = run(client, protocol, protocol.events([said], FINISH[protocol]), stream=True)
    assert (result["outputs"], result["truncated"]) == ({"a": "half of"}, True)
    assert "truncated" not in run(client, protocol, protocol.whole(said))[0]
    error = failure(client, protocol, protocol.whole("[[ ## b ## ]]", FINISH[protocol]))
    assert error.details["truncated"] is True
    assert "max_tokens" in str(error)


WORDS = "I cannot help with that."
PARTIAL = "[[ ## a ## ]]\nSome"


@pytest.mark.parametrize(
    ("protocol", "said", "stream", "refusal"),
    [
        (OpenAI, OpenAI.whole(None, refusal=WORDS), False, WORDS),
        (OpenAI, OpenAI.events([], refusal=WORDS), True, WORDS),
        (OpenAI, OpenAI.whole(PARTIAL, "content_filter"), False, PARTIAL),
        (OpenAI, OpenAI.events([PARTIAL], "content_filter"), True, PARTIAL),
        (LiteLLM, LiteLLM.whole(None, refusal=WORDS), False, WORDS),
        (LiteLLM, LiteLLM.events([], refusal=WORDS), True, WORDS),
        (LiteLLM, LiteLLM.whole(PARTIAL, "content_filter"), False, PARTIAL),
        (LiteLLM, LiteLLM.events([PARTIAL], "content_filter"), True, PARTIAL),
        (Anthropic, Anthropic.whole(WORDS, "refusal"), False, WORDS),
        (Anthropic, Anthropic.events([WORDS], "refusal"), True, WORDS),
        (Gemini, Gemini.whole(None, "SAFETY"), False, "SAFETY"),
        (Gemini, Gemini.events([PARTIAL], "SAFETY"), True, "SAFETY"),
        (Gemini, Gemini.whole(None, "PROHIBITED_CONTENT"), False, "PROHIBITED_CONTENT"),
        (Gemini, {"promptFeedback": {"blockReason": "SAFETY"}}, False, "SAFETY"),
        (Gemini, [{"promptFeedback": {"blockReason": "OTHER"}}], True, "OTHER"),
    ],
)
def test_a_refusal(client, protocol, said, stream, refusal):
    """The error has its text and the code of a refusal."""
    create(client)
    error = failure(client, protocol, said, stream=stream)
    assert error.details["lm_code"] == "refusal"
    assert refusal in error.details["refusal"]
    assert error.details["reason"]
    assert error.recovery == "abandon"


@pytest.mark.parametrize("code", ["content_filter", "content_policy_violation"])
@pytest.mark.parametrize("model", ["openai/test-model", "together_ai/some/model"])
def test_a_prompt_that_a_filter_refuses(client, code, model):
    """The responses are those of Azure and OpenAI."""

    class Filtered(OpenAI):
        pass

    Filtered.model = model
    create(client)
    body = {"error": {"message": WORDS, "code": code, "type": "invalid_request_error"}}
    error = failure(client, Filtered, body, status=400)
    assert error.details["lm_code"] == "refusal"
    assert WORDS in error.details["refusal"]


@pytest.mark.parametrize("size", [100_000, 5_000_000])
def test_an_answer_may_stream_in_one_event(client, protocol, size):
    """The event may have any length."""
    create(client)
    text = "x" * size
    said = protocol.events([f"[[ ## a ## ]]\n{text}"])
    result, chunks = run(client, protocol, said, stream=True)
    assert result["outputs"] == chunks == {"a": text}


def test_long_chunks_fit_into_frames():
    """A model that sends its whole answer at once is streamed in several events."""
    with Client.start(max_frame=4096) as client:
        create(client)
        text = 'é"\\' * 1000
        said = OpenAI.events([f"[[ ## a ## ]]\n{text}"])
        with ModelServer(lambda body: (200, {}, said)) as server:
            base = {"api_base": server.url + OpenAI.path, "api_key": KEY}
            client.call("configure_lm", {"model": OpenAI.model, **base}, timeout=60)
            stream = client.stream("execute_program", ARGS)
            chunks = [data["text"] for event, data in stream if event == "chunk"]
            with pytest.raises(errors.ReplyTooLarge):
                stream.result()
    assert "".join(chunks) == text


def test_an_internal_error_is_not_the_providers(monkeypatch):
    """An error that is raised where DSPy calls the engine is not an lm_error."""

    def fail(request, response):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(supervised, "cost_usd", fail)
    dispatcher = Dispatcher(adapter)

    def ask(command, args):
        request = {"id": 1, "command": command, "args": args}
        return json.loads(dispatcher.call(json.dumps(request).encode(), 60))

    with ModelServer(lambda body: (200, {}, OpenAI.whole(fields(a="1")))) as server:
        base = {"api_base": server.url + OpenAI.path, "api_key": KEY}
        assert ask("configure_lm", {"model": OpenAI.model, **base})["success"]
        assert ask("create_program", {"id": "p", "signature": SIGNATURE})["success"]
        reply = ask("execute_program", ARGS)
    assert (reply["code"], reply["error"]) == ("handler_error", "ZeroDivisionError: ours")
