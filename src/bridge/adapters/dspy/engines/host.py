"""Models of the host: each request to one is a call of the host, which has its own connection and keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal, NoReturn

import msgspec
from dspy import lm15
from dspy.clients.lm15_boundary import request_kwargs

from bridge import errors
from bridge.adapters.dspy.current_run import PassedError, current_call

COMMAND = "call_model"
# The settings in a request's configuration, by their names in configure_lm.
_SETTINGS = {
    **{name: name for name in ("temperature", "max_tokens", "top_p", "top_k", "seed", "service_tier")},
    **{name: name for name in ("frequency_penalty", "presence_penalty")},
    "user": "user_id",
}


class HostUsage(msgspec.Struct, forbid_unknown_fields=True):
    """What a reply has cost, in tokens."""

    input_tokens: int | None = None
    output_tokens: int | None = None


class HostToolCall(msgspec.Struct, forbid_unknown_fields=True):
    """A call of a function that the model asks for. args: a map, or the text of one as JSON."""

    name: str
    args: dict[str, Any] | str = {}
    id: str | None = None


class HostReply(msgspec.Struct, forbid_unknown_fields=True):
    """What the host answers, if not just a text. text: may be missing after a stream, which has all of it."""

    text: str | None = None
    usage: HostUsage | None = None
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"] | None = None
    tool_calls: list[HostToolCall] = []


class HostModel:
    """An engine for `dspy.LM` that asks the host. name: of the model there."""

    def __init__(self, name: str) -> None:
        self._name = name

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Return the host's answer to `request`. Raises lm15's errors, and PassedError with ours."""
        context = _context()
        try:
            answer = context.call_host(COMMAND, self._args(request, context, stream=False))
        except Exception as error:
            _raise(error)
        reply = _reply(answer)
        return _response(request, reply, reply.text or "")

    def stream(self, request: lm15.Request) -> Iterator[lm15.StreamEvent]:
        """Yield the host's answer in events: the start, the text as it arrives, the end with the usage."""
        context = _context()
        messages = context.stream_host(COMMAND, self._args(request, context, stream=True))
        yield lm15.StreamStartEvent(model=request.model)
        texts: list[str] = []
        while True:
            try:
                event, data = next(messages)
            except StopIteration as ended:
                reply = _reply(ended.value)
                break
            except Exception as error:
                _raise(error)
            texts.append(_text_of(event, data))
            yield lm15.StreamDeltaEvent(delta=lm15.TextDelta(text=texts[-1]))
        streamed = "".join(texts)
        rest = "" if reply.text is None else reply.text.removeprefix(streamed)
        if rest and streamed and not (reply.text or "").startswith(streamed):
            raise _unusable("its text is not the one that was streamed")
        if rest:
            yield lm15.StreamDeltaEvent(delta=lm15.TextDelta(text=rest))
        response = _response(request, reply, streamed + rest)
        for index, part in enumerate(response.message.parts_of(lm15.ToolCallPart)):
            delta = lm15.ToolCallDelta(input=json.dumps(part.input), part_index=index + 1, id=part.id, name=part.name)
            yield lm15.StreamDeltaEvent(delta=delta)
        yield lm15.StreamEndEvent(finish_reason=response.finish_reason, usage=response.usage)

    def close(self) -> None:
        """Do nothing; DSPy closes its engines."""

    def _args(self, request: lm15.Request, context: Any, *, stream: bool) -> dict[str, Any]:
        """Return the args of the host call. Messages, tools and the response's format are those of OpenAI's chat."""
        body = json.loads(json.dumps(request_kwargs(request, "chat")))  # texts may be of a subclass of str
        config = request.config
        settings = {name: getattr(config, field) for name, field in _SETTINGS.items()}
        settings["stop"] = list(config.stop) or None
        settings["reasoning_effort"] = body.get("reasoning_effort")
        args = {
            "name": self._name,
            "messages": [_encodable(message) for message in body["messages"]],
            "settings": {name: value for name, value in settings.items() if value is not None},
            "stream": stream,
            "session_id": context.session.id,
        }
        return args | {name: body[name] for name in ("tools", "tool_choice", "response_format") if body.get(name)}


def _encodable(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose text is a str, not of a subclass, as that of a format of prompts."""
    content = message.get("content")
    return {**message, "content": str(content)} if isinstance(content, str) else message


def _context() -> Any:
    call = current_call.get()
    if call is None:
        raise lm15.ConfigurationError("models of the host answer only in runs of programs")
    return call.context


def _reply(answer: Any) -> HostReply:
    if isinstance(answer, str):
        return HostReply(answer)
    try:
        return msgspec.convert(answer, HostReply)
    except msgspec.ValidationError as error:
        raise _unusable(str(error)) from None


def _text_of(event: str, data: Any) -> str:
    text = data.get("text") if event == "chunk" and isinstance(data, dict) else None
    if not isinstance(text, str):
        raise _unusable('an event before it is not a chunk with {"text": …}')
    return text


def _unusable(reason: str) -> lm15.LM15Error:
    return lm15.ProviderError(f"the host's reply to {COMMAND} cannot be used: {reason}", provider="host")


def _response(request: lm15.Request, reply: HostReply, text: str) -> lm15.Response:
    parts: list[Any] = [lm15.TextPart(text)] if text or not reply.tool_calls else []
    for number, call in enumerate(reply.tool_calls, 1):
        parts.append(lm15.ToolCallPart(id=call.id or f"call_{number}", name=call.name, input=_arguments(call)))
    usage = reply.usage or HostUsage()
    reason = reply.finish_reason or ("tool_calls" if reply.tool_calls else "stop")
    return lm15.Response(
        id=None,
        model=request.model,
        message=lm15.Message("assistant", tuple(parts)),
        finish_reason="tool_call" if reason == "tool_calls" else reason,
        usage=lm15.Usage(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens),
    )


def _arguments(call: HostToolCall) -> dict[str, Any]:
    if isinstance(call.args, dict):
        return call.args
    try:
        return msgspec.json.decode(call.args, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise _unusable(f"the args of the call of {call.name} are not a map") from None


# By the status that the host's error tells in its details, as of the response of a provider.
_BY_STATUS = {
    401: lm15.AuthError,
    402: lm15.BillingError,
    403: lm15.AuthError,
    404: lm15.UnsupportedModelError,
    408: lm15.TimeoutError,
    429: lm15.RateLimitError,
}


def _raise(error: Exception) -> NoReturn:
    """Raise what the host answered as an error of lm15; our own errors, and the end of the call, as PassedError."""
    if not isinstance(error, errors.BridgeError) or isinstance(error, errors.CallEnded | errors.NotAllowed):
        raise PassedError(error) from error
    details = error.details
    status, retry_after = details.get("status"), details.get("retry_after")
    status = status if isinstance(status, int) else None
    kind = _BY_STATUS.get(status or 0, lm15.ProviderError)
    if (status or 0) >= 500 or (status is None and details.get("retryable") is True):
        kind = lm15.ServerError
    elif kind is lm15.ProviderError and status is not None:
        kind = lm15.InvalidRequestError
    raise kind(
        error.message,
        provider="host",
        status=status,
        retry_after=retry_after if isinstance(retry_after, int | float) else None,
    ) from error
