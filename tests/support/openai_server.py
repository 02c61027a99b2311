"""A small OpenAI-compatible HTTP server on loopback, with streaming, whose answers a test chooses."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

from loopback_server import LoopbackServer


class OpenAIServer(LoopbackServer):
    """A server. answer(prompt): returns the completion's text, or raises HTTPFault for an error status.

    requests: headers and body of each request.
    """

    def __init__(self, answer: Callable[[str], str], delay: float = 0.0) -> None:
        super().__init__()
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.answer = answer
        self.delay = delay
        self.before_word: Callable[[int], Any] = lambda index: None  # called before each word of a streamed answer
        self.finish_reason = "stop"
        self.broken = 0  # streams that the client did not read to the end
        self.url += "/v1"

    def respond_to(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        self.requests.append((dict(handler.headers), body))
        time.sleep(self.delay)
        try:
            text = self.answer(body["messages"][-1]["content"])
        except HTTPFault as fault:
            _send(handler, fault.status, {"error": {"message": str(fault)}}, fault.headers)
            return
        if body.get("stream"):
            try:
                self._stream(handler, text)
            except OSError:
                self.broken += 1
                handler.close_connection = True
        else:
            with contextlib.suppress(OSError):  # the client has disconnected
                _send(handler, 200, _completion(text, self.finish_reason), {})

    def _stream(self, handler: BaseHTTPRequestHandler, text: str) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for index, word in enumerate(re.findall(r"\s*\S+", text)):
            self.before_word(index)
            _event(handler, {"choices": [{"index": 0, "delta": {"content": word}}]})
        end = {"index": 0, "delta": {}, "finish_reason": self.finish_reason}
        _event(handler, {"choices": [end]})
        _event(handler, {"choices": [], "usage": USAGE})
        _chunk(handler, b"data: [DONE]\n\n")
        _chunk(handler, b"")


class HTTPFault(Exception):
    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def fields(**values: str) -> str:
    """Return the reply of a model in DSPy's chat format."""
    parts = [f"[[ ## {name} ## ]]\n{value}" for name, value in values.items()]
    return "\n\n".join([*parts, "[[ ## completed ## ]]"])


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def _completion(text: str, finish_reason: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "c1",
        "object": "chat.completion",
        "created": 0,
        "model": "test",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": USAGE,
    }


def _send(handler, status: int, body: dict[str, Any], headers: dict[str, str]) -> None:
    data = json.dumps(body).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(data)


def _event(handler, body: dict[str, Any]) -> None:
    body = {"id": "c1", "object": "chat.completion.chunk", "created": 0, "model": "test", **body}
    _chunk(handler, b"data: " + json.dumps(body).encode() + b"\n\n")


def _chunk(handler, data: bytes) -> None:
    handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
    handler.wfile.flush()
