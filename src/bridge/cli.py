"""The command line of `python -m bridge`: worker, serve, health, demo, evaluate, optimize, map, bench."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from bridge import NOT_BUILT, is_compiled
from bridge.version import __version__

if TYPE_CHECKING:
    from bridge.options import Options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` (default: the arguments of the process), and return the exit status."""
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
    """Return a parser that has only the flags of the commands in `argv`: each flag slows down the start of a worker."""
    parser = argparse.ArgumentParser(
        prog="dspex-bridge",
        description="DSPy programs for any host, over a pipe or a socket.",
        formatter_class=_formatter,
    )
    parser.add_argument("--version", action="version", version=f"dspex-bridge {__version__}")
    parser.add_argument(
        "--cmake-dir",
        action="version",
        version=os.path.join(os.path.dirname(__file__), "capi", "cmake"),
        help="print the folder for -Dbridge_DIR=… of a C or C++ host's build, and exit",
    )
    # With a prog, because argparse otherwise formats a usage message to make one.
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", prog=parser.prog)
    for name, add, help in (
        ("worker", _add_worker, "answer frames on a pipe (for hosts)"),
        ("serve", _add_serve, "listen on a Unix socket, and give a worker to each connection"),
        ("health", _add_health, "ask whether a server of workers answers (for probes)"),
        ("demo", _add_demo, "ask a worker a few questions and show its answers"),
        ("evaluate", partial(_add_experiment, "evaluate"), "score a program on examples"),
        ("optimize", partial(_add_experiment, "optimize"), "improve a program by examples"),
        ("map", _add_map, "run a program on each row of a data set"),
        ("bench", _add_bench, "compare serialization formats over a real pipe"),
    ):
        command = commands.add_parser(name, help=help, formatter_class=_formatter)
        if name in argv:
            add(command)
    return parser


def _formatter(prog: str) -> argparse.HelpFormatter:
    # With a width, because argparse otherwise loads shutil to find one.
    return argparse.HelpFormatter(prog, width=100)


def _add_worker(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_worker)
    parser.add_argument(
        "--fds", type=_fds, default=(0, 1), metavar="R,W", help="descriptors to read from and to write to (default 0,1)"
    )
    parser.add_argument("--detached", action="store_true", help="do not end with the parent process")
    _add_options(parser)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_serve)
    add = parser.add_argument
    add("--listen", type=_socket_path, required=True, metavar="unix:PATH", help="socket to listen on")
    add("--max-workers", type=_count, default=256, metavar="N", help="workers at the same time (default 256)")
    add(
        "--drain",
        type=_count,
        default=20,
        metavar="SECONDS",
        help="time for which workers may go on after SIGTERM (default 20)",
    )
    add(
        "--preload",
        action="append",
        default=[],
        metavar="MODULE",
        help="import this module before the first worker is forked, e.g. litellm; repeatable",
    )
    add("--replace", action="store_true", help="take the place of another template that listens there")
    add(
        "--control",
        choices=("json", "msgpack", "etf"),
        help="exchange frames of this format with the host on stdin and stdout",
    )
    _add_options(parser)


