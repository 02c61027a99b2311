"""A provider on loopback whose responses a test chooses, and messages of three protocols."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler
from typing import Any

from loopback_server import LoopbackServer

KEY = "sk-loopback-0123456789"


class ModelServer(LoopbackServer):
    """A provider. respond(body): returns (status, headers, body), or None to close the connection.

    A map as body is sent as JSON, bytes unchanged, a list of either as server-sent events.
    requests: the bodies that were received.
    """

    def __init__(self, respond: Callable[[dict[str, Any]], Any]) -> None:
        super().__init__()
        self.respond = respond
        self.requests: list[dict[str, Any]] = []
        self.piece = 1 << 30  # bytes in one write

    def respond_to(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        self.requests.append(body)
        response = self.respond(body)
        if response is None:
            handler.close_connection = True
            return
        status, headers, content = response
        is_stream = isinstance(content, list)
        data = b"".join(map(_event, content)) if is_stream else _encoded(content)
        kind = "text/event-stream" if is_stream else "application/json"
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        for start in range(0, len(data), self.piece):
            handler.wfile.write(data[start : start + self.piece])


def _encoded(content: Any) -> bytes:
    return content if isinstance(content, bytes) else json.dumps(content).encode()


def _event(content: Any) -> bytes:
    kind = f"event: {content['type']}\n" if isinstance(content, dict) and "type" in content else ""
    return kind.encode() + b"data: " + _encoded(content) + b"\n\n"


class OpenAI:
    """OpenAI's Chat Completions."""

    model = "openai/test-model"
    path = "/v1"

    @staticmethod
    def whole(text: str | None, finish: str = "stop", **more: Any) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, **more}
        choice = {"index": 0, "message": message, "finish_reason": finish}
        return {"id": "1", "object": "chat.completion", "model": "test-model", "choices": [choice]}

    @staticmethod
    def events(texts: Iterable[str], finish: str = "stop", **more: Any) -> list[Any]:
        deltas = [{"content": text} for text in texts] + [{name: more[name]} for name in more]
        chunks = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
        chunks.append({"index": 0, "delta": {}, "finish_reason": finish})
        head = {"id": "1", "object": "chat.completion.chunk", "model": "test-model"}
        return [*({**head, "choices": [chunk]} for chunk in chunks), b"[DONE]"]

    @staticmethod
    def contents(body: dict[str, Any]) -> list[Any]:
        """Return the content of each message."""
        return [message["content"] for message in body["messages"]]


class LiteLLM(OpenAI):
    """A provider that DSPy reaches through litellm only."""

    model = "together_ai/some/model"


class Anthropic:
    """Anthropic's Messages."""

    model = "anthropic/claude-3-5-haiku-latest"
    path = "/v1"

    @staticmethod
    def whole(text: str | None, finish: str = "end_turn") -> dict[str, Any]:
        content = [] if text is None else [{"type": "text", "text": text}]
        return {
            "id": "1",
            "type": "message",
            "role": "assistant",
            "model": "claude",
            "content": content,
            "stop_reason": finish,
            "usage": {"input_tokens": 1, "output_tokens": 1},
        }

    @classmethod
    def events(cls, texts: Iterable[str], finish: str = "end_turn") -> list[Any]:
        start = {**cls.whole(None), "stop_reason": None}
        deltas = [
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "text_delta", "text": text},
            }
            for text in texts
        ]
        return [
            {"type": "message_start", "message": start},
            {
                "type": "content_block_start",
                "index": 0,
                "content_block": {"type": "text", "text": ""},
            },
            *deltas,
            {"type": "content_block_stop", "index": 0},
            {
                "type": "message_delta",
                "delta": {"stop_reason": finish},
                "usage": {"output_tokens": 1},
            },
            {"type": "message_stop"},
        ]

    @staticmethod
    def contents(body: dict[str, Any]) -> list[Any]:
        system = body["system"]
        parts = [system] if isinstance(system, str) else _texts(system, {"type", "text"})
        for message in body["messages"]:
            content = message["content"]
            parts += [content] if isinstance(content, str) else _texts(content, {"type", "text"})
        return parts


class Gemini:
    """Gemini's generateContent."""

    model = "gemini/gemini-2.0-flash"
    path = "/v1beta"

    @staticmethod
    def whole(text: str | None, finish: str = "STOP") -> dict[str, Any]:
        content = {"role": "model", "parts": [] if text is None else [{"text": text}]}
        return {
            "candidates": [{"content": content, "finishReason": finish, "index": 0}],
            "usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 1},
            "modelVersion": "gemini",
        }

    @classmethod
    def events(cls, texts: Iterable[str], finish: str = "STOP") -> list[Any]:
        events = [cls.whole(text) for text in texts]
        for event in events:
            del event["candidates"][0]["finishReason"]
        return [*events, cls.whole("", finish)]

    @staticmethod
    def contents(body: dict[str, Any]) -> list[Any]:
        system = body.get("systemInstruction") or body["system_instruction"]
        parts = _texts(system["parts"], {"text"})
        for message in body["contents"]:
            parts += _texts(message["parts"], {"text"})
        return parts


PROTOCOLS = [OpenAI, Anthropic, Gemini, LiteLLM]


def _texts(parts: list[dict[str, Any]], keys: set[str]) -> list[Any]:
    """Return the texts of text parts, and other parts unchanged."""
    return [part["text"] if part.keys() <= keys else part for part in parts]
