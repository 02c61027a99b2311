"""An adapter whose handlers fork, start children, and write much to stderr."""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import msgspec

from bridge import Adapter

adapter = Adapter("processes")


class Args(msgspec.Struct):
    way: str = ""
    size: int = 0
    seconds: float = 0.0


def both_lanes(name: str):
    """Declare a handler as an inline command, and as NAME_on_thread on a thread."""

    def declare(handler):
        adapter.command(name, Args, lane="inline")(handler)
        adapter.command(f"{name}_on_thread", Args)(handler)
        return handler

    return declare


def _fork(way: str) -> int:
    return ctypes.CDLL(None).fork() if way == "c" else os.fork()


@both_lanes("fork_and_return")
def fork_and_return(args: Args, context: Any):
    """Fork; parent and child both return, raise, exit, or send an event."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pid = _fork(args.way)
    if pid == 0:
        if args.way == "raise":
            raise ValueError("in the child")
        if args.way == "exit":
            sys.exit(7)
        if args.way == "emit":
            context.emit("number", 1)
        return {"who": "child"}
    _, status = os.waitpid(pid, 0)
    return {"who": "parent", "status": os.waitstatus_to_exitcode(status)}


@adapter.command("fork_and_change", Args, lane="session")
def fork_and_change(args: Args, context: Any):
    """Fork; parent and child both change the session and return."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pid = os.fork()
    context.session.records.put("note", "parent" if pid else "child", b"changed")
    if pid:
        os.waitpid(pid, 0)
    return {"who": "parent" if pid else "child"}


@adapter.command("read_change", Args)
def read_change(args: Args, context: Any):
    return {"notes": sorted(context.session.records.of("note"))}


@both_lanes("fork_and_live")
def fork_and_live(args: Args, context: Any):
    """Leave a running child, made by multiprocessing or by a plain fork."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if args.way == "multiprocessing":
            process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
            process.start()
            return {"pid": process.pid}
        pid = _fork(args.way)
    if pid == 0:
        time.sleep(600)
        os._exit(0)
    return {"pid": pid}


@both_lanes("terminate_fork")
def terminate_fork(args: Args, context: Any):
    """End a child by SIGTERM, which must not end any other process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        process.start()
    process.terminate()
    process.join()
    return {"status": process.exitcode}


@both_lanes("child")
def child(args: Args, context: Any):
    """Start a process that has a child."""
    command = ["sh", "-c", "sleep 600 & echo $!; wait"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=args.way == "session")
    return {"pids": [process.pid, int(process.stdout.readline())]}


@adapter.command("orphan")
def orphan(args: None, context: Any):
    """Start a process in a new session whose parent ends."""
    command = ["setsid", "sh", "-c", "sleep 600 >/dev/null & echo $!"]
    return {"pids": [int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)]}


@adapter.command("worker")
def worker(args: None, context: Any):
    """Start another worker, which starts a process."""
    from bridge import Client

    client = Client.start(adapter="processes:adapter")
    pids = client.call("child_on_thread", {"way": "session"})["pids"]
    adapter.client = client  # keep it until this process ends
    return {"pids": [client.call("get_stats", {"include": ["worker"]})["worker"]["pid"], *pids]}


@both_lanes("descriptors")
def descriptors(args: Args, context: Any):
    """Return what the descriptors of a child refer to."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["sh", "-c", f"ls -l /proc/self/fd > {folder}/text"]
        if args.way == "posix_spawn":
            os.waitpid(os.posix_spawn("/bin/sh", command, os.environ), 0)
        elif args.way == "system":
            os.system(command[-1])
        else:
            subprocess.run(command, close_fds=args.way == "close_fds", check=True)
        return {"text": Path(folder, "text").read_text()}


@both_lanes("signals")
def signals(args: Args, context: Any):
    """Return the signals that the process and a child block and ignore."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    ignored = [n for n in signal.valid_signals() if signal.getsignal(n) is signal.SIG_IGN]
    return {"blocked": sorted(blocked), "ignored": sorted(map(int, ignored))}


@both_lanes("take_signal")
def take_signal(args: Args, context: Any):
    """Raise a signal that a library handles."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
    return {}


@both_lanes("shout")
def shout(args: Args, context: Any):
    """Write `size` lines of 1000 bytes to stderr."""
    line = "x" * 999
    for number in range(args.size):
        if args.way == "log":
            logging.getLogger("shout").warning("%s", line)
        elif args.way == "print":
            print(line)
        elif args.way == "stderr":
            print(line, file=sys.stderr)
        elif args.way == "warning":
            warnings.warn(f"{number} {line}", stacklevel=1)
        elif args.way == "write":
            assert os.write(2, f"{line}\n".encode()) == 1000
        elif args.way == "c":
            ctypes.CDLL(None).puts(line.encode())
        elif args.way == "faulthandler":
            faulthandler.dump_traceback(all_threads=True)
    if args.way == "c":
        ctypes.CDLL(None).fflush(None)
    elif args.way == "child":
        code = f"import os\nfor _ in range({args.size}): os.write(2, b'{line}\\n')"
        subprocess.run([sys.executable, "-c", code], check=True)
    return {}


@both_lanes("last_words")
def last_words(args: Args, context: Any):
    """Write a line, and end the process."""
    print("last words", file=sys.stderr)
    if args.way == "segfault":
        ctypes.string_at(0)
    if args.way == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(9)
