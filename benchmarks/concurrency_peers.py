"""The other processes of `concurrency.py`.

`adapter`: commands of a worker that hold the GIL, or ask a slow language model.
`python concurrency_peers.py serve`: a language model's server. `… direct`: DSPy without a worker.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import ctypes
import http.client
import json
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import msgspec

from bridge import Adapter

INPUTS = {"question": "Where is the Louvre?", "passage": "The Louvre is in Paris."}
ANSWERS = {"": {"answer": "Paris"}}  # of the provider `scripted`, to any prompt
TEXT = "[[ ## answer ## ]]\nParis" + " or Paris" * 20 + "\n\n[[ ## completed ## ]]"
DELAY = 50  # milliseconds until the first word
SLOW = 1000  # milliseconds until the answer of a slow model

now = time.perf_counter
adapter = Adapter("peers")


class Seconds(msgspec.Struct):
    seconds: float = SLOW / 1000


@adapter.command("hold_gil", Seconds)
def hold_gil(args: Seconds, context: Any) -> dict[str, float]:
    """Hold the GIL, so that no other thread can run Python."""
    ctypes.PyDLL(None).usleep(int(args.seconds * 1e6))
    return {"held": args.seconds}


@adapter.command("slow_lm")
def slow_lm(args: None, context: Any) -> dict[str, str]:
    """Return the answer of a program whose model in this process takes `SLOW` ms."""
    return {"answer": slow_program()().answer}


@cache
def slow_program() -> Callable[[], Any]:
    from bridge.adapters.dspy.engines.scripted import ScriptedAnswers
    from bridge.adapters.dspy.engines.text import TextEngine

    class Slow(TextEngine):
        def complete(self, request: Any) -> Any:
            time.sleep(SLOW / 1000)
            return super().complete(request)

    return program(Slow(ScriptedAnswers(ANSWERS)))


def program(engine: Any, model: str = "scripted/answers", port: int = 0) -> Callable[[], Any]:
    """Return a function that calls a program as a DSPy user does."""
    import dspy

    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    server = {"api_base": url(port), "api_key": "none"} if port else {}
    lm = dspy.LM(model, engine=engine, cache=False, **server)
    if port:
        from bridge.adapters.dspy.engines.supervised import NativeEngines

        lm._engine_store = NativeEngines(4096)  # DSPy's own limit is 100 connections
    predict = dspy.Predict("question, passage -> answer")
    adapter = dspy.ChatAdapter(use_json_adapter_fallback=False)

    def call() -> Any:
        with dspy.context(lm=lm, adapter=adapter, trace=None, disable_history=True):
            return predict(**INPUTS)

    return call


def url(port: int) -> str:
    return f"http://127.0.0.1:{port}/v1"


def direct() -> None:
    """Run tasks from stdin, a line each: `calls` calls of `call` on `threads` threads."""
    pool = concurrent.futures.ThreadPoolExecutor(1000)
    for line in sys.stdin:
        task = json.loads(line)
        call = callable_of(task["call"], task["port"])
        several = partial(repeat, call, task["calls"] // task["threads"])
        start, cpu = now(), time.process_time()
        values = [value for some in pool.map(several, range(task["threads"])) for value in some]
        took, cpu = now() - start, time.process_time() - cpu
        firsts = [value for value in values if isinstance(value, float)]
        print(json.dumps({"s": took, "cpu_s": cpu, "firsts": firsts}), flush=True)


def repeat(call: Callable[[], Any], times: int, _: int) -> list[Any]:
    return [call() for _ in range(times)]


@cache
def callable_of(name: str, port: int) -> Callable[[], Any]:
    """Return the function of a task. Those named `first …` return the seconds to the first word."""
    if name == "sleep":
        return partial(time.sleep, SLOW / 1000)
    if name == "slow":
        return slow_program()
    if name == "first, bare":
        return partial(first_bare, http.client.HTTPConnection("127.0.0.1", port), port)
    if name == "http":
        return program("auto", f"openai/chat-{SLOW}", port)
    from dspy import lm15
    from dspy.clients.engines.lm15_engine import LM15Engine

    first = [0.0]

    def complete(engine: Any, request: Any) -> Any:
        with lm15.ResponseStream(engine.stream(request), request) as stream:
            for count, _ in enumerate(stream):
                first[0] = first[0] if count else now()
            return stream.response

    def timed(call: Callable[[], Any]) -> float:
        start = now()
        call()
        return first[0] - start

    if name == "first, DSPy":
        LM15Engine.complete = complete
        return partial(timed, program("auto", f"openai/chat-{DELAY}", port))
    assert name == "first, engine"
    urls = {"openai-chat": url(port)}
    engine = LM15Engine(lm15.RouterConfig(api_keys={"openai-chat": "none"}, base_urls=urls))
    message = lm15.Message.user(INPUTS["question"])
    request = lm15.Request(model=f"openai/chat-{DELAY}", messages=(message,))
    return partial(timed, partial(complete, engine, request))


def first_bare(connection: http.client.HTTPConnection, port: int) -> float:
    body = json.dumps({"model": f"chat-{DELAY}", "stream": True, "messages": []})
    start = now()
    connection.request("POST", "/v1/chat/completions", body)
    response = connection.getresponse()
    response.readline()
    took = now() - start
    response.read()
    return took


async def serve() -> None:
    """Serve OpenAI's chat protocol, and print the port. A model `chat-50` answers after 50 ms, others at once."""
    server = await asyncio.start_server(converse, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            size = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
            request = json.loads(await reader.readexactly(size))
            delay = request["model"].rpartition("-")[2]
            due = now() + (int(delay) / 1000 if delay.isdigit() else 0.0)
            await asyncio.sleep(due - now() - (0.003 if request.get("stream") else 0))
            if request.get("stream"):
                while now() < due:  # the clock of an event loop is too coarse here
                    pass
                await stream(writer, request["model"])
            else:
                choice = {"message": {"role": "assistant", "content": TEXT}}
                body = answer(request["model"], "chat.completion", choice, "stop")
                head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: "
                writer.write(b"%b%d\r\n\r\n%b" % (head, len(body), body))


async def stream(writer: asyncio.StreamWriter, model: str) -> None:
    """Stream an answer. The first write contains the header and the first word, so a client waits only once."""
    kind = b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    writer.write(b"HTTP/1.1 200 OK\r\n" + kind)
    for word in [*TEXT.replace(" or", "| or").split("|"), ""]:
        choice = {"delta": {"content": word} if word else {}}
        event = answer(model, "chat.completion.chunk", choice, None if word else "stop")
        writer.write(b"%x\r\ndata: %b\n\n\r\n" % (len(event) + 8, event))
        await asyncio.sleep(0)
    writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


def answer(model: str, kind: str, choice: dict[str, Any], finish: str | None) -> bytes:
    choices = [{"index": 0, "finish_reason": finish, **choice}]
    return json.dumps({"id": "1", "object": kind, "model": model, "choices": choices}).encode()


if __name__ == "__main__":
    direct() if sys.argv[1] == "direct" else asyncio.run(serve())
