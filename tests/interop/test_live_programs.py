"""Programs that stream, use the host's tools, and are cancelled, against HTTP on loopback."""

from __future__ import annotations

import threading

import pytest

from bridge import Client, errors
from openai_server import OpenAIServer, fields
from peer import wait_until

QA = {"inputs": [{"name": "question"}], "outputs": [{"name": "the answer"}, {"name": "score"}]}
WEATHER = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]}


def next_step(thought, name, args):
    return fields(next_thought=thought, next_tool_name=name, next_tool_args=args)


def agent(prompt):
    """Return a model that calls the tool once, finishes, and answers with the tool's result."""
    if "next_tool_name" not in prompt:
        return fields(reasoning="the tool said so", answer="It is 21 degrees in Graz.")
    if "observation_0" in prompt:
        return next_step("done", "finish", "{}")
    return next_step("ask", "temperature", '{"city": "Graz"}')


@pytest.fixture
def server():
    with OpenAIServer(agent) as server:
        yield server


@pytest.fixture(scope="module")
def started():
    with Client.start() as client:
        yield client


@pytest.fixture
def client(started, server):
    """Return the client of the module, without programs and tools, whose model is the server's."""
    started.call("cleanup", timeout=60)
    settings = {"model": "openai/test", "api_base": server.url, "api_key": "sk-test-123456"}
    started.call("configure_lm", settings, timeout=60)
    return started


def create(client, signature, program_type="predict", **more):
    args = {"id": "p", "signature": signature, "program_type": program_type, **more}
    client.call("create_program", args, timeout=60)


def chunks(events):
    """Return the text of each field."""
    text = {}
    for event, data in events:
        if event == "chunk":
            text[data["field"]] = text.get(data["field"], "") + data["text"]
    return text


@pytest.mark.parametrize("program_type", ["predict", "chain_of_thought"])
def test_an_answer_streams_field_by_field(client, server, program_type):
    """Chunks have the host's names and no headers, and make up the whole result."""
    answer = "one two [three] [[ four\n\n five"
    said = {"reasoning": "because of this"} if program_type != "predict" else {}
    server.answer = lambda prompt: fields(**said, the_answer=answer, score="0.5")
    create(client, QA, program_type)
    stream = client.stream("execute_program", {"program_id": "p", "inputs": {"question": "?"}})
    events = list(stream)
    outputs = stream.result()["outputs"]
    assert outputs == {**said, "the answer": answer, "score": "0.5"}
    assert chunks(events) == outputs
    assert len([event for event, _ in events if event == "chunk"]) >= 5
    assert events[0] == ("status", {"status": "lm_call", "model": "openai/test"})
    assert server.requests[-1][1]["stream"] is True


def test_the_first_chunk_comes_before_the_last_token(client, server):
    """The model pauses in the middle of its answer, and the first part has arrived by then."""
    go_on = threading.Event()
    server.answer = lambda prompt: fields(the_answer="first second third", score="1")
    server.before_word = lambda index: index < 6 or go_on.wait(30)
    create(client, QA)
    stream = client.stream("execute_program", {"program_id": "p", "inputs": {"question": "?"}})
    events = iter(stream)
    while next(events)[0] != "chunk":
        pass
    go_on.set()
    assert stream.result(30)["outputs"]["the answer"] == "first second third"


def test_cancelling_a_stream_stops_it(client, server):
    """The call is `cancelled`, the connection to the model is closed, and the thread is free."""
    go_on = threading.Event()
    server.answer = lambda prompt: fields(the_answer="word " * 1000, score="1")
    server.before_word = lambda index: index < 50 or go_on.wait(0.01) or True
    create(client, QA)
    stream = client.stream("execute_program", {"program_id": "p", "inputs": {"question": "?"}})
    iterator = iter(stream)
    while next(iterator)[0] != "chunk":
        pass
    assert stream.cancel()
    with pytest.raises(errors.Cancelled):
        stream.result(30)
    wait_until(lambda: client.stats()["threads_lost"] == 0)
    wait_until(lambda: server.broken == 1)


def test_react_uses_tools_written_in_the_host(client):
    """The model uses HTTP, the tool is a Python function, and every step is an event."""
    asked = []

    def temperature(city: str, unit: str = "C") -> dict[str, object]:
        """The temperature in a city."""
        asked.append((city, unit))
        return {"city": city, "degrees": 21}

    client.register_tools([temperature])
    create(client, WEATHER, "react")
    stream = client.stream("execute_program", {"program_id": "p", "inputs": {"question": "How warm is Graz?"}})
    events = list(stream)
    assert asked == [("Graz", "C")]
    assert stream.result()["outputs"]["answer"] == "It is 21 degrees in Graz."
    kinds = [event for event, _ in events if event.startswith("tool")]
    assert kinds == ["tool_call", "tool_result"]
    called = dict(event for event in events if event[0].startswith("tool"))
    assert called["tool_call"] == {"name": "temperature", "args": {"city": "Graz"}}
    assert called["tool_result"]["result"] == {"city": "Graz", "degrees": 21}
    assert chunks(events)["answer"] == "It is 21 degrees in Graz."


