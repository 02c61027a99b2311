"""Which earlier change of the shared state a new one replaces, for the commands of this package.

A change by any other command is kept until the state is reset.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Hashable, Mapping
from typing import Any

Args = Mapping[str, Any]


def key_of(command: str, args: Any) -> Hashable | None:
    """Return a key that is equal for two calls of which the later one replaces the other; None if it replaces none."""
    find = KEYS.get(command)
    if find is None or not isinstance(args, Mapping | None):
        return None
    try:
        key = find(args or {})
        hash(key)
    except (TypeError, KeyError):  # args that a worker refuses
        return None
    return key


def with_id(command: str, args: Any) -> Any:
    """Return the args with an id, which each worker would otherwise choose for itself."""
    if command in CREATES and isinstance(args, Mapping) and args.get("id") is None:
        return {**args, "id": str(uuid.uuid4())}
    return args


def _program(args: Args) -> Hashable:
    return ("program", args["id"])


def _data(args: Args) -> Hashable | None:
    is_whole = (
        args.get("operation", "set") in ("set", "put", "update", "delete", "remove") and args.get("key") is not None
    )
    return ("data", args["key"]) if is_whole else None


def _tools(args: Args) -> Hashable:
    return ("tools", bool(args.get("replace")), *sorted(tool["name"] for tool in args["tools"]))


CREATES = ("create_program", "create_gemini_program")

# Of these, a newer call is made after all others. Any other one takes the place of what it replaces, because later
# calls may need it: programs are created with the tools that are registered before.
MOVED_TO_THE_END = ("update_session_data", *CREATES)

KEYS: dict[str, Callable[[Args], Hashable | None]] = {
    "configure_lm": lambda args: "model",
    "create_program": _program,
    "create_gemini_program": _program,
    "delete_program": lambda args: ("program", args["program_id"]),
    "register_tools": _tools,
    "set_log_level": lambda args: ("log level", args.get("logger")),
    "update_session_data": _data,
}
