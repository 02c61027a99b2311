"""`bridge.testing`: the real clients, whose workers are doubles in this process."""

from __future__ import annotations

import asyncio
import datetime
import threading

import pytest

from bridge import Client, Options, aio, errors
from bridge.testing import AsyncMockClient, Mock, MockClient, Recorded

SIGNATURE = {
    "inputs": [{"name": "q"}],
    "outputs": [{"name": "answer"}, {"name": "n", "type": "integer"}, {"name": "day", "type": "date"}],
}
RUN = {"program_id": "p", "inputs": {"q": "a"}}


def set_up(client: Client, **args: object) -> None:
    client.call("configure_lm", {"provider": "offline"})
    client.call("create_program", {"id": "p", "signature": SIGNATURE, **args})


@pytest.fixture
def client():
    with MockClient.start() as client:
        set_up(client)
        yield client


def outputs(client: Client) -> dict:
    return client.call("execute_program", RUN)["outputs"]


def test_values_that_are_set(client):
    """For one run, for all, for one program, as a function; what is not set is made up in its type."""
    made_up = outputs(client)
    assert outputs(client) == made_up
    assert made_up["answer"].startswith("mock_answer_")
    assert isinstance(made_up["n"], int)
    datetime.date.fromisoformat(made_up["day"])
    client.mock.set_response("answer", lambda inputs: inputs["q"].upper())
    client.mock.set_responses("n", 1, 2)
    assert [outputs(client)["n"] for _ in range(3)] == [1, 2, 2]
    client.mock.set_response("n", 3, program_id="p")
    client.mock.set_response("day", datetime.date(2024, 2, 29))
    assert outputs(client) == {"answer": "A", "n": 3, "day": "2024-02-29"}
    client.mock.reset()
    assert outputs(client) == made_up


def test_a_value_of_another_type_is_the_error_of_a_model(client):
    """The message names the field."""
    client.mock.set_response("n", "many")
    with pytest.raises(errors.LMError, match="'n': expected integer") as raised:
        outputs(client)
    assert raised.value.details["field"] == "n"
    with pytest.raises(ValueError, match="at least one value"):
        client.mock.set_responses("n")


def test_requests_are_recorded(client):
    """Those that the client sends by itself only if they are asked for."""
    client.call("execute_program", RUN, session_id="ann")
    assert client.mock.calls("execute_program") == [Recorded("execute_program", RUN, "ann")]
    assert [each.command for each in client.mock.calls()] == ["configure_lm", "create_program", "execute_program"]
    assert client.mock.calls("hello")


def test_errors_that_are_injected(client):
    """So many times, or until they are taken back; what a worker refuses is refused for its own reason."""
    client.mock.inject_error("execute_program", errors.Overloaded("full", retry_after=0.5), times=2)
    for _ in range(2):
        with pytest.raises(errors.Overloaded) as raised:
            outputs(client)
        assert raised.value.details == {"retry_after": 0.5}
    outputs(client)
    client.mock.inject_error("execute_program", errors.LMError("no"))
    with pytest.raises(errors.InvalidArgs):
        client.call("execute_program", {"program_id": "p"})
    with pytest.raises(errors.LMError):
        outputs(client)
    client.mock.inject_error("execute_program", None)
    client.mock.inject_error("configure_lm", errors.InvalidArgs("no"))
    with pytest.raises(errors.InvalidArgs, match="no"):
        client.call("configure_lm", {"provider": "offline"})
    outputs(client)


def test_a_stream_has_events_chunks_and_the_result(client):
    """The chunks of a field together are its text."""
    client.mock.set_response("answer", "one two three")
    with client.stream("execute_program", RUN) as stream:
        events = list(stream)
    assert events[0] == ("status", {"status": "lm_call", "model": "offline/reader"})
    chunks = [data["text"] for event, data in events if event == "chunk" and data["field"] == "answer"]
    assert chunks == ["one", " two", " three"]
    assert stream.result()["outputs"]["answer"] == "one two three"


def test_tools_are_called(client):
    """Each once, with made-up arguments, or as the test sets."""
    called = []

    def weather(city: str, days: int = 1) -> str:
        called.append((city, days))
        return client.call("ping")["status"]

    def broken() -> None:
        raise OSError("no network")

    client.register_tools([weather, broken])
    client.call("create_program", {"id": "r", "signature": SIGNATURE, "program_type": "react"})
    run = {"program_id": "r", "inputs": {"q": "a"}}
    results = [data["result"] for event, data in client.stream("execute_program", run) if event == "tool_result"]
    assert results == ["ok", "error: OSError: no network"]
    client.mock.set_tool_calls(("weather", {"city": "Linz", "days": 3}), ("weather", {"city": 7}))
    client.call("execute_program", run)
    assert called == [("mock_city_0", 1), ("Linz", 3)]  # arguments that do not fit reach no function
    client.mock.set_tool_calls(("gone", {}), program_id="r")
    with pytest.raises(errors.LMError, match="'gone'"):
        client.call("execute_program", run)


