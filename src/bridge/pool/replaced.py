"""Which earlier changes of the shared state a new one replaces, for the commands of this package.

A change by any other command is kept until the state is reset.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Hashable, Mapping
from typing import Any

Args = Mapping[str, Any]


def key_of(command: str, args: Any) -> Hashable | None:
    """Return a key that is equal for two calls of which the later one replaces the other; None if it replaces none."""
    return _found(KEYS, command, args)


def whole_of(command: str, args: Any) -> Hashable | None:
    """Return the key of what a call changes a part of, as an import of demos changes a program; None if of nothing.

    A call that replaces or removes the whole replaces this one, too.
    """
    return _found(PARTS, command, args)


def with_id(command: str, args: Any) -> Any:
    """Return the args with an id, which each worker would otherwise choose for itself."""
    name = CREATES.get(command)
    if name is not None and isinstance(args, Mapping) and args.get(name) is None:
        return {**args, name: str(uuid.uuid4())}
    return args


def follow_up(command: str, result: Any) -> tuple[str, Args] | None:
    """Return the call, as (command, args), that makes what a call has changed in its worker in all others; or None."""
    if command != "optimize" or not isinstance(result, Mapping) or "document" not in result:
        return None
    args = {"document": result["document"], "program_id": result.get("program_id"), "if_exists": "replace"}
    return "import_program", args


Find = Callable[[Args], Hashable | None]


def _found(table: Mapping[str, Find], command: str, args: Any) -> Hashable | None:
    find = table.get(command)
    if find is None or not isinstance(args, Mapping | None):
        return None
    try:
        key = find(args or {})
        hash(key)
    except (TypeError, KeyError, AttributeError):  # args that a worker refuses
        return None
    return key


def _program(args: Args) -> Hashable:
    return ("program", args["id"])


def _imported(args: Args) -> Hashable:
    """Return the key of a program that a document defines; a document of DSPy only has what it has learned."""
    program = ("program", args["program_id"])
    return program if args["document"]["metadata"].get("bridge") is not None else ("learned", *program)


def _index(args: Args) -> Hashable:
    return ("index", args["index_id"])


def _data(args: Args) -> Hashable | None:
    is_whole = (
        args.get("operation", "set") in ("set", "put", "update", "delete", "remove") and args.get("key") is not None
    )
    return ("data", args["key"]) if is_whole else None


def _tools(args: Args) -> Hashable:
    return ("tools", bool(args.get("replace")), *sorted(tool["name"] for tool in args["tools"]))


# By command, the argument that has the id of what it creates.
CREATES = {
    "create_program": "id",
    "create_gemini_program": "id",
    "import_program": "program_id",
    "load_program": "program_id",
}
REMOVES = ("delete_program", "delete_index")

# Of these, a newer call is made after all others. Any other one takes the place of what it replaces, because later
# calls may need it: programs are created with the tools that are registered before.
MOVED_TO_THE_END = ("update_session_data", "create_index", *CREATES)

KEYS: dict[str, Find] = {
    "configure_embedder": lambda args: ("embedder", args.get("name")),
    "configure_lm": lambda args: ("model", args.get("name")),
    "create_gemini_program": _program,
    "create_index": _index,
    "create_program": _program,
    "delete_index": _index,
    "delete_program": lambda args: ("program", args["program_id"]),
    "import_program": _imported,
    "load_program": lambda args: ("file", args["program_id"], args["path"]),
    "register_tools": _tools,
    "set_log_level": lambda args: ("log level", args.get("logger")),
    "update_session_data": _data,
}

PARTS: dict[str, Find] = {
    "add_to_index": _index,
    "import_program": lambda args: ("program", args["program_id"]),
    "load_program": lambda args: ("program", args["program_id"]),
}
