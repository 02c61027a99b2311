"""The command line: `python -m bridge worker`, `… demo`, `… bench`."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bridge.adapter import Adapter

from bridge import NOT_BUILT, is_compiled
from bridge.version import __version__

ADAPTERS = {"dspy": "bridge.adapters.dspy:adapter", "echo": "bridge.adapters.echo:adapter"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` (default: the process's); the exit status."""
    parent = os.getppid()
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parser(argv).parse_args(argv)
    try:
        status: int = arguments.run(arguments, parent)
        return status
    except ImportError as error:
        if is_compiled(error.name):
            sys.exit(NOT_BUILT.format(name=error.name))
        raise


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """With the flags of only those commands that `argv` names: a worker's start pays for each."""
    parser = argparse.ArgumentParser(
        prog="dspex-bridge",
        description="DSPy programs for any host, over a pipe.",
        formatter_class=_formatter,
    )
    parser.add_argument("--version", action="version", version=f"dspex-bridge {__version__}")
    parser.add_argument(
        "--cmake-dir",
        action="version",
        version=os.path.join(os.path.dirname(__file__), "capi", "cmake"),
        help="print the folder for -Dbridge_DIR=… of a C or C++ host's build, and exit",
    )
    # A prog, because argparse else formats a usage message to make one.
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", prog=parser.prog)
    for name, add, help in (
        ("worker", _add_worker, "answer frames on a pipe (for hosts)"),
        ("demo", _add_demo, "ask a worker a few questions and show its answers"),
        ("bench", _add_bench, "compare serialization formats over a real pipe"),
    ):
        command = commands.add_parser(name, help=help, formatter_class=_formatter)
        if name in argv:
            add(command)
    return parser


def _formatter(prog: str) -> argparse.HelpFormatter:
    # A width, because argparse loads shutil to find one, and that at every start.
    return argparse.HelpFormatter(prog, width=100)


_API_BASE = "an address that gets keys from the environment, as https://*.example.com/v1; repeatable"
DAY = 86_400  # seconds


def _add_worker(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_worker)
    add, count = parser.add_argument, _whole(1, 1 << 53)
    add("--mode", choices=["standalone", "pool-worker"], default="standalone")
    add("--worker-id", type=_name, metavar="STR", help="returned by ping and shutdown")
    add("--protocol", choices=["json", "msgpack", "etf"], help="what negotiation selects")
    add("--adapter", default="dspy", metavar="NAME", help="dspy, echo, or module:attr of your own")
    add("--fds", type=_fds, default=(0, 1), metavar="R,W", help="descriptors (default 0,1)")
    add("--threads", type=count, default=64, metavar="N", help="calls at once (default 64)")
    add("--queue", type=count, default=4096, metavar="N", help="calls that wait (default 4096)")
    add("--queue-bytes", type=count, default=256 << 20, metavar="BYTES", help="default 256 MiB")
    add("--waiting", type=count, default=1024, metavar="N", help="for the host (default 1024)")
    add("--stuck-after", type=_seconds(DAY), default=300.0, metavar="SECONDS", help="0: never")
    add("--when-stuck", choices=["report", "exit"], default="report", help="log it, or exit 75")
    add(
        "--max-frame",
        type=_whole(4096, 1 << 30),
        default=64 << 20,
        metavar="BYTES",
        help="default 64 MiB",
    )
    add(
        "--max-values",
        type=_whole(1000, 1 << 30),
        default=1_000_000,
        metavar="N",
        help="of each frame; default 1000000",
    )
    add(
        "--grace",
        type=_seconds(DAY),
        default=2.0,
        metavar="SECONDS",
        help="for open calls at the end",
    )
    add("--api-base", action="append", type=_api_base, default=[], metavar="PATTERN", help=_API_BASE)
    add("--store", type=_store, metavar="sqlite:PATH", help="where durable sessions are kept")
    add("--max-sessions", type=count, default=10_000, metavar="N", help="default 10000")
    add(
        "--session-ttl",
        type=_seconds(365 * DAY, zero=False),
        default=3600.0,
        metavar="SECONDS",
        help="idle; default 3600",
    )
    add("--session-programs", type=count, metavar="N", help="quota of each session")
    add("--session-bytes", type=count, metavar="BYTES", help="quota of each session")
    add("--telemetry", action="store_true", help="OpenTelemetry spans, Prometheus text")
    add("--log-level", default="WARNING", choices=["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"])
    add("--quiet", action="store_true", help="log errors only")


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_demo)
    add = parser.add_argument
    add("--model", help="e.g. gemini/gemini-2.0-flash; default: by the API key found, else offline")
    add("--api-base", help="base URL of the provider")


def _add_bench(parser: argparse.ArgumentParser) -> None:
    from bridge.bench.command import add_arguments, main

    parser.set_defaults(run=lambda arguments, parent: main(arguments))
    add_arguments(parser)


def _whole(least: int, most: int) -> Callable[[str], int]:
    """A type of arguments: whole numbers from `least` to `most`."""

    def read(text: str) -> int:
        # Digits alone, and not too many: `int` takes more, and fails beyond 4300 of them.
        if text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text[:100]!r} is not a whole number, {least} to {most}")

    return read


