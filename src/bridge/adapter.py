"""Adapters: named sets of commands, which a worker answers. An adapter is written like this:

words = Adapter("words")

class Text(msgspec.Struct):
    text: str

@words.command("count_words", Text)
def count_words(args: Text, context: Context) -> dict[str, int]:
    return {"words": len(args.text.split())}
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from bridge.errors import text_of
from bridge.options import is_reference
from bridge.records import Records

ADAPTERS = {"dspy": "bridge.adapters.dspy:adapter", "echo": "bridge.adapters.echo:adapter"}

LaneName = Literal["inline", "worker", "thread", "run", "session", "everyone", "end_session", "end_all"]
Handler = Callable[[Any, Any], Any]  # (args, Context)
AnyHandler = TypeVar("AnyHandler", bound=Callable[..., Any])

# The type of an argument that some hosts send and that has no effect. It is declared with the default None. Errors do
# not list it among the known arguments.
Ignored = Annotated[Any, msgspec.Meta(description="Ignored.", extra={"ignored": True})]


class NoArgs(msgspec.Struct):
    """The args of a command without arguments."""


class Unchecked(msgspec.Struct):
    """The args of a command that ignores its arguments: they are not decoded, and the handler gets None."""


class AdapterFailed(ValueError):
    """Raised if an adapter or one of the operator's programs cannot be used; the message names it and the reason."""


class Lane(msgspec.Struct, frozen=True):
    """Declares where the calls of a command run and which other calls they wait for.

    inline: they run on the thread that reads the requests, and the handler must not wait for anything. Other calls run
    on the threads of the pool.
    sessions: the sessions whose earlier calls they wait for: none, their own ("one"), or all.
    loads: the session is loaded from the store before the handler runs.
    changes: the session's later calls wait until the handler returns or calls context.release(). What it has changed in
    the session's records by then is committed: in a durable session it is on disk before the reply is sent.
    optimistic: whether another worker has taken a durable session is found out when the call ends, mostly by the commit
    itself, and not before the handler runs. For handlers that do little but change records.
    shares: a call that names no session changes no session but context.shared, a dict that all sessions see from their
    next call on.
    ends: the handler gets the sessions as context.sessions, and later calls do not find them any more.
    """

    name: LaneName
    sessions: Literal["none", "one", "all"] = "none"
    inline: bool = False
    loads: bool = False
    changes: bool = False
    optimistic: bool = False
    shares: bool = False
    ends: bool = False


LANES: dict[str, Lane] = {
    lane.name: lane
    for lane in (
        Lane("inline", inline=True),
        Lane("worker"),
        Lane("thread", sessions="one", loads=True),
        # As "session", but what such a call adds to its session is only what it needs: of several workers, one gets it.
        Lane("run", sessions="one", loads=True, changes=True),
        Lane("session", sessions="one", loads=True, changes=True, optimistic=True),
        Lane("everyone", sessions="one", loads=True, changes=True, optimistic=True, shares=True),
        Lane("end_session", sessions="one", ends=True),
        Lane("end_all", sessions="all", ends=True),
    )
}


class CommandSpec(msgspec.Struct, frozen=True):
    """Declares a command of an adapter.

    args: the type that its args are decoded to, None for `Unchecked`. idempotent: whether a call may be repeated
    safely. help: the first line of the handler's docstring.
    """

    name: str
    handler: Handler
    args: type | None
    lane: Lane
    idempotent: bool
    help: str


