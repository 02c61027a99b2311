"""OpenTelemetry from the host to the language model: real SDK, real worker, real HTTP."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import format_span_id, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from bridge import Client, errors
from openai_server import HTTPFault, OpenAIServer, fields
from peer import SUPPORT, wait_until

EXAMPLES = Path(SUPPORT).parents[1] / "examples" / "python"
SIGNATURE = {
    "name": "My.App.QA",
    "inputs": [{"name": "question"}],
    "outputs": [{"name": "answer"}],
}
KEY = "sk-tracing-0123456789"
UNSAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


class Traced:
    """A worker with --telemetry, its spans, and a tracer of the host."""

    def __init__(self, client, path):
        self.client = client
        self.path = path
        self._tracer = TracerProvider().get_tracer("host")

    def call(self, command, args=None, **more):
        """Make the call in a span of the host, and return that span. An error of the call is not raised."""
        span = self._tracer.start_span("host")
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, set_span_in_context(span))
        try:
            self.client.call(command, args, traceparent=carrier["traceparent"], **more)
        except errors.BridgeError as error:
            span.record_exception(error)
        finally:
            span.end()
        return span

    def spans_of(self, span):
        """Return the worker's spans in the trace of a host's span, by their first word, oldest first."""
        trace_id = "0x" + format_trace_id(span.get_span_context().trace_id)
        found = [json.loads(line) for line in self.path.read_text().splitlines()]
        found = [each for each in found if each["context"]["trace_id"] == trace_id]
        return sorted(found, key=lambda each: each["start_time"])

    @property
    def count(self):
        return len(self.path.read_text().splitlines())


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    path = tmp_path_factory.mktemp("spans") / "spans.jsonl"
    path.touch()
    search = os.pathsep.join(filter(None, [str(EXAMPLES), os.environ.get("PYTHONPATH")]))
    env = {"SPANS": str(path), "PYTHONPATH": search}
    with Client.start(adapter="traced:adapter", env=env, flags=["--telemetry"]) as client:
        traced = Traced(client, path)

        def listens():
            traced.call("ping")
            return traced.count

        wait_until(listens)
        client.call("create_program", {"id": "qa", "signature": SIGNATURE}, timeout=60)
        yield traced


def configure(traced, server, **more):
    args = {"model": "openai/gpt-4o-mini", "api_base": server.url, "api_key": KEY}
    traced.client.call("configure_lm", {**args, **more})


def execute(traced, **more):
    args = {"program_id": "qa", "inputs": {"question": "a private question"}}
    return traced.call("execute_program", args, **more)


def parent_of(span):
    return span["parent_id"]


def id_of(span):
    return span["context"]["span_id"]


def test_from_the_host_to_the_language_model(traced):
    """host -> server -> workflow -> chat is one trace, and each span is the child of the last."""
    with OpenAIServer(lambda prompt: fields(answer="a private answer")) as server:
        configure(traced, server)
        host = execute(traced)
    call, workflow, chat = traced.spans_of(host)
    assert parent_of(call) == "0x" + format_span_id(host.get_span_context().span_id)
    assert parent_of(workflow) == id_of(call)
    assert parent_of(chat) == id_of(workflow)
    assert (call["name"], call["kind"]) == ("execute_program", "SpanKind.SERVER")
    assert call["attributes"]["rpc.system.name"] == "dspex_bridge"
    assert call["attributes"]["rpc.method"] == "execute_program"
    assert call["attributes"]["session.id"] == "default"
    assert call["attributes"]["dspex_bridge.request.id"].isdigit()
    assert (workflow["name"], workflow["kind"]) == (
        "invoke_workflow My.App.QA",
        "SpanKind.INTERNAL",
    )
    assert workflow["attributes"]["gen_ai.operation.name"] == "invoke_workflow"
    assert workflow["attributes"]["gen_ai.workflow.name"] == "My.App.QA"
    assert workflow["attributes"]["dspex_bridge.program.id"] == "qa"
    assert workflow["attributes"]["gen_ai.conversation.id"] == "default"
    assert (chat["name"], chat["kind"]) == ("chat gpt-4o-mini", "SpanKind.CLIENT")
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.response.model": "test",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.conversation.id": "default",
    }
    assert expected.items() <= chat["attributes"].items()
    assert chat["attributes"]["dspex_bridge.cost_usd"] > 0
    spans = json.dumps([call, workflow, chat])
    assert "private" not in spans, "contents are nobody's business"
    assert KEY not in spans
    assert all(each["status"]["status_code"] == "UNSET" for each in (call, workflow, chat))


def test_a_streamed_answer(traced):
    """It has the same spans, with the tokens from the end of the stream."""
    with OpenAIServer(lambda prompt: fields(answer="one two")) as server:
        configure(traced, server)
        args = {"program_id": "qa", "inputs": {"question": "?"}}
        parent = "00-0af7651916cd43dd8448eb211c80319d-b7ad6b7169203331-01"
        stream = traced.client.stream("execute_program", args, traceparent=parent)
        assert "chunk" in [event for event, _ in stream]
        assert stream.result()["outputs"] == {"answer": "one two"}
    found = [json.loads(line) for line in traced.path.read_text().splitlines()]
    names = {each["name"]: each for each in found if parent[3:35] in each["context"]["trace_id"]}
    assert set(names) == {"execute_program", "invoke_workflow My.App.QA", "chat gpt-4o-mini"}
    assert names["chat gpt-4o-mini"]["attributes"]["gen_ai.usage.output_tokens"] == 2


def test_errors(traced):
    """Each span has its error's name; the provider repeats the key, no span does."""

    def refuse(prompt):
        raise HTTPFault(401, f"Incorrect API key provided: {KEY}")

    with OpenAIServer(refuse) as server:
        configure(traced, server)
        spans = traced.spans_of(execute(traced))
    call, workflow, chat = spans
    assert call["attributes"]["error.type"] == "lm_error"
    assert call["attributes"]["rpc.response.status_code"] == "lm_error"
    assert workflow["attributes"]["error.type"] == "lm_error"
    assert chat["attributes"]["error.type"] == "auth"
    for each in spans:
        assert each["status"]["status_code"] == "ERROR"
        assert "***" in each["status"]["description"]
    assert KEY not in json.dumps(spans)