def test_a_slow_call_ends_at_its_timeout_and_by_cancelling(client):
    """The delay is never waited for."""
    client.mock.set_delay("execute_program", 3600)
    with pytest.raises(errors.DeadlineExceeded):
        client.call("execute_program", RUN, timeout=0.01)
    call = client.submit("execute_program", RUN)
    assert call.cancel()
    assert client.call("list_programs")["total_count"] == 1


def test_results_that_are_set(client):
    """Also of commands that the mock does not have."""
    with pytest.raises(errors.UnknownCommand):
        client.call("words", {"text": "to be"})
    client.mock.set_result("words", lambda args: {"words": len(args["text"].split())})
    assert client.call("words", {"text": "to be"}) == {"words": 2}
    client.mock.set_result("execute_program", {"outputs": {"answer": "x"}})
    assert client.call("execute_program", RUN) == {"outputs": {"answer": "x"}}


def test_a_crash(client):
    """It ends open calls and later ones."""
    client.mock.set_delay("execute_program", 3600)
    call = client.submit("execute_program", RUN)
    client.call("ping")
    client.mock.crash()
    with pytest.raises(errors.WorkerCrashed):
        call.result(60)
    with pytest.raises(errors.WorkerCrashed):
        client.call("ping")


def test_programs_that_an_operator_registers():
    """The test tells their signatures."""

    def look_up() -> str:
        return "found"

    with Mock(programs={"research": SIGNATURE}) as mock, MockClient.start(mock=mock, tools=[look_up]) as client:
        client.call("configure_lm", {"provider": "offline"})
        mock.set_tool_calls(("look_up", {}))
        run = {"program_id": "research", "inputs": {"q": "a"}}
        events = list(client.stream("execute_program", run))
        assert events[0][1]["predictor"] == "self"
        assert "tool_result" in dict(events)
        info = client.call("get_program_info", {"program_id": "research"})
        assert (info["registered"], info["program_type"], info["execution_count"]) == (True, "module", 1)
    with pytest.raises(errors.InvalidArgs, match=r"programs\.research"):
        Mock(programs={"research": {}})


def test_connections_share_the_script_and_nothing_else(monkeypatch):
    """An application that starts its own clients gets mocks."""
    with Mock(Options(session_programs=1)) as mock:
        monkeypatch.setattr(Client, "start", lambda **options: MockClient.start(mock=mock, **options))
        with Client.start(flags=["--threads", "4"], format="json") as one, Client.connect(mock.address) as other:
            set_up(one)
            mock.set_response("n", 7)
            assert outputs(one)["n"] == 7
            assert other.call("list_programs")["total_count"] == 0
            with pytest.raises(errors.QuotaExceeded):
                one.call("create_program", {"signature": SIGNATURE})
        with Client.connect(mock.address) as later:
            assert later.stats()["programs_count"] == 0
    with pytest.raises(errors.WorkerCrashed):
        Client.connect(mock.address)


def test_the_end_of_a_mock_leaves_nothing_behind():
    """No thread, also if its clients are open."""
    before = set(threading.enumerate())
    mock = Mock()
    clients = [Client.connect(mock.address) for _ in range(3)]
    mock.close()
    for client in clients:
        client.stop()
    left = [thread.name for thread in set(threading.enumerate()) - before]
    assert [name for name in left if name.startswith("bridge-mock")] == []


def test_the_asyncio_client():
    """It has the methods of aio.Client; async tools run in the loop."""

    async def main() -> None:
        called = []

        async def look_up(q: str) -> str:
            called.append(q)
            return "found"

        async with await AsyncMockClient.start(tools=[look_up]) as client:
            assert isinstance(client, aio.Client)
            await client.call("configure_lm", {"provider": "offline"})
            await client.call("create_program", {"id": "p", "signature": SIGNATURE, "program_type": "react"})
            client.mock.set_response("answer", "42")
            results = await asyncio.gather(*(client.call("execute_program", RUN) for _ in range(10)))
            assert {each["outputs"]["answer"] for each in results} == {"42"}
            async with client.stream("execute_program", RUN) as stream:
                events = [event async for event, _ in stream]
            assert "tool_result" in events
            assert called == ["a"] * 11
            client.mock.set_delay("execute_program", 3600)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await client.call("execute_program", RUN)

    asyncio.run(main())
