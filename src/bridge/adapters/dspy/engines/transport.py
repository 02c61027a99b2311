"""The HTTP client of DSPy's own engines, with headers that the host has set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from dspy._vendor.lm15.transports import StdlibTransport

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Transport(StdlibTransport):  # type: ignore[misc]  # DSPy is not typed
    """Sends `headers` with each request, in place of others of the same names."""

    def __init__(self, headers: Mapping[str, str], **settings: Any) -> None:
        super().__init__(**settings)
        self._headers = tuple(headers.items())
        self._names = {name.lower() for name in headers}

    def stream(self, request: Any) -> Any:
        if self._headers:
            others = [(name, value) for name, value in request.headers if name.lower() not in self._names]
            request = replace(request, headers=[*others, *self._headers])
        return super().stream(request)
