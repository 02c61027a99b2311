"""The asyncio client with the methods of the synchronous one, for tests of both: its event loop runs in a thread."""

from __future__ import annotations

import asyncio
import threading

import uvloop

from bridge import aio

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


class LoopThread:
    """An event loop in a thread, and the clients that it has started."""

    def __init__(self, new_event_loop):
        self.loop = new_event_loop()
        self._clients = []
        self._thread = threading.Thread(target=self._run, name="test-loop", daemon=True)
        self._thread.start()

    def _run(self):
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def run(self, coroutine, timeout=None):
        """Run a coroutine in the loop, and return its result. Cancel it if the wait is interrupted."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result(timeout)
        except BaseException:
            future.cancel()
            raise

    def start(self, make=aio.Client.start, **options):
        """Return a client that `make` returns."""
        self._clients.append(LoopedClient(self, self.run(make(**options))))
        return self._clients[-1]

    def close(self):
        """Stop the clients and the loop."""
        for client in self._clients:
            client.kill()
        self.run(self.loop.shutdown_asyncgens())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class LoopedClient:
    def __init__(self, thread, client):
        self._thread = thread
        self._client = client

    @property
    def pid(self):
        return self._client.pid

    def call(self, *args, **options):
        return self._thread.run(self._client.call(*args, **options))

    def submit(self, *args, timeout=None, **options):
        call = self._client.call(*args, timeout=timeout, **options)
        future = asyncio.run_coroutine_threadsafe(call, self._thread.loop)
        self._thread.run(asyncio.sleep(0))  # until it has started
        future.id = max(self._client._connection.inbox.calls, default=0)
        return future

    def stream(self, *args, **options):
        async def stream():
            return self._client.stream(*args, **options)

        return LoopedStream(self._thread, self._thread.run(stream()))

    def cast(self, *args, **options):
        self._thread.run(self._client.cast(*args, **options))

    def stats(self):
        return self._thread.run(self._client.stats())

    def register_tools(self, *args, **options):
        self._thread.run(self._client.register_tools(*args, **options))

    def register(self, *args, **options):
        self._thread.run(self._client.register(*args, **options))

    def stop(self, *args, **options):
        return self._thread.run(self._client.stop(*args, **options))

    def kill(self):
        return self._thread.run(self._client.kill())

    def __enter__(self):
        self._thread.run(self._client.__aenter__())
        return self

    def __exit__(self, *error):
        self._thread.run(self._client.__aexit__(*error))

    def __repr__(self):
        return repr(self._client)


class LoopedStream:
    def __init__(self, thread, stream):
        self._thread = thread
        self._stream = stream

    def __iter__(self):
        async def next_event():
            return await anext(events, None)

        events = aiter(self._stream)
        try:
            while (event := self._thread.run(next_event())) is not None:
                yield event
        finally:
            self._thread.run(events.aclose())

    def result(self, timeout=None):
        return self._thread.run(self._stream.result(), timeout)

    def close(self):
        self._thread.run(self._stream.aclose())

    def __enter__(self):
        self._thread.run(self._stream.__aenter__())
        return self

    def __exit__(self, *error):
        self._thread.run(self._stream.__aexit__(*error))
