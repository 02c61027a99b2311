"""The choice of a format for prompts and replies: what the args `adapter` and `fallback` mean. Data only.

On the wire a format is called an adapter, as in DSPy.
"""

from __future__ import annotations

import msgspec

from bridge.errors import InvalidArgs

NAMES = ("chat", "json", "xml", "two_step", "baml")
DEFAULT = "chat"
FALLBACK = "json"
_WITH_FALLBACK = ("chat", "xml", "two_step")  # the others write JSON themselves


class FormatChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A format, checked by `read_choice`.

    fallback: the format in which a model is asked again if its reply cannot be read. model: for two_step, the name of
    the model that extracts the fields; None: the one that runs the program. native: whether tools and the form of the
    reply are requested by the features that the provider has for them, if it has any.
    """

    name: str = DEFAULT
    fallback: str | None = None
    model: str | None = None
    native: bool = True


FormatArg = str | FormatChoice


def read_choice(given: FormatArg | None, path: str, fallback: str | None = None) -> FormatChoice | None:
    """Return the choice in an arg `adapter`, None if there is none. Raises InvalidArgs.

    path: of the arg, for errors. fallback: the arg `fallback` beside it.
    """
    choice = FormatChoice(given) if isinstance(given, str) else given
    if fallback is not None:
        choice = choice or FormatChoice()
        if choice.fallback not in (None, fallback):
            raise _invalid(path, f"two different fallbacks, {choice.fallback!r} and {fallback!r}")
        choice = msgspec.structs.replace(choice, fallback=fallback)
    if choice is not None:
        _check(choice, path if isinstance(given, str | None) else f"{path}.name", path)
    return choice


def _check(choice: FormatChoice, path_of_name: str, path: str) -> None:
    if choice.name not in NAMES:
        raise _invalid(path_of_name, f"unknown adapter {choice.name!r}", f"one of {', '.join(NAMES)}")
    if choice.fallback not in (None, FALLBACK):
        raise _invalid(f"{path}.fallback", f"unknown fallback {choice.fallback!r}", FALLBACK)
    if choice.fallback is not None and choice.name not in _WITH_FALLBACK:
        raise _invalid(f"{path}.fallback", f"only for the adapters {', '.join(_WITH_FALLBACK)}, not {choice.name}")
    if choice.model is not None and choice.name != "two_step":
        raise _invalid(f"{path}.model", f"only for the adapter two_step, not {choice.name}")


def _invalid(path: str, reason: str, expected: str | None = None) -> InvalidArgs:
    if expected is None:
        return InvalidArgs(f"{path}: {reason}", path=path)
    return InvalidArgs(f"{path}: {reason}; expected {expected}", path=path, expected=expected)
