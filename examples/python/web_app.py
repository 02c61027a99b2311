"""A web application that runs a program for each request: an ASGI callable, as a server or FastAPI calls it.

Run it with any ASGI server, for example `uvicorn web_app:app`, and ask it:

    curl -N -d '{"question": "Where is the Louvre?", "passage": "The Louvre is in Paris."}' http://127.0.0.1:8000/

The worker is started and stopped with the application. Each answer is streamed as it is written; a request whose client
goes away, or that takes too long, is cancelled in the worker too. In FastAPI, `lifespan` is the same function, and the
body of `answer` goes into a `StreamingResponse`.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from bridge import aio, errors

SIGNATURE = {"inputs": [{"name": "question"}, {"name": "passage"}], "outputs": [{"name": "answer"}]}
SECONDS = 60.0

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


@contextlib.asynccontextmanager
async def lifespan() -> AsyncIterator[aio.Client]:
    """Start the worker and prepare it, and stop it at the end of the application."""
    async with await aio.Client.start() as client:
        await client.call("configure_lm", {"provider": "offline"})
        await client.call("create_program", {"id": "qa", "signature": SIGNATURE})
        yield client


async def answer(client: aio.Client, inputs: dict[str, Any]) -> AsyncIterator[str]:
    """Yield the answer in pieces, and then, as a line of JSON, all outputs."""
    run = {"program_id": "qa", "inputs": inputs}
    async with client.stream("execute_program", run, timeout=SECONDS) as stream:
        async for event, data in stream:
            if event == "chunk":
                yield data["text"]
        result = await stream.result()
        yield "\n" + json.dumps(result["outputs"]) + "\n"


class App:
    """The application. It knows two of ASGI's kinds of connections: the lifespan and HTTP."""

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._answer(receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        async with lifespan() as self.client:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, receive: Receive, send: Send) -> None:
        body = b""
        while (message := await receive()).get("more_body"):
            body += message["body"]
        sending = asyncio.create_task(self._send_answer(body + message.get("body", b""), send))
        leaving = asyncio.create_task(receive())  # ends when the client goes away
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            sending.cancel()  # does nothing if it is done
        with contextlib.suppress(asyncio.CancelledError):
            await sending

    async def _send_answer(self, body: bytes, send: Send) -> None:
        is_started = False

        async def write(text: str, status: int = 200) -> None:
            nonlocal is_started
            if not is_started:
                is_started = True
                headers = [(b"content-type", b"text/plain; charset=utf-8")]
                await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": text.encode(), "more_body": True})

        try:
            async with contextlib.aclosing(answer(self.client, json.loads(body))) as pieces:
                async for piece in pieces:
                    await write(piece)
        except errors.DeadlineExceeded as error:
            await write(f"{error}\n", 504)
        except (errors.InvalidArgs, ValueError) as error:
            await write(f"{error}\n", 400)
        except errors.BridgeError as error:
            await write(f"{error}\n", 500)
        await send({"type": "http.response.body"})


app = App()