def test_a_tool_of_the_host(traced):
    """Its span execute_tool is a sibling of the chat spans of the run."""

    def temperature(city: str) -> str:
        """The temperature in a city."""
        return "21"

    answers = [
        {"next_thought": "t", "next_tool_name": "temperature", "next_tool_args": {"city": "Graz"}},
        {"next_thought": "t", "next_tool_name": "finish", "next_tool_args": {}},
        {"reasoning": "r", "answer": "21"},
    ]
    client = traced.client
    client.call("configure_lm", {"provider": "scripted", "answers": answers}, session_id="tools")
    client.register_tools([temperature], session_id="tools")
    args = {"id": "w", "signature": SIGNATURE, "program_type": "react"}
    client.call("create_program", args, session_id="tools")
    run = {"program_id": "w", "inputs": {"question": "?"}}
    call, workflow, *parts = traced.spans_of(traced.call("execute_program", run, session_id="tools"))
    assert [each["name"] for each in parts] == [
        "chat answers",
        "execute_tool temperature",
        "chat answers",
        "chat answers",
    ]
    assert {parent_of(each) for each in parts} == {id_of(workflow)}
    assert parts[1]["attributes"]["gen_ai.tool.name"] == "temperature"
    assert {each["attributes"]["gen_ai.conversation.id"] for each in parts} == {"tools"}
    assert call["attributes"]["session.id"] == "tools"


def test_a_command_that_the_worker_does_not_know(traced):
    """Spans are not named after unknown commands."""
    (span,) = traced.spans_of(traced.call("made_up"))
    assert span["name"] == "_OTHER"
    assert span["attributes"]["rpc.method"] == "_OTHER"
    assert span["attributes"]["rpc.method_original"] == "made_up"
    assert span["attributes"]["error.type"] == "unknown_command"


@pytest.mark.parametrize(
    "traceparent",
    [
        None,
        UNSAMPLED,
        "",
        "nonsense",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0g",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        "00_0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331_01",
        "x" * 10_000,
    ],
)
def test_there_are_no_spans_if_the_trace_is_not_sampled(traced, traceparent):
    """The same is true for an invalid traceparent, and the calls are answered."""
    before = traced.count
    assert traced.client.call("ping", traceparent=traceparent)["status"] == "ok"
    assert traced.client.call("list_programs", traceparent=traceparent)["total_count"]
    traced.call("ping")
    assert traced.count == before + 1


def test_a_later_version_of_the_header(traced):
    """It is read as far as it is known."""
    before = traced.count
    later = "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-is-to-come"
    traced.client.call("ping", traceparent=later)
    assert traced.count == before + 1


def test_without_the_library_a_worker_starts(start_peer, tmp_path):
    """It prints to stderr what is missing, and how to install it."""
    (tmp_path / "opentelemetry.py").write_text("raise ImportError('not here')")
    search = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    peer = start_peer("--telemetry", env={"PYTHONPATH": search})
    assert peer.is_alive()
    line = json.loads(peer.process.stderr.readline())
    assert line["level"] == "WARNING"
    assert "dspex-bridge[telemetry]" in line["message"]
    assert peer.call("ping", traceparent=UNSAMPLED[:-1] + "1")["success"]


@pytest.mark.parametrize(("flags", "loaded"), [((), False), (("--telemetry",), True)])
def test_nothing_is_loaded_that_is_not_used(start_peer, flags, loaded):
    """opentelemetry is loaded only with the flag; the SDK and Prometheus are not loaded even then."""
    peer = start_peer(*flags, adapter="hostile:adapter")
    assert peer.is_alive()

    def modules():
        return set(peer.call("modules")["result"])

    if loaded:
        wait_until(lambda: "opentelemetry.trace" in modules())
    assert peer.call("sleep")["success"]
    assert ("opentelemetry" in modules()) == loaded
    assert not {"opentelemetry.sdk", "dspy", "numpy"} & modules()
