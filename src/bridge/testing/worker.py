"""A mock: a worker of its own, in this process, for each connection to a socket."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Mapping
from typing import Any, Self

from bridge import errors
from bridge._framing import Reader, Writer, serve
from bridge.options import DEFAULTS, Options
from bridge.testing.commands import NO_PROGRAMS, MockDispatcher, registered
from bridge.testing.script import Recorded, Script

LONGEST_PATH = 100  # bytes of a socket's path; the system allows 107


class Mock:
    """A stand-in for workers in the tests of an application: it needs neither DSPy nor another process.

    Each connection to `address` gets a worker with programs and sessions of its own, which answers as a worker with
    DSPy does and refuses what that refuses, with the same errors. Only outputs of programs are made up, in the types
    that the signatures declare. What a test sets here applies to all of these workers.
    """

    def __init__(self, options: Options = DEFAULTS, *, programs: Mapping[str, Any] = NO_PROGRAMS) -> None:
        """Listen for connections.

        options: those of the workers, for instance Options(session_programs=3). programs: the signatures of programs
        that the operator registers (`--program`), by their names. Raises InvalidArgs for a wrong signature.
        """
        for name, signature in programs.items():
            registered(name, signature)
        self._script = Script()
        self._options = options
        self._programs = programs
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        self._folder = tempfile.mkdtemp(prefix="bridge-mock-")
        if len(os.fsencode(self._folder)) > LONGEST_PATH - 10:
            os.rmdir(self._folder)
            self._folder = tempfile.mkdtemp(prefix="bridge-mock-", dir="/tmp")
        self._path = os.path.join(self._folder, "mock.sock")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self._path)
        self._listener.listen(128)
        self._accepting = threading.Thread(target=self._accept, name="bridge-mock", daemon=True)
        self._accepting.start()

    @property
    def address(self) -> str:
        """Return what `Client.connect`, `Pool(connect=…)` and other hosts connect to."""
        return f"unix:{self._path}"

    def set_response(self, field: str, value: Any, *, program_id: str | None = None) -> None:
        """Set the value of an output field in all further runs, of one program or of all.

        value: of the field's type, as a host would receive it, or a function of the inputs that returns it. A run
        whose value has another type fails with an LMError.
        """
        self._script.set_outputs(field, [value], program_id)

    def set_responses(self, field: str, *values: Any, program_id: str | None = None) -> None:
        """Set the values of an output field in the next runs, one for each run. The last one stays."""
        self._script.set_outputs(field, [*values], program_id)

    def set_tool_calls(self, *calls: tuple[str, dict[str, Any]], program_id: str | None = None) -> None:
        """Set which tools a run of type `react` calls, as (name, arguments). By default it calls each one once."""
        self._script.set_tool_calls(calls, program_id)

    def set_result(self, command: str, result: Any) -> None:
        """Set the result of a command, for instance of your own adapter; only the args are still checked.

        result: the result, or a function of the args that returns it.
        """
        self._script.set_result(command, result)

    def inject_error(self, command: str, error: errors.BridgeError | None, *, times: int | None = None) -> None:
        """Make a command fail with `error`, `times` times or (None) until `error` is None.

        Requests that a worker refuses are still refused for that reason.
        """
        self._script.set_error(command, error, times)

    def set_delay(self, command: str, seconds: float) -> None:
        """Make calls of a command take `seconds`, except for inline ones such as ping. Deadlines and cancelling end the
        wait."""
        self._script.set_delay(command, seconds)

    def calls(self, command: str | None = None) -> list[Recorded]:
        """Return the requests that have arrived, oldest first: those of a command, or all except for those that a
        client sends by itself."""
        return self._script.requests(command)

    def crash(self) -> None:
        """End all connections as if their workers had crashed. New connections get new workers."""
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        """Forget what was set and recorded. Programs and sessions stay."""
        self._script.clear()

    def close(self) -> None:
        """Stop listening, and end all connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        threads = list(self._connections.values())
        self.crash()
        for thread in threads:
            thread.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), name="bridge-mock-worker", daemon=True)
            with self._lock:
                self._connections[connection] = thread
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        """Answer the requests of one connection until its end."""
        reader, writer = Reader(connection.fileno(), self._options.max_frame), Writer(connection.fileno())
        dispatcher = MockDispatcher(self._script, self._options, self._programs)
        path = dispatcher.path
        with contextlib.suppress(OSError):  # the client no longer reads
            serve(
                reader,
                writer,
                dispatcher.answer,
                writer.flush,
                path.refuse,
                stopping=lambda: bool(path.stopping),
                warm_up=None,
            )
        dispatcher.close()
        with self._lock:
            del self._connections[connection]
        connection.close()
