"""Calls of the Python client: cancelling, timeouts, clients in forks, and the client's repr."""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import math
import os
import pickle
import signal
import subprocess
import sys
import threading

import pytest

import bridge
from bridge import Client, errors
from client_uses import ENDLESS, HANG, SUPPORT_PATH, in_a_fork, is_idle
from peer import wait_until


@pytest.mark.parametrize("end", ["stop", "kill"])
@pytest.mark.parametrize("place", ["callback", "listener", "tool"])
def test_a_client_is_stopped_from_anywhere(end, place):
    """A callback, a listener or a tool may stop it; waiting callers get WorkerCrashed."""
    client = Client.start(adapter="hostile:adapter", env=SUPPORT_PATH)
    statuses = []
    done = threading.Event()

    def stop_tool():
        stop()

    def stop(*_):
        statuses.append(getattr(client, end)())
        done.set()

    if place == "callback":
        client.submit("sleep", {"seconds": 0.01}).add_done_callback(stop)
    elif place == "listener":
        client.submit("emit", {"size": 1}, on_event=stop)
    else:
        client.register_tools([stop_tool])
        client.submit("use_tool", {"name": "stop_tool", "args": {}})
    assert done.wait(HANG)
    assert len(statuses) == 1
    with pytest.raises(errors.WorkerCrashed, match="stopped"):
        client.call("ping")


def test_a_future_of_a_call(client):
    """submit returns at once; the future has the result and the times of the steps."""
    call = client.submit("sleep", {"seconds": 0.05}, timing=True)
    assert call.result(10) == {"slept": 0.05}
    assert call.timing["run_us"] >= 50_000


def test_a_cancelled_call_is_a_cancelled_future(client):
    """Waiting callers learn it at once; a second cancel has no effect."""
    call = client.submit("wait_politely", {"seconds": 60})
    called = threading.Event()
    call.add_done_callback(lambda call: called.set())
    assert not call.done()
    assert call.cancel()
    assert call.cancel()
    assert call.cancelled()
    assert call.done()
    assert called.wait(HANG)
    for ask in (call.result, call.exception):
        with pytest.raises(errors.Cancelled):
            ask()
        with pytest.raises(concurrent.futures.CancelledError):
            ask()
    assert concurrent.futures.wait([call], HANG).done == {call}
    wait_until(lambda: is_idle(client))


def test_a_call_that_is_over_cannot_be_cancelled(client):
    """It behaves like any future."""
    call = client.submit("sleep", {"seconds": 0})
    assert call.result(HANG) == {"slept": 0}
    assert not call.cancel()
    assert not call.cancelled()
    assert call.exception() is None
    failed = client.submit("raise")
    assert isinstance(failed.exception(HANG), errors.HandlerError)
    assert list(concurrent.futures.as_completed([call, failed], HANG))


def test_waiting_for_a_result_may_time_out(client):
    """The wait raises TimeoutError, and the call continues."""
    call = client.submit("sleep", {"seconds": 0.2})
    for timeout in (0, 0.01, -1):
        with pytest.raises(TimeoutError):
            call.result(timeout)
    assert call.result(math.inf) == {"slept": 0.2}


@pytest.mark.parametrize("timeout", [None, math.inf, 10**400, 1e300, 1e10, 30, 2**70])
def test_long_timeouts(client, timeout):
    """None, infinity, and timeouts longer than the system can wait mean forever."""
    assert client.call("ping", timeout=timeout)["status"] == "ok"
    assert client.call("sleep", {"seconds": 0.01}, timeout=timeout) == {"slept": 0.01}
    assert client.submit("sleep", timeout=timeout).result(timeout) == {"slept": 0}


@pytest.mark.parametrize(
    ("timeout", "error"),
    [
        *((True, TypeError), (False, TypeError), ("1", TypeError), ([], TypeError)),
        *((math.nan, ValueError), (-1, ValueError), (-math.inf, ValueError)),
    ],
)
def test_wrong_timeouts(any_client, start_client, timeout, error):
    """They are refused in each place, and nothing is sent."""
    attempts = [
        lambda: any_client.call("ping", timeout=timeout),
        lambda: any_client.submit("ping", timeout=timeout).result(),
        lambda: any_client.stream("ping", timeout=timeout),
        lambda: any_client.stop(timeout),
        lambda: start_client(adapter="echo", timeout=timeout),
    ]
    for attempt in attempts:
        with pytest.raises(error, match="timeout must be"):
            attempt()
    assert any_client.call("ping")["status"] == "ok"


@pytest.mark.parametrize(("timeout", "error"), [(True, TypeError), ("1", TypeError), (math.nan, ValueError)])
def test_wrong_timeouts_of_a_result(client, timeout, error):
    """They are refused; a negative one has passed."""
    call = client.submit("sleep", {"seconds": 0})
    with pytest.raises(error, match="timeout must be"):
        call.result(timeout)


