"""The Python examples run as they describe."""

from __future__ import annotations

import asyncio
import os

import numpy
import pytest

from bridge import Client, errors


def test_an_adapter_of_your_own(repository):
    """It is loaded by name, and its commands are added to those of the worker."""
    path = os.pathsep.join([str(repository / "examples" / "python"), os.environ.get("PYTHONPATH", "")])
    with Client.start(adapter="own_adapter:adapter", env={"PYTHONPATH": path}) as client:
        assert client.call("median", {"values": [3, 1, 2]}) == {"median": 2.0}
        with pytest.raises(errors.InvalidArgs, match="no values"):
            client.call("median", {"values": []})
        with pytest.raises(errors.InvalidArgs) as raised:
            client.call("median", {"values": [1, "x"]})
        assert raised.value.details["path"] == "args.values[1]"
        for count in (2, 4):
            result = client.call("remember", {"values": [1, 2]}, session_id="s")
            assert result == {"count": count}
        described = client.call("describe")["commands"]["median"]
        assert described["lane"] == "inline"
        assert described["help"].startswith("Return the median")


def test_arrays_as_args_and_results(repository):
    """Arrays of other types or shapes are refused with their path before the handler runs."""
    path = os.pathsep.join([str(repository / "examples" / "python"), os.environ.get("PYTHONPATH", "")])
    a, b = numpy.arange(6, dtype="f4").reshape(2, 3), numpy.ones((3, 4), "f4")
    with Client.start(adapter="matrices:adapter", env={"PYTHONPATH": path}) as client:
        product = client.call("multiply", {"a": a, "b": b})["product"]
        assert product.tolist() == (a @ b).tolist()
        with pytest.raises(errors.InvalidArgs, match=r"Expected `f32\[k=3, m\]`, got") as raised:
            client.call("multiply", {"a": a, "b": a})
        assert raised.value.details["path"] == "args.b"


def test_a_module_of_two_stages_with_retrieval(repository):
    """Each stage streams its field; the passages that are found decide the answer."""
    path = os.pathsep.join([str(repository / "examples" / "python"), os.environ.get("PYTHONPATH", "")])
    run = {"program_id": "research", "inputs": {"question": "Where was Mozart born?"}}
    with Client.start(flags=["--program", "research=research:Research"], env={"PYTHONPATH": path}) as client:
        client.call("configure_lm", {"provider": "offline"})
        with client.stream("execute_program", run) as stream:
            stages = {(data["predictor"], data["field"]) for event, data in stream if event == "chunk"}
            outputs = stream.result()["outputs"]
        assert stages == {("rewrite", "query"), ("respond", "answer")}
        assert outputs["answer"] == "Salzburg"
        assert "Salzburg" in outputs["passages"][0]
        answers = [{"query": "highest mountain"}, {"answer": "Everest"}]
        client.call("configure_lm", {"provider": "scripted", "answers": answers})
        run["inputs"] = {"question": "What is above all?", "k": 1}
        outputs = client.call("execute_program", run)["outputs"]
        assert outputs["answer"] == "Everest"
        assert outputs["passages"] == ["Mount Everest, at 8849 metres, is the highest mountain above sea level."]


class WebServer:
    """Calls an ASGI application as a server does: its lifespan, and requests within it."""

    def __init__(self, app):
        self._app = app

    async def __aenter__(self):
        self._messages, self._said = asyncio.Queue(), asyncio.Queue()
        scope = {"type": "lifespan"}
        self._life = asyncio.create_task(self._app(scope, self._messages.get, self._said.put))
        self._messages.put_nowait({"type": "lifespan.startup"})
        assert await self._said.get() == {"type": "lifespan.startup.complete"}
        return self

    async def __aexit__(self, *_):
        self._messages.put_nowait({"type": "lifespan.shutdown"})
        assert await self._said.get() == {"type": "lifespan.shutdown.complete"}
        await self._life

    async def post(self, *parts):
        """Send a request, and yield the messages of the response. A client that leaves the loop goes away."""
        requests, responses = asyncio.Queue(), asyncio.Queue()
        for number, part in enumerate(parts):
            requests.put_nowait({"type": "http.request", "body": part, "more_body": number < len(parts) - 1})
        call = asyncio.create_task(self._app({"type": "http"}, requests.get, responses.put))
        try:
            yield await responses.get()
            while (message := await responses.get()).get("more_body"):
                yield message
        finally:
            requests.put_nowait({"type": "http.disconnect"})
            await call


USE_WAIT = "[[ ## next_thought ## ]]\n-\n[[ ## next_tool_name ## ]]\nwait\n[[ ## next_tool_args ## ]]\n{}"


def test_a_web_application(repository, monkeypatch):
    """It answers several requests at the same time, refuses wrong ones, and cancels those whose client goes away."""
    monkeypatch.syspath_prepend(str(repository / "examples" / "python"))
    import web_app

    async def answer(server, *parts):
        start, *rest = [message async for message in server.post(*parts)]
        return start["status"], b"".join(message["body"] for message in rest).decode()

    async def test():
        async with WebServer(web_app.app) as server:
            question = b'{"question": "Where is the Louvre?", "passage": "The Louvre is in Paris."}'
            answers = await asyncio.gather(*(answer(server, question[:9], question[9:]) for _ in range(5)))
            assert answers == [(200, 'Paris\n{"answer": "Paris"}\n')] * 5
            for wrong in (b"{", b'{"question": "Where?"}'):
                assert (await answer(server, wrong))[0] == 400
            started, ended = asyncio.Event(), asyncio.Event()

            async def wait() -> None:
                started.set()
                try:
                    await asyncio.sleep(60)
                finally:
                    ended.set()

            client = web_app.app.client
            await client.register_tools([wait])
            await client.call("configure_lm", {"provider": "scripted", "answers": [USE_WAIT]})
            program = {"id": "qa", "signature": web_app.SIGNATURE, "program_type": "react", "if_exists": "replace"}
            await client.call("create_program", program)
            leaving = asyncio.create_task(answer(server, question))
            await started.wait()
            leaving.cancel()
            await ended.wait()
            while (await client.stats())["in_flight"]:
                await asyncio.sleep(0.01)

    asyncio.run(test())
