"""Checks tools' declarations, and the arguments of their calls, by the JSON Schema that the host sent."""

from __future__ import annotations

from typing import Any

import msgspec

from bridge import errors
from bridge.adapters.dspy.tools.json_schema import DEFINITIONS, is_larger, is_object_schema, members_of, references

MAX_MESSAGE = 200  # characters of a validation error
MAX_PARTS = 5000  # maps and lists in a schema, each of which takes up to 0.3 ms to check


class ToolSchema(msgspec.Struct, frozen=True):
    """The JSON Schema of a tool's arguments.

    properties: the schema of each argument, with the definitions that it refers to. required: the arguments that a call
    must have. is_open: whether it may have others. whole: the schema of the object of all arguments.
    """

    properties: dict[str, Any]
    required: frozenset[str]
    is_open: bool
    whole: dict[str, Any]

    @classmethod
    def of(cls, args: dict[str, Any]) -> ToolSchema:
        """Return the schema of a tool's `args`, in either form: an object schema, or a schema of each argument."""
        if not is_object_schema(args):
            needed = frozenset(name for name, schema in args.items() if not _has_default(schema))
            whole = {"type": "object", "properties": args, "required": sorted(needed)}
            return cls(args, needed, False, whole)
        properties, required, is_open = members_of(args)
        definitions = {key: args[key] for key in DEFINITIONS if key in args}
        shown = {
            name: {**schema, **definitions} if isinstance(schema, dict) and any(references(schema)) else schema
            for name, schema in properties.items()
        }
        return cls(shown, required, is_open, args)

    def check(self, path: str) -> None:
        """Raise InvalidArgs if this is not a JSON Schema, is too large, or refers to something outside of itself."""
        if is_larger(self.whole, MAX_PARTS):
            raise errors.InvalidArgs(
                f"{path}: a schema with more than {MAX_PARTS} maps and lists is too large", path=path
            )
        for reference in references(self.whole):
            if not reference.startswith("#"):
                raise errors.InvalidArgs(
                    f"{path}: a reference to {reference[:100]!r}: only references within the schema"
                    " (#/$defs/…) are allowed",
                    path=path,
                )
        wrong = [name for name, schema in self.properties.items() if not isinstance(schema, dict)]
        if wrong:
            raise errors.InvalidArgs(f"{path}: not a JSON Schema for each argument: {wrong[0]}", path=path)
        # Imported here because sessions without tools do not need it.
        from jsonschema import SchemaError
        from jsonschema.validators import validator_for

        if not isinstance(self.whole.get("$schema", ""), str):
            raise errors.InvalidArgs(f"{path}: not a JSON Schema: $schema: expected a URL", path=path)
        try:
            validator_for(self.whole).check_schema(self.whole)
        except SchemaError as error:
            where = "".join(f".{part}" for part in error.absolute_path)
            raise errors.InvalidArgs(
                f"{path}: not a JSON Schema: {where[1:]}: {error.message[:MAX_MESSAGE]}", path=path
            ) from None
        except RecursionError:
            raise errors.InvalidArgs(f"{path}: not a JSON Schema: nested too deeply", path=path) from None

    def problem(self, arguments: dict[str, Any]) -> str:
        """Return the problem with the arguments of a call in one line, or "" if there is none."""
        unknown = [name for name in arguments if name not in self.properties]
        missing = sorted(self.required - arguments.keys())
        if unknown and not self.is_open:
            return f"has no argument {', '.join(unknown)}"
        if missing:
            return f"needs the argument {', '.join(missing)}"
        from bridge.adapters.dspy.tools.validation import first_error

        try:
            error = first_error(self.whole, arguments)
        except Exception:
            # The schema has a broken or circular reference, or a number is too large to be divided: the host checks
            # the arguments itself.
            return ""
        if error is None:
            return ""
        where = ".".join(map(str, error.absolute_path)) or "the arguments"
        return f"cannot take {where}: {' '.join(error.message.split())[:MAX_MESSAGE]}"


def _has_default(schema: Any) -> bool:
    return isinstance(schema, dict) and "default" in schema