def _seconds(most: int, *, zero: bool = True) -> Callable[[str], float]:
    """A type of arguments: numbers up to `most`, from 0 or above it."""

    def read(text: str) -> float:
        with contextlib.suppress(ValueError):
            value = float(text)
            if 0 < value <= most or (zero and value == 0):  # false for NaN
                return value
        least = "from 0" if zero else "above 0"
        raise argparse.ArgumentTypeError(f"{text[:100]!r} is not a number of seconds {least} to {most}")

    return read


def _name(text: str) -> str:
    if not 0 < len(text) <= 512 or any("\ud800" <= character <= "\udfff" for character in text):
        raise argparse.ArgumentTypeError(f"{text[:100]!r} is not 1 to 512 characters of UTF-8")
    return text


def _store(text: str) -> str:
    kind, _, path = text.partition(":")
    if kind != "sqlite" or not path or path == ":memory:":
        raise argparse.ArgumentTypeError(f"{text!r} is not sqlite:PATH")
    return text


def _api_base(text: str) -> str:
    from bridge.security.destinations import pattern

    try:
        pattern(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _fds(text: str) -> tuple[int, int]:
    try:
        read_fd, write_fd = (int(part) for part in text.split(","))
        modes = [fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE for fd in (read_fd, write_fd)]
    except (ValueError, OverflowError, OSError):
        modes = []
    if not modes or modes[0] == os.O_WRONLY or modes[1] == os.O_RDONLY:
        raise argparse.ArgumentTypeError(
            f"{text[:100]!r} is not two open descriptors as in 3,4, to read from and to write to"
        )
    return read_fd, write_fd


def _demo(arguments: argparse.Namespace, parent: int) -> int:
    from bridge.demo import main

    return main(arguments)


def _worker(arguments: argparse.Namespace, parent: int) -> int:
    if os.isatty(arguments.fds[0]):
        print(
            "a worker is started by a host and reads frames from a pipe, not from a terminal;"
            "\nfor a look at what it does: python -m bridge demo",
            file=sys.stderr,
        )
        return 2
    with _hidden("typing_extensions"):  # before any module of ours imports it
        import msgspec  # noqa: F401  # importing it is the point
    from bridge.worker import process

    process.before_anything()
    from bridge.records import Quota
    from bridge.worker.main import Options, run

    options = Options(
        mode=arguments.mode,
        worker_id=arguments.worker_id,
        protocol=arguments.protocol,
        threads=arguments.threads,
        queue=arguments.queue,
        queue_bytes=arguments.queue_bytes,
        waiting=arguments.waiting,
        stuck_after=arguments.stuck_after,
        when_stuck=arguments.when_stuck,
        max_frame=arguments.max_frame,
        max_values=arguments.max_values,
        grace=arguments.grace,
        store=arguments.store,
        api_bases=tuple(arguments.api_base),
        max_sessions=arguments.max_sessions,
        session_ttl=arguments.session_ttl,
        quota=Quota(arguments.session_programs, arguments.session_bytes),
        log_level="ERROR" if arguments.quiet else arguments.log_level,
        telemetry=arguments.telemetry,
    )
    run(lambda: load_adapter(arguments.adapter), options, arguments.fds, parent)


@contextlib.contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Make an optional import of `module` fail meanwhile.

    msgspec prefers typing_extensions to what Python 3.11 has itself; loading it would be a quarter
    of a worker's start.
    """
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # the documented way to block an import
    try:
        yield
    finally:
        del sys.modules[module]


def load_adapter(name: str) -> Adapter:
    """The adapter that the operator named; a name from the wire never comes here. Raises
    AdapterFailed."""
    import importlib

    from bridge.adapter import Adapter, AdapterFailed

    module, _, attribute = ADAPTERS.get(name, name).partition(":")
    if not module or not attribute or module.startswith("."):
        known = " and ".join(ADAPTERS)
        raise AdapterFailed(f"there is no adapter {name!r}: there are {known}; one of your own is MODULE:ATTRIBUTE")
    try:
        loaded = importlib.import_module(module)
    except BaseException as error:  # whatever a module does, SystemExit for instance
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise AdapterFailed(f"adapter {name!r}: there is no module {error.name!r}") from error
        raise AdapterFailed(f"adapter {name!r} cannot be imported: {_reason(error)}") from error
    try:
        adapter = getattr(loaded, attribute)
    except BaseException as error:
        why = _reason(error)
        raise AdapterFailed(f"adapter {name!r}: {module!r} has no {attribute!r}: {why}") from error
    if not isinstance(adapter, Adapter):
        kind = type(adapter).__name__
        raise AdapterFailed(f"adapter {name!r}: not a bridge.Adapter but of the type {kind!r}")
    return adapter


def _reason(error: BaseException) -> str:
    """The type of an error, and the first line of its text."""
    text = ""
    with contextlib.suppress(Exception):
        text = str(error).strip().partition("\n")[0][:1000]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
