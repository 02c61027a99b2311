"""The types that JSON Schema has and Python has not: objects with declared properties, tuples of items, named types."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec


class Property(msgspec.Struct, frozen=True):
    """A property of an object. default: its value if it is missing, encoded as JSON; None: there is none."""

    type: Any
    is_required: bool = False
    default: bytes | None = None


class Object:
    """A map with declared properties. `object_type` creates its subclasses, which are types of values.

    properties: by name. others: the type of further properties, or None if there may be none. keys: the type of their
    names.
    """

    properties: ClassVar[dict[str, Property]]
    others: ClassVar[Any]
    keys: ClassVar[Any]


class Items:
    """A list whose first items have a type each, and all others one type, or None if there may be no others."""

    first: ClassVar[tuple[Any, ...]]
    others: ClassVar[Any]


class Named:
    """A type that is used under a name, so that it may contain itself. target: the type."""

    target: ClassVar[Any]


def object_type(name: str, properties: dict[str, Property], others: Any, keys: Any = str) -> type[Object]:
    """Return the type of a map."""
    made: type[Object] = _made(name, Object, properties=properties, others=others, keys=keys)
    return made


def items_type(first: tuple[Any, ...], others: Any) -> type[Items]:
    """Return the type of a list whose first items have a type each."""
    made: type[Items] = _made("list", Items, first=first, others=others)
    return made


def named_type(name: str) -> type[Named]:
    """Return a type whose target is set later."""
    made: type[Named] = _made(name, Named)
    return made


def target_of(type: Any) -> Any:
    """Return the type that a name stands for; other types unchanged."""
    while is_kind(type, Named):
        type = type.target
    return type


def is_kind(type: Any, kind: type) -> bool:
    """Return whether `type` is a subclass of Object, Items or Named, as `kind` says."""
    return isinstance(type, _CLASS) and issubclass(type, kind)


_CLASS = type


def _made(name: str, base: Any, **attributes: Any) -> Any:
    return _CLASS(name, (base,), {"__module__": "builtins", **attributes})
