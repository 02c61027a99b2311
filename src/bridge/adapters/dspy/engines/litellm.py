"""Providers that are called through LiteLLM, which is loaded for the first such request.

LiteLLM's HTTP clients, streams and errors are corrected here.
"""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

from dspy import lm15
from dspy.clients._http import retry_after_seconds
from dspy.clients.engines.litellm_engine import LiteLLMEngine

from bridge.adapters.dspy import credentials
from bridge.adapters.dspy.current_run import current_call, current_run
from bridge.adapters.dspy.engines.retries import causes, timeout_within
from bridge.security import redaction
from bridge.security.destinations import Address, allows
from bridge.telemetry.logs import take_over_logs


class LiteLLMProviders:
    """The engine for all providers that DSPy does not call itself.

    It takes the place of DSPy's own, which is created for each request and so cannot be supervised.
    """

    def __init__(self, connection: dict[str, Any]) -> None:
        self._connection = connection

    def complete(self, request: Any) -> Any:
        with completed_errors():
            return self._engine().complete(request)

    def stream(self, request: Any) -> Any:
        with completed_errors():
            yield from self._engine().stream(request)

    def _engine(self) -> LiteLLMEngine:
        load_litellm()
        run = current_run.get()
        remaining = None if run is None else run.context.remaining
        timeout = timeout_within(self._connection["timeout"], remaining)
        return LiteLLMEngine(**{**self._connection, "timeout": timeout})


@cache
def load_litellm() -> None:
    collects = gc.isenabled()
    gc.disable()  # collections would take a fifth of the seconds that it loads, and find nothing
    try:
        import litellm
    finally:
        if collects:
            gc.enable()

    litellm.suppress_debug_info = True  # it is printed, not logged
    litellm.DEFAULT_MAX_RETRIES = 0  # type: ignore[attr-defined]  # embeddings take it for a max_retries of 0
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        take_over_logs(name)
    _guard_http_clients()
    _record_refusals()
    credentials.strip_environment_keys()
    redaction.read_environment()  # it reads a file .env


def _guard_http_clients() -> None:
    """Stop LiteLLM's clients from following redirects, and OpenAI's from sending headers of the environment to others.

    httpx sends all headers but Authorization, such as x-api-key, on to the host of a redirect. DSPy's own client
    neither follows redirects nor adds headers.
    """
    from litellm.llms.custom_httpx.http_handler import HTTPHandler
    from litellm.llms.openai.common_utils import BaseOpenAILLM

    def guarded(make: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(make)
        def made(*args: Any, **kwargs: Any) -> Any:
            client = make(*args, **kwargs)
            if client is not None:
                client.follow_redirects = False
                hooks = client.event_hooks["request"]
                if _drop_openai_headers not in hooks:
                    hooks.append(_drop_openai_headers)
            return client

        return made

    own, openai = HTTPHandler.create_client, BaseOpenAILLM._get_sync_http_client
    for owner, name, made in (
        (HTTPHandler, "create_client", guarded(own)),
        (BaseOpenAILLM, "_get_sync_http_client", staticmethod(guarded(openai))),
    ):
        setattr(owner, name, made)


def _record_refusals() -> None:
    """Record the text of refusals in streams, which LiteLLM drops."""
    from litellm import CustomStreamWrapper

    handle = CustomStreamWrapper.handle_openai_chat_completion_chunk

    @wraps(handle)
    def handle_openai_chat_completion_chunk(self: Any, chunk: Any) -> Any:
        call = current_call.get()
        for choice in getattr(chunk, "choices", None) or ():
            refused = getattr(getattr(choice, "delta", None), "refusal", None)
            if call is not None and isinstance(refused, str):
                call.refusal += refused
        return handle(self, chunk)

    CustomStreamWrapper.handle_openai_chat_completion_chunk = handle_openai_chat_completion_chunk


def _drop_openai_headers(request: Any) -> None:
    with contextlib.suppress(ValueError):
        if allows(credentials.addresses_of("openai"), Address.parse(str(request.url))):
            return
    for name, value in credentials.openai_headers():
        if request.headers.get(name) == value:
            del request.headers[name]


@contextmanager
def completed_errors() -> Iterator[None]:
    """Add details that LiteLLM leaves out of its errors."""
    try:
        yield
    except lm15.LM15Error as error:
        import httpx  # only once litellm has loaded it

        failed = any(isinstance(cause, httpx.TransportError) for cause in causes(error))
        if failed and not isinstance(error, lm15.TimeoutError | lm15.TransportError):
            # LiteLLM invents a status of 500.
            raise lm15.TransportError(error.message, provider=error.provider) from error
        for cause in causes(error):
            if isinstance(cause, httpx.HTTPStatusError):
                _complete(error, cause.response)
                break
        raise


def _complete(error: lm15.LM15Error, response: Any) -> None:
    """Add the message, the code and Retry-After of the provider's `response` to `error`."""
    if error.retry_after is None:
        error.retry_after = retry_after_seconds(response.headers.get("retry-after"))
    try:
        body = json.loads(response.text)["error"]
        message, code = body["message"], body.get("code")
    except Exception:  # the body has another shape, or there is none
        return
    if isinstance(message, str):
        error.message = message
    if isinstance(code, str) and error.provider_code is None:
        error.provider_code = code
