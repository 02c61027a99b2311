"""OpenTelemetry spans of calls in sampled traces, for `--telemetry`.

Only the API is used: the operator chooses where spans go (with opentelemetry-instrument, or an adapter that sets up the
SDK). No span contains prompts or answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from opentelemetry import context as contexts
from opentelemetry import trace

from bridge.errors import readable, shown, words_of
from bridge.security.redaction import first_line, shorten
from bridge.telemetry.activity import UNKNOWN, Activity, listen
from bridge.version import __version__

RPC_SYSTEM = "dspex_bridge"

# A fact of an activity -> the name of the attribute in OpenTelemetry's semantic conventions. Those of RPC (1.43) are
# not all stable yet, those of GenAI are still in development.
NAMES = {
    "request_id": "dspex_bridge.request.id",
    "program_id": "dspex_bridge.program.id",
    "program_type": "dspex_bridge.program.type",
    "cost_usd": "dspex_bridge.cost_usd",
    "queued_ns": "dspex_bridge.queued_ns",
    "session_id": "session.id",
    "conversation": "gen_ai.conversation.id",
    "operation": "gen_ai.operation.name",
    "workflow": "gen_ai.workflow.name",
    "tool": "gen_ai.tool.name",
    "provider": "gen_ai.provider.name",
    "model": "gen_ai.request.model",
    "response_model": "gen_ai.response.model",
    "finish_reason": "gen_ai.response.finish_reasons",
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "system": "rpc.system.name",
    "method": "rpc.method",
    "sent_method": "rpc.method_original",
    "status": "rpc.response.status_code",
    "error": "error.type",
}
PROVIDERS = {"gemini": "gcp.gemini", "vertex_ai": "gcp.vertex_ai", "bedrock": "aws.bedrock"}
PROVIDERS |= {"azure": "azure.ai.openai", "mistral": "mistral_ai", "xai": "x_ai"}

LONGEST_TEXT = 1000  # characters of an attribute

Span = trace.Span


def start() -> Callable[[], None]:
    """Make spans of calls in sampled traces, until the returned function is called."""
    return listen(Tracing(), wants=lambda traceparent: sampled(traceparent) is not None)


class Tracing:
    """Listens to activities in sampled traces and turns them into spans.

    A call is a server span by the RPC conventions that continues the host's trace. It starts when its request was read.
    By the GenAI conventions, the run of a program inside it is an `invoke_workflow`, a tool an `execute_tool`, and a
    request to a model a `chat`.
    """

    def __init__(self) -> None:
        self._tracer = trace.get_tracer("bridge", __version__)
        self._open: dict[Activity, tuple[Span, Any]] = {}

    def started(self, activity: Activity) -> None:
        """Start a span, and make it the current span of the thread."""
        if activity.kind == "call":
            remote = sampled(activity.traceparent)
            assert remote is not None
            parent = trace.set_span_in_context(trace.NonRecordingSpan(remote), contexts.Context())
            arrived = time.time_ns() - activity.facts["queued_ns"]
            span = self._tracer.start_span(
                activity.name, parent, trace.SpanKind.SERVER, _of_call(activity), start_time=arrived
            )
        else:
            facts = {"session_id": activity.session_id, "conversation": activity.session_id}
            facts |= {"operation": activity.name} | activity.facts
            kind = trace.SpanKind.CLIENT if activity.kind == "lm" else trace.SpanKind.INTERNAL
            span = self._tracer.start_span(_span_name(activity), kind=kind, attributes=_attributes(facts))
        token = contexts.attach(trace.set_span_in_context(span))
        self._open[activity] = span, token

    def complete(self, activity: Activity) -> None:
        """End the span of `activity`."""
        self._end(activity)

    def failed(self, activity: Activity, error: BaseException) -> None:
        """End the span of `activity` as an error."""
        span, _ = self._open[activity]
        code = getattr(error, "code", None)
        kind = code if isinstance(code, str) else type(error).__qualname__
        span.set_attributes(_attributes({"error": kind}))
        if activity.kind == "call":
            span.set_attributes(_attributes({"status": kind}))
        text = readable(first_line(words_of(error), LONGEST_TEXT))
        span.set_status(trace.Status(trace.StatusCode.ERROR, text))
        self._end(activity)

    def _end(self, activity: Activity) -> None:
        span, token = self._open.pop(activity)
        contexts.detach(token)
        span.set_attributes(_attributes(activity.facts))
        span.end()


HEXADECIMAL = frozenset("0123456789abcdef")


def sampled(traceparent: str | None) -> trace.SpanContext | None:
    """Return the host's span if it is in a sampled trace. Return None for everything else, invalid values included."""
    # 00-<32 hexadecimal digits>-<16>-<2>; what follows belongs to a later version.
    text = traceparent
    if text is None or len(text) < 55 or text[54] not in "13579bdf":
        return None
    version, trace_id, span_id, flags = text[:2], text[3:35], text[36:52], text[53:55]
    if len(text) > 55 and (version == "00" or text[55] != "-"):
        return None
    dashes = text[2] + text[35] + text[52]
    if dashes != "---" or not HEXADECIMAL.issuperset(version + trace_id + span_id + flags):
        return None
    trace_flags = trace.TraceFlags(int(flags, 16))
    found = trace.SpanContext(int(trace_id, 16), int(span_id, 16), True, trace_flags)
    return found if found.is_valid and version != "ff" else None


def _span_name(activity: Activity) -> str:
    facts = activity.facts
    subject = next((facts[key] for key in ("model", "tool", "workflow") if key in facts), "")
    return shorten(f"{activity.name} {subject}".strip(), LONGEST_TEXT)


def _of_call(activity: Activity) -> dict[str, Any]:
    facts = {"system": RPC_SYSTEM, "method": activity.name, "session_id": activity.session_id}
    if activity.name == UNKNOWN:
        facts["sent_method"] = activity.command
    if activity.request_id is not None:
        request_id = activity.request_id
        facts["request_id"] = request_id if isinstance(request_id, str) else shown(request_id)
    return _attributes(facts | activity.facts)


def _attributes(facts: dict[str, Any]) -> dict[str, Any]:
    """Return `facts` as redacted attributes, with the names of the conventions."""
    found: dict[str, Any] = {}
    for key, fact in facts.items():
        if fact is None:
            continue
        if key == "provider":
            fact = PROVIDERS.get(fact, fact)
        if isinstance(fact, str):
            fact = shorten(fact, LONGEST_TEXT)
        found[NAMES.get(key, f"dspex_bridge.{key}")] = [fact] if key == "finish_reason" else fact
    return found
