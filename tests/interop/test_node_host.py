"""The example host in JavaScript: every call ends, however its worker ends."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HOST = Path(__file__).parents[2] / "examples/node/host.js"
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(NODE is None, reason="Node is not installed")

OPENING = f"""
const {{ Worker }} = require({str(HOST)!r});
console.log = () => {{}};
const say = (text) => process.stdout.write(text + "\\n");
const failed = (call) => call.then(() => "a result", (error) => error.message);
"""


def run(script: str, **environment: str) -> list[str]:
    """Return the lines that the script prints."""
    done = subprocess.run(
        [NODE, "-e", OPENING + f"(async () => {{ {script} }})();"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "BRIDGE_PYTHON": sys.executable, **environment},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_calls_before_and_after_the_end_of_the_worker_fail():
    """The worker is killed during a call: that call and later ones fail, and stop() returns."""
    said = run("""
        const worker = new Worker();
        await worker.call("ping");
        const open = failed(worker.call("configure_lm", { provider: "offline" }));
        worker.child.kill("SIGKILL");
        say(await open);
        say(await failed(worker.call("ping")));
        say(String(await worker.stop()));
    """)
    assert said == ["the worker has ended (SIGKILL)", "the worker has ended (SIGKILL)", "null"]


def test_a_worker_that_cannot_be_started():
    said = run(
        'const worker = new Worker(); say(await failed(worker.call("ping")));say(await failed(worker.call("ping")));',
        BRIDGE_PYTHON="/nowhere/python",
    )
    assert said == ["spawn /nowhere/python ENOENT"] * 2


def test_stopping_twice_and_calling_afterwards():
    said = run("""
        const worker = new Worker();
        await worker.call("ping");
        say(String(await worker.stop()));
        say(String(await worker.stop()));
        say(await failed(worker.call("ping")));
    """)
    assert said == ["0", "0", "the worker has ended (exit status 0)"]


def test_a_listener_that_throws_fails_its_call_alone():
    said = run("""
        const worker = new Worker();
        await worker.call("configure_lm", { provider: "offline" });
        const signature = { inputs: [{ name: "question" }], outputs: [{ name: "answer" }] };
        await worker.call("create_program", { id: "p", signature });
        const run = { program_id: "p", inputs: { question: "Why?" } };
        const broken = () => { throw new Error("a fault of the host"); };
        say(await failed(worker.call("execute_program", run, broken)));
        say((await worker.call("ping")).status);
        await worker.stop();
    """)
    assert said == ["a fault of the host", "ok"]