def test_a_timeout_of_zero(any_client):
    """A call with a timeout of 0 s ends at once."""
    with pytest.raises(errors.DeadlineExceeded):
        any_client.call("sleep", {"seconds": 60}, timeout=0)
    wait_until(lambda: is_idle(any_client))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"adaptor": "echo"}, TypeError, "adaptor"),
        ({"flags": "--quiet"}, TypeError, "flags must be a list of strings"),
        ({"flags": ["--threads", 8]}, TypeError, "flags must be a list of strings"),
        ({"env": {"A": 1}}, TypeError, r"env\['A'\] must be a string"),
        ({"max_frame": 10}, ValueError, "max_frame: 10 is not a whole number from 4096"),
        ({"format": "yaml"}, ValueError, "known: json, msgpack, etf"),
    ],
)
def test_wrong_options(start_client, options, error, text):
    """They are refused by name, and no process is started."""
    with pytest.raises(error, match=text):
        start_client(**options)


USES = {
    "call": lambda client: client.call("ping"),
    "submit": lambda client: client.submit("ping"),
    "stream": lambda client: client.stream("ping"),
    "cast": lambda client: client.cast("ping"),
    "stats": lambda client: client.stats(),
    "register_tools": lambda client: client.register_tools([]),
    "stop": lambda client: client.stop(),
    "kill": lambda client: client.kill(),
    "enter": lambda client: client.__enter__(),
}


# A fork beside threads is what is tested.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


@forks
def test_a_client_belongs_to_its_process(client):
    """In a fork, each method raises an error that names the client's process."""
    call = client.submit("sleep", {"seconds": 0.5})
    stream = client.stream("emit", {"size": 1000})
    uses = {
        **USES,
        "result": lambda client: call.result(),
        "exception": lambda client: call.exception(),
        "cancel": lambda client: call.cancel(),
        "iterate": lambda client: next(iter(stream)),
        "close": lambda client: stream.close(),
    }

    def names_that_do_not_raise():
        names = []
        for name, use in uses.items():
            try:
                use(client)
                names.append(name)
            except RuntimeError as error:
                if f"belongs to process {os.getppid()}" not in str(error):
                    names.append(name)
        return names

    assert in_a_fork(names_that_do_not_raise) == "[]"
    assert call.result(HANG) == {"slept": 0.5}
    assert len(list(stream)) == 1000


@forks
def test_leaving_a_context_in_a_fork_stops_nothing(client):
    """A child that leaves the parent's `with` block does not stop the worker."""
    assert in_a_fork(lambda: client.__exit__(None, None, None)) == "None"
    assert client.call("ping")["status"] == "ok"


@forks
def test_a_fork_holds_none_of_the_pipes():
    """The worker notices the end of its host while a child of the host runs."""
    client = Client.start(adapter="echo")
    pid = os.fork()
    if pid == 0:
        signal.pause()
    assert client.stop(timeout=HANG) == 0
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_a_killed_host_leaves_no_worker():
    """Its fork, which ends first, does not end the worker."""
    program = """
import os, warnings
from bridge import Client
warnings.simplefilter("ignore")
client = Client.start(adapter="echo")
if os.fork() == 0:
    raise SystemExit(0)
os.wait()
print(client.call("ping")["status"], client.pid)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert result.stdout.startswith("ok ")
    assert result.stderr == ""


def test_clients_calls_and_streams_cannot_be_pickled(client):
    """The TypeError explains what to do."""
    with client.stream("emit", ENDLESS) as stream:
        for value in (client, client.submit("ping"), stream):
            for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(TypeError, match="cannot be pickled"):
                    attempt(value)


def test_the_repr_of_a_client(client):
    """It has address and pid, format and state, but no args and no environment."""
    assert repr(client).startswith("<Client ")
    assert repr(client).endswith(f"pid={client.pid} format=msgpack: running>")
    client.stop()
    assert repr(client).endswith(f"pid={client.pid} format=msgpack: the client was stopped>")
    assert "Client" in dir(bridge)
    assert set(bridge.__all__) <= set(dir(bridge))


def test_a_crash_has_signal_status_and_stderr(process_client):
    """The error has the signal by name, the exit status, and the last lines of stderr."""
    process_client.call("print")
    waiting = process_client.submit("sleep", {"seconds": 60})
    os.kill(process_client.pid, signal.SIGKILL)
    with pytest.raises(errors.WorkerCrashed, match="ended by SIGKILL") as raised:
        waiting.result(HANG)
    assert raised.value.details["exit_status"] == -signal.SIGKILL
    assert "sys.__stdout__" in raised.value.details["stderr"].splitlines()


def test_calls_right_after_a_crash_say_how_the_worker_ended(process_client):
    """So do those that find the pipe closed before the client has noticed the end of the process."""
    os.kill(process_client.pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):  # the client's thread has noticed the end before
        os.waitid(os.P_PID, process_client.pid, os.WEXITED | os.WNOWAIT)
    for _ in range(20):
        with pytest.raises(errors.WorkerCrashed, match="ended by SIGKILL"):
            process_client.call("ping", timeout=None)


def test_a_submitted_call_ends_in_time_although_nobody_waits_for_its_result(client):
    """Its callbacks run then, and concurrent.futures.wait returns, even if the worker does not answer."""
    client.submit("ping", timeout=HANG).result(HANG)
    os.kill(client.pid, signal.SIGSTOP)
    seen = threading.Event()
    late = client.submit("ping", timeout=0.2)
    client.submit("ping", timeout=0.1).add_done_callback(lambda call: seen.set())
    done, _ = concurrent.futures.wait([late], HANG)
    assert done == {late}
    assert isinstance(late.exception(0), errors.DeadlineExceeded)
    assert seen.wait(HANG)
    client.kill()