def _add_health(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_health)
    add = parser.add_argument
    add("address", type=_socket_path, metavar="unix:PATH", help="socket that the server listens on")
    add("--timeout", type=_count, default=2, metavar="SECONDS", help="time for the answer (default 2)")


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags that define what a worker is."""
    with _hidden("typing_extensions"):  # before any module of bridge imports msgspec
        import msgspec  # noqa: F401  # imported for its effect
    from bridge.options import DEFAULTS, TYPES

    parser.add_argument(
        "--adapter", default="dspy", metavar="NAME", help="dspy, echo, or your own as module:attr (default dspy)"
    )
    for option, kind in TYPES.items():
        _add_option(parser, option, kind, getattr(DEFAULTS, option))
    parser.add_argument("--quiet", action="store_true", help="log errors only")


def _add_option(parser: argparse.ArgumentParser, option: str, kind: Any, default: Any) -> None:
    """Add the flag of one option. An option that is not given stays out of the parsed arguments."""
    about, base = kind.__metadata__[-1], kind.__origin__
    flag, unit = f"--{option.replace('_', '-')}", about.extra["unit"]
    settings = {"dest": option, "default": argparse.SUPPRESS, "help": about.description + _default(default, unit)}
    if base is bool:
        settings["action"] = "store_true"
    elif unit is None:
        settings["choices"] = base.__args__
        if about.extra["alone"] is not None:
            settings.update(nargs="?", const=about.extra["alone"])
    else:
        settings.update(type=partial(_value, option, base), metavar=unit)
    if default == ():
        flag, settings["action"] = flag.removesuffix("s"), "extend"  # one item at a time
    parser.add_argument(flag, **settings)


def _default(value: Any, unit: str | None) -> str:
    if not value:
        return ""
    return f" (default {value >> 20} MiB)" if unit == "BYTES" else f" (default {str(value).removesuffix('.0')})"


def _value(option: str, base: Any, text: str) -> Any:
    """Return the value that `text` gives for `option`."""
    value: Any = text
    # Digits alone, and not too many: `int` accepts more, and fails for more than 4300 of them.
    if base is int and text.isascii() and text.isdigit() and len(text) < 20:
        value = int(text)
    elif base is float:
        with contextlib.suppress(ValueError):
            value = float(text)
    elif base not in (int, str):  # a list
        value = (text,)
    from bridge.options import check

    try:
        return check(option, value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_demo)
    add = parser.add_argument
    add("--model", help="e.g. gemini/gemini-2.0-flash; default: by the API key found, else offline")
    add("--api-base", help="base URL of the provider")


def _add_experiment(command: str, parser: argparse.ArgumentParser) -> None:
    from bridge.experiment.command import add_arguments, main

    parser.set_defaults(run=lambda arguments, parent: main(arguments))
    add_arguments(parser, command)


def _add_map(parser: argparse.ArgumentParser) -> None:
    from bridge.experiment.map import add_arguments, main

    parser.set_defaults(run=lambda arguments, parent: main(arguments))
    add_arguments(parser)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    from bridge.bench.command import add_arguments, main

    parser.set_defaults(run=lambda arguments, parent: main(arguments))
    add_arguments(parser)


def _fds(text: str) -> tuple[int, int]:
    try:
        read_fd, write_fd = (int(part) for part in text.split(","))
        modes = [fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE for fd in (read_fd, write_fd)]
    except (ValueError, OverflowError, OSError):
        modes = []
    if not modes or modes[0] == os.O_WRONLY or modes[1] == os.O_RDONLY:
        raise argparse.ArgumentTypeError(
            f"{text[:100]!r} is not a pair of open descriptors like 3,4, to read from and to write to"
        )
    return read_fd, write_fd


def _socket_path(text: str) -> str:
    from bridge.addresses import unix_path

    try:
        return unix_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _count(text: str) -> int:
    from bridge.flags import count  # here, so that a probe does not load it

    return count(text)


def _demo(arguments: argparse.Namespace, parent: int) -> int:
    from bridge.demo import main

    return main(arguments)


def _worker(arguments: argparse.Namespace, parent: int) -> int:
    if os.isatty(arguments.fds[0]):
        print(
            "a worker is started by a host and reads frames from a pipe, not from a terminal;"
            "\nto see what it does, type: python -m bridge demo",
            file=sys.stderr,
        )
        return 2
    from bridge.worker import process

    process.prepare_signals()
    from bridge.adapter import load
    from bridge.worker.main import run

    run(lambda: load(arguments.adapter), _options(arguments), arguments.fds, 0 if arguments.detached else parent)


def _serve(arguments: argparse.Namespace, parent: int) -> int:
    import signal

    from bridge.worker import process

    process.prepare_signals()
    signal.signal(signal.SIGINT, signal.getsignal(signal.SIGTERM))  # Ctrl-C ends it, also while modules are loaded
    from bridge.adapter import load
    from bridge.template.main import run
    from bridge.template.settings import Settings

    settings = Settings(
        adapter=arguments.adapter,
        options=_options(arguments),
        path=arguments.listen,
        max_workers=arguments.max_workers,
        drain=arguments.drain,
        preload=tuple(arguments.preload),
        replace=arguments.replace,
        control=arguments.control,
    )
    run(settings, lambda: load(arguments.adapter))


def _health(arguments: argparse.Namespace, parent: int) -> int:
    from bridge.health import Unhealthy, check

    try:
        check(arguments.address, arguments.timeout)
    except Unhealthy as error:
        print(f"dspex-bridge health: unix:{arguments.address}: {error}", file=sys.stderr)
        return 1
    print(f"unix:{arguments.address} answers")
    return 0


def _options(arguments: argparse.Namespace) -> Options:
    import msgspec

    from bridge.options import Options

    given = vars(arguments)
    if arguments.quiet:
        given["log_level"] = "ERROR"
    return msgspec.convert({name: given[name] for name in Options.__struct_fields__ if name in given}, Options)


@contextlib.contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Make the import of `module` fail inside the `with` statement.

    msgspec imports typing_extensions if it is installed, though it does not need it with Python 3.11; that would take
    a quarter of a worker's start.
    """
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # the documented way to block an import
    try:
        yield
    finally:
        del sys.modules[module]
