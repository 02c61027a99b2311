"""The options of a worker: the one list of their names, defaults, bounds and descriptions.

The flags of `python -m bridge worker` and the JSON options of an embedding host are made from it. A new option is one
new field of `Options`.
"""

# No `from __future__ import annotations` here: each start of a worker reads the annotations, as objects.
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec

from bridge.errors import shown

DAY = 86_400  # seconds
LONGEST_TTL = 365 * DAY
DEFAULT_MAX_FRAME = 64 << 20  # bytes
DEFAULT_MAX_VALUES = 1_000_000  # which take at most half a second to decode


def _flag(
    help: str,
    unit: str | None = None,
    check: Callable[[Any], object] | None = None,
    alone: str | None = None,
) -> msgspec.Meta:
    """Describe an option.

    check(value): raises ValueError for a value that the type accepts and the option does not. alone: what the flag
    without a value means; None: it needs one.
    """
    return msgspec.Meta(description=help, extra={"unit": unit, "check": check, "alone": alone})


def _whole(least: int, most: int) -> msgspec.Meta:
    return msgspec.Meta(ge=least, le=most, title=f"a whole number from {least} to {most}")


def _check_name(text: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{shown(text)} is not valid UTF-8")


def _check_store(text: str) -> None:
    scheme, _, location = text.partition(":")
    if not scheme or not location:
        expected = "sqlite:PATH or postgresql://HOST/DATABASE"
        raise ValueError(f"{shown_store(text)} is not the name of a store like {expected}")


def shown_store(name: str) -> str:
    """Return the name of a store for an error, without what may be a password in a URL."""
    if any(sign in name for sign in "@?="):
        name = name.partition(":")[0] + ":…"
    return shown(name)


def _check_addresses(texts: tuple[str, ...]) -> None:
    from bridge.security.destinations import pattern  # loads modules that the start of a worker does not need

    for text in texts:
        pattern(text)


def _check_variables(names: tuple[str, ...]) -> None:
    for name in names:
        if not (name.isidentifier() and name.isascii()):
            raise ValueError(f"{shown(name)} is not the name of an environment variable")


def is_reference(text: str) -> bool:
    """Return whether `text` has the form MODULE:ATTRIBUTE."""
    module, _, attribute = text.partition(":")
    return bool(module and attribute) and not module.startswith(".")


def _check_programs(texts: tuple[str, ...]) -> None:
    for text in texts:
        name, _, reference = text.partition("=")
        if not name.strip() or not name.isprintable() or not is_reference(reference):
            raise ValueError(f"{shown(text)} is not a program like NAME=MODULE:ATTRIBUTE")


Name = Annotated[str, msgspec.Meta(min_length=1, max_length=512, title="1 to 512 characters")]
Count = Annotated[int, _whole(1, 1 << 53)]
Frame = Annotated[int, _whole(4096, 1 << 30)]
Values = Annotated[int, _whole(1000, 1 << 30)]
Memory = Annotated[int, _whole(32 << 20, 1 << 53)]
CpuTime = Annotated[int, _whole(1, DAY * 365)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=DAY * 1000, title=f"a number of milliseconds from 0 to {DAY}000")]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=DAY, title=f"a number of seconds from 0 to {DAY}")]
Ttl = Annotated[float, msgspec.Meta(gt=0, le=LONGEST_TTL, title=f"a number of seconds above 0 and up to {LONGEST_TTL}")]
Mode = Literal["standalone", "pool-worker"]
Protocol = Literal["json", "msgpack", "etf"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
Sandbox = Literal["monty", "deno"]
_CODE = "programs of types rlm and flex: run what models write in this sandbox (without a value: monty)"
_PROGRAM = "a dspy.Module, its class, or a function that returns it, as the program NAME; repeatable"
_STORE = "where durable sessions are stored: sqlite:PATH or postgresql://HOST/DATABASE"
_URL = "address of images that providers may fetch, as https://*.example.com/photos; repeatable"
_API_KEY = "environment variable that configure_lm may take a key from; repeatable"
_API_BASE = "address that gets keys from the environment, as https://*.example.com/v1; repeatable"


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Represents how to run a worker. Bounds are checked where options come from outside: a command line, or JSON."""

    mode: Annotated[Mode, _flag('pool-worker: calls without a session share "anonymous"')] = "standalone"
    worker_id: Annotated[Name, _flag("returned by ping and shutdown", "STR", _check_name)] | None = None
    protocol: Annotated[Protocol, _flag("format that negotiation selects")] | None = None
    threads: Annotated[Count, _flag("calls that run at the same time", "N")] = 64
    queue: Annotated[Count, _flag("calls that wait for a thread or for earlier calls", "N")] = 4096
    queue_bytes: Annotated[Count, _flag("size of the requests of all open calls", "BYTES")] = 256 << 20
    queue_target: Annotated[Milliseconds, _flag("wait for a thread that is refused if it lasts; 0: none", "MS")] = 0.0
    waiting: Annotated[Count, _flag("calls that wait for the host, without a thread", "N")] = 1024
    stuck_after: Annotated[Seconds, _flag("time without progress on any thread; 0: never", "SECONDS")] = 300.0
    when_stuck: Annotated[Literal["report", "exit"], _flag("log it, or exit with status 75")] = "report"
    max_frame: Annotated[Frame, _flag("size of the largest frame", "BYTES")] = DEFAULT_MAX_FRAME
    max_values: Annotated[Values, _flag("values that a frame may hold", "N")] = DEFAULT_MAX_VALUES
    max_memory: Annotated[Memory, _flag("private memory of the worker process", "BYTES")] | None = None
    max_cpu: Annotated[CpuTime, _flag("CPU time of the worker process", "SECONDS")] | None = None
    grace: Annotated[Seconds, _flag("time for open calls when the worker ends", "SECONDS")] = 2.0
    api_bases: Annotated[tuple[str, ...], _flag(_API_BASE, "PATTERN", _check_addresses)] = ()
    allow_urls: Annotated[tuple[str, ...], _flag(_URL, "PATTERN", _check_addresses)] = ()
    api_key_envs: Annotated[tuple[str, ...], _flag(_API_KEY, "NAME", _check_variables)] = ()
    programs: Annotated[tuple[str, ...], _flag(_PROGRAM, "NAME=MODULE:ATTR", _check_programs)] = ()
    store: Annotated[str, _flag(_STORE, "STORE", _check_store)] | None = None
    state_dir: (
        Annotated[str, _flag("folder of files that sessions save and load programs in", "PATH", _check_name)] | None
    ) = None
    allow_code_execution: Annotated[Sandbox, _flag(_CODE, alone="monty")] | None = None
    max_sessions: Annotated[Count, _flag("live sessions", "N")] = 10_000
    session_ttl: Annotated[Ttl, _flag("time after which an idle session expires", "SECONDS")] = 3600.0
    session_programs: Annotated[Count, _flag("programs that a session may have", "N")] | None = None
    session_bytes: Annotated[Count, _flag("size of the records of a session", "BYTES")] | None = None
    telemetry: Annotated[bool, _flag("OpenTelemetry spans and Prometheus text")] = False
    log_level: Annotated[LogLevel, _flag("least severe messages to log")] = "WARNING"


DEFAULTS = Options()

# The type of each option, without None: typing.Annotated[…], with what _flag returned as the last of its metadata.
TYPES: dict[str, Any] = {
    option: each if hasattr(each, "__metadata__") else each.__args__[0]
    for option, each in Options.__annotations__.items()
}


def check(option: str, value: Any) -> Any:
    """Return `value` if it is valid for `option`. Raise ValueError, with what is expected, if it is not."""
    kind = TYPES[option]
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        raise ValueError(f"{shown(value)} is not {kind.__metadata__[0].title}") from None
    if kind.__metadata__[-1].extra["check"] is not None:
        kind.__metadata__[-1].extra["check"](value)
    return value


def flags(options: Options) -> list[str]:
    """Return the flags of the command line that give a worker these options."""
    given: list[str] = []
    for option in TYPES:
        value, flag = getattr(options, option), f"--{option.replace('_', '-')}"
        if value == getattr(DEFAULTS, option):
            continue
        if value is True:
            given.append(flag)
        elif isinstance(value, tuple):
            for item in value:
                given += [flag.removesuffix("s"), item]
        else:
            given += [flag, str(value)]
    return given