class Adapter:
    """Represents a set of commands under one name.

    new_state(records): returns the adapter's state of a session, when it is first used. State that must outlive the
    worker, or that counts towards the session's quota, belongs in `records`, from which the next state is made.
    counted: the kind of records that a session's quota limits in number (`--session-programs`) and that replies count
    as `programs`; None: no kind.
    available(name): returns what `ping` reports as `{name}_available` (dspy, gemini). It is called once for each name,
    and must not import the library.
    warm_up(): imports the libraries of the commands. It is called on a separate thread after the first reply, and in a
    template (`serve`) before it forks workers.
    rehearse(call): prepares a template (`serve`), which calls it once for each format before it forks workers, so that
    they need not load what it has loaded. call(command, args) returns the result of a command. It must not leave a
    thread or an open connection.
    load_programs(given): returns the operator's programs (`--program`, each as NAME=MODULE:ATTRIBUTE) by name, which
    handlers find in context.shared["programs"]. It is called at the start if there are any, and raises AdapterFailed.
    None: the adapter runs no programs of the operator.
    describe(): returns what `describe` says in addition to the commands. It must not import the libraries.
    """

    def __init__(
        self,
        name: str,
        *,
        new_state: Callable[[Records], Any] = lambda records: {},
        counted: str | None = None,
        available: Callable[[str], bool] = lambda name: False,
        warm_up: Callable[[], None] | None = None,
        rehearse: Callable[[Callable[..., Any]], object] | None = None,
        load_programs: Callable[[tuple[str, ...]], dict[str, Any]] | None = None,
        describe: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self.name = name
        self.new_state = new_state
        self.counted = counted
        self.available = available
        self.warm_up = warm_up
        self.rehearse = rehearse
        self.load_programs = load_programs
        self.describe = describe
        self.commands: dict[str, CommandSpec] = {}

    def extended(self, name: str) -> Adapter:
        """Return a new adapter with everything that this one has, to which commands can be added."""
        adapter = Adapter(
            name,
            new_state=self.new_state,
            counted=self.counted,
            available=self.available,
            warm_up=self.warm_up,
            rehearse=self.rehearse,
            load_programs=self.load_programs,
            describe=self.describe,
        )
        adapter.commands.update(self.commands)
        return adapter

    def command(
        self,
        name: str,
        args: type | None = None,
        *,
        lane: LaneName = "thread",
        idempotent: bool = False,
    ) -> Callable[[AnyHandler], AnyHandler]:
        """Declare the decorated handler(args, context) as the command `name`.

        lane: the name of a row of LANES, which defines where and after which calls the handler runs.
        args: the type that the args of a request are decoded to, usually a msgspec.Struct; None: the command has no
        arguments. Arguments that the Struct does not have are refused as `invalid_args`, except `session_id`, which
        every command accepts. A Struct inside another one follows its own `forbid_unknown_fields`.
        The handler returns a value that every format can encode, usually a dict. It raises an exception of
        bridge.errors for an error with that code; any other exception is answered as `handler_error`.
        """
        if lane not in LANES:
            raise ValueError(f"unknown lane {lane!r}; known: {', '.join(LANES)}")

        def declare(handler: AnyHandler) -> AnyHandler:
            if name in self.commands:
                raise ValueError(f"adapter {self.name!r} already has a command {name!r}")
            help = (handler.__doc__ or "").strip().partition("\n")[0]
            wanted = _strict(NoArgs if args is None else args)
            self.commands[name] = CommandSpec(name, handler, wanted, LANES[lane], idempotent, help)
            return handler

        return declare


def _strict(args: type) -> type | None:
    """Return `args` as a type that refuses unknown fields and accepts a session_id; None for Unchecked."""
    if args is Unchecked:
        return None
    if not isinstance(args, msgspec.StructMeta) or args.__struct_config__.array_like:
        return args
    session_id = ("session_id", str | None, msgspec.field(name="session_id", default=None))
    return msgspec.defstruct(
        args.__name__,
        [] if "session_id" in args.__struct_fields__ else [session_id],
        bases=(args,),
        # Different from the module of `args`, so that the schema of a recursive type can name both types.
        module=f"{args.__module__}.args",
        namespace={"__doc__": args.__doc__},
        forbid_unknown_fields=True,
    )


def load(name: str) -> Adapter:
    """Return the adapter `name`: one of ADAPTERS, or MODULE:ATTRIBUTE. Raise AdapterFailed if it cannot be loaded.

    The name comes from the operator, never from a request.
    """
    reference = ADAPTERS.get(name, name)
    if not is_reference(reference):
        known = ", ".join(ADAPTERS)
        raise AdapterFailed(f"there is no adapter {name!r}; known: {known}, or your own as MODULE:ATTRIBUTE")
    adapter = load_object(f"adapter {name!r}", reference)
    if not isinstance(adapter, Adapter):
        kind = type(adapter).__name__
        raise AdapterFailed(f"adapter {name!r}: not a bridge.Adapter but of the type {kind!r}")
    return adapter


def load_object(what: str, reference: str) -> Any:
    """Return the object that MODULE:ATTRIBUTE names. Raises AdapterFailed, whose message begins with `what`.

    The reference comes from the operator, never from a request.
    """
    module, _, attribute = reference.partition(":")
    try:
        loaded = importlib.import_module(module)
    except BaseException as error:  # a module may raise anything when it is imported, for instance SystemExit
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise AdapterFailed(f"{what}: there is no module {error.name!r}") from error
        raise AdapterFailed(f"{what} cannot be imported: {reason_of(error)}") from error
    try:
        return getattr(loaded, attribute)
    except BaseException as error:
        raise AdapterFailed(f"{what}: {module!r} has no {attribute!r}: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """Return the type of an error and the first line of its text."""
    text = text_of(error)[:1000]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
