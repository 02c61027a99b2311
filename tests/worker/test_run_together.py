"""Context.run_together: a handler that works on several threads at once."""

from __future__ import annotations

import contextvars
import threading

import pytest

from bridge import Adapter, Dispatcher, errors
from bridge._framing import Frame, Outbox
from bridge.wire.codec import JSON
from bridge.worker.threads import Threads
from peer import wait_until

WAIT = 30.0  # seconds, for what must happen
word = contextvars.ContextVar("word", default="")


@pytest.fixture
def threads():
    threads = Threads(2, 2)
    yield threads
    assert threads.stop(WAIT) == 0


def test_a_function_runs_at_once_on_as_many_threads_as_wanted(threads):
    """The caller's is among them; they have its context variables."""
    together, found = threading.Barrier(4), []

    def run():
        together.wait(WAIT)
        found.append((word.get(), threading.get_ident()))

    word.set("here")
    threads.run_together(run, 4, lambda: None)
    assert [text for text, _ in found] == ["here"] * 4
    assert threading.get_ident() in {thread for _, thread in found}
    assert len({thread for _, thread in found}) == 4


def test_the_first_error_is_raised_when_all_have_returned(threads):
    """The others are told to stop."""
    stopped, together, returned = threading.Event(), threading.Barrier(3), []

    def run():
        if together.wait(WAIT) == 0:
            raise LookupError("first")
        assert stopped.wait(WAIT)
        returned.append(1)
        raise errors.CallEnded

    with pytest.raises(LookupError, match="first"):
        threads.run_together(run, 3, stopped.set)
    assert len(returned) == 2


@pytest.mark.parametrize("refused", [RuntimeError, MemoryError])
def test_without_more_threads_the_caller_does_all(threads, monkeypatch, refused):
    """The system may have no more."""
    ran = []

    def start(thread):
        raise refused

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        threads.run_together(lambda: ran.append(threading.get_ident()), 8, lambda: None)
    assert ran == [threading.get_ident()]


adapter = Adapter("together")


@adapter.command("fail", lane="run")
def fail(args, context):
    """Fail in one thread while others wait: for the host, and for time to pass."""
    waits = iter([lambda: context.call_host("never_answered", {}), lambda: context.wait(3600)])
    entered = threading.Semaphore(0)

    def run():
        wait = next(waits, None)
        if wait is not None:
            entered.release()
            wait()
        for _ in range(2):
            entered.acquire(timeout=WAIT)
        raise LookupError("the first")

    context.run_together(run, 3)


@adapter.command("wait", lane="run")
def wait(args, context):
    context.run_together(lambda: context.wait(3600), 3)


def test_threads_that_wait_in_the_context_stop_when_another_fails():
    """The reply is the error of that one, though the host never answers."""
    with Dispatcher(adapter) as dispatcher:
        replies, done = [], threading.Event()

        def deliver(outbox):
            message = JSON.decode(outbox.payload())
            if "success" in message:
                replies.append(message)
                done.set()

        for request in (b'{"id":1,"command":"hello","args":{"offers":{"tools":true}}}', b'{"id":2,"command":"fail"}'):
            dispatcher.path.answer(Frame.of(request), Outbox(), deliver)
        assert done.wait(WAIT)
        assert (replies[0]["code"], replies[0]["error"]) == ("handler_error", "LookupError: the first")


@pytest.mark.parametrize("ends", ["cancel", "deadline"])
def test_the_end_of_a_call_is_the_end_of_its_threads(ends):
    """All of them, wherever they wait."""
    from bridge.worker.calls import LONGEST_TIMEOUT_MS

    with Dispatcher(adapter) as dispatcher:
        replies = []
        timeout = 50 if ends == "deadline" else LONGEST_TIMEOUT_MS
        request = JSON.encode({"id": 1, "command": "wait", "timeout_ms": timeout})
        before = threading.active_count()
        dispatcher.path.answer(Frame.of(request), Outbox(), lambda outbox: replies.append(outbox.payload()))
        if ends == "cancel":
            wait_until(lambda: threading.active_count() >= before + 3)
            dispatcher.path.answer(Frame.of(b'{"id":2,"command":"cancel","args":{"id":1}}'), Outbox(), None)
        wait_until(lambda: replies)
        code = JSON.decode(replies[0])["code"]
        assert code == ("cancelled" if ends == "cancel" else "deadline_exceeded")
        wait_until(lambda: not any(thread.name == "bridge-helper" for thread in threading.enumerate()))


def test_an_inline_handler_works_alone():
    """It must not wait for anything."""
    inline = Adapter("inline")
    ran = []

    @inline.command("work", lane="inline")
    def work(args, context):
        context.run_together(lambda: ran.append(threading.get_ident()), 5)

    with Dispatcher(inline) as dispatcher:
        dispatcher.call(b'{"id": 1, "command": "work"}', WAIT)
    assert len(ran) == 1