@pytest.mark.parametrize(
    ("arguments", "observed"),
    [
        ("{}", "error: temperature needs the argument city"),
        ('{"city": "Graz", "planet": "Mars"}', "error: temperature has no argument planet"),
        ('{"city": "Atlantis"}', "error: LookupError: no such city"),
    ],
)
def test_a_wrong_tool_call_is_one_line_for_the_model(client, server, arguments, observed):
    """Wrong arguments are not sent to the host; a failing tool shows no traceback."""
    asked = []

    def temperature(city: str) -> int:
        asked.append(city)
        raise LookupError("no such city\nwith a second line")

    def answer(prompt):
        if "next_tool_name" in prompt and "observation_0" not in prompt:
            return next_step("ask", "temperature", arguments)
        return agent(prompt)

    server.answer = answer
    client.register_tools([temperature])
    create(client, WEATHER, "react")
    client.call("execute_program", {"program_id": "p", "inputs": {"question": "?"}})
    prompts = [body["messages"][-1]["content"] for _, body in server.requests]
    assert observed in prompts[-1]
    assert "Traceback" not in prompts[-1]
    assert asked == (["Atlantis"] if "Atlantis" in arguments else [])


def test_two_sessions_have_tools_of_one_name(client, server):
    """Each session's program calls its session's tool."""
    said = {}
    for session in ("a", "b"):

        def temperature(city: str, session: str = session) -> str:
            said[session] = city
            return session

        client.register_tools([temperature], session_id=session)
        args = {"id": "p", "signature": WEATHER, "program_type": "react"}
        client.call("create_program", args, session_id=session)
    run = {"program_id": "p", "inputs": {"question": "?"}}
    client.call("execute_program", run, session_id="b")
    assert set(said) == {"b"}
    client.call("execute_program", run, session_id="a")
    assert set(said) == {"a", "b"}


def test_a_tool_may_call_the_worker(client):
    """The tool runs another program of the same worker, while the first one waits for the tool."""

    def temperature(city: str) -> int:
        data = client.call("get_session_data", session_id="weather")["data"]
        return data[city]

    client.call("update_session_data", {"key": "Graz", "value": 21}, session_id="weather")
    client.register_tools([temperature])
    create(client, WEATHER, "react")
    result = client.call("execute_program", {"program_id": "p", "inputs": {"question": "?"}})
    assert result["outputs"]["answer"] == "It is 21 degrees in Graz."


def test_host_calls_nest(client):
    """A tool runs another agent, whose tool is called meanwhile."""
    asked = []

    def temperature(city: str) -> str:
        asked.append(city)
        if len(asked) == 1:
            run = {"program_id": "p", "inputs": {"question": "And how warm is Graz?"}}
            return client.call("execute_program", run)["outputs"]["answer"]
        return "21"

    client.register_tools([temperature])
    create(client, WEATHER, "react")
    result = client.call("execute_program", {"program_id": "p", "inputs": {"question": "?"}})
    assert result["outputs"]["answer"] == "It is 21 degrees in Graz."
    assert asked == ["Graz", "Graz"]


def test_cancelling_an_agent_while_its_tool_runs(client):
    """The reply arrives at once, and the model is not asked again."""
    running, go_on = threading.Event(), threading.Event()

    def temperature(city: str) -> int:
        running.set()
        go_on.wait(30)
        return 21

    client.register_tools([temperature])
    create(client, WEATHER, "react")
    call = client.submit("execute_program", {"program_id": "p", "inputs": {"question": "?"}})
    assert running.wait(30)
    assert call.cancel()
    with pytest.raises(errors.Cancelled):
        call.result(30)
    wait_until(lambda: client.stats()["threads_lost"] == 0)
    go_on.set()


def test_a_deadline_ends_a_slow_model(client, server):
    """deadline_exceeded arrives at once, although the model has not answered."""
    server.delay = 3
    create(client, QA)
    with pytest.raises(errors.DeadlineExceeded):
        client.call("execute_program", {"program_id": "p", "inputs": {"question": "?"}}, timeout=0.2)


def test_wrong_tools_and_wrong_uses_of_them(client):
    """They are refused with their path, and no program is created."""
    for tools, text in (
        ([{"name": " "}], "name has 1 to 200 characters"),
        ([{"name": "a"}, {"name": "a"}], "a second tool"),
        ([{"name": "a", "args": {"x": 5}}], "not a JSON Schema"),
        ([{}], "missing required field"),
    ):
        with pytest.raises(errors.InvalidArgs, match=text):
            client.call("register_tools", {"tools": tools})
    with pytest.raises(errors.InvalidArgs, match="react needs tools, and the session has none"):
        create(client, WEATHER, "react")
    with pytest.raises(errors.InvalidArgs, match="only for programs of type react"):
        create(client, WEATHER, "predict", max_iters=3)
    with pytest.raises(errors.InvalidArgs, match="no tool nothing"):
        create(client, WEATHER, "react", tools=["nothing"])
    with pytest.raises(errors.InvalidArgs, match="max_iters"):
        create(client, WEATHER, "react", max_iters=1000)

    def varied(*args: int) -> int:
        return 0

    with pytest.raises(TypeError, match="cannot be declared"):
        client.register_tools([varied])
