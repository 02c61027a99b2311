"""Values and types of fields as DSPy has them: images and files in requests, objects of a JSON Schema in prompts."""

from __future__ import annotations

from types import GenericAlias
from typing import Any, ClassVar, Union, get_args, get_origin

import dspy
import msgspec
import pydantic
from dspy.adapters.utils import get_annotation_name
from pydantic_core import core_schema

from bridge import errors
from bridge.adapters.dspy.current_run import PassedError, current_run
from bridge.adapters.dspy.schemas.constraints import unconstrained
from bridge.adapters.dspy.schemas.objects import Items, is_kind, target_of
from bridge.adapters.dspy.schemas.parts import target
from bridge.adapters.dspy.schemas.vocabulary import DEFINITIONS
from bridge.adapters.dspy.signatures import Field
from bridge.adapters.dspy.values.conversion import bare_type, convert, exact_numbers, is_union
from bridge.adapters.dspy.values.inputs import AS_SENT
from bridge.adapters.dspy.values.scalars import SCALARS, is_literal
from bridge.adapters.type_names import Audio, Code, File, History, Image, Reasoning
from bridge.security.destinations import Address, allows

_LONGEST_NAME = 200  # characters of a type's name in prompts
_AUDIO_FORMATS = {"audio/wav": "wav", "audio/mpeg": "mp3"}


class Media(dspy.Type):  # type: ignore[misc]  # DSPy is not typed
    """An image, a recording or a file, ready for a request.

    kind: "image", "audio" or "file". data: base64, or "" for an image that the provider finds at `url`. path: where the
    host sent it, for errors.
    """

    kind: str
    path: str
    mime_type: str = ""
    data: str = ""
    url: str = ""
    filename: str = ""

    def format(self) -> list[dict[str, Any]]:
        """Return the parts of a message. DSPy's parts of files have no place for a name, which is text before them.

        Raises PassedError with NotAllowed for an address that the operator does not allow.
        """
        if self.url:
            self._check_address()
        if self.kind == "audio":
            audio = {"data": self.data, "format": _AUDIO_FORMATS[self.mime_type]}
            return [{"type": "input_audio", "input_audio": audio}]
        address = self.url or f"data:{self.mime_type};base64,{self.data}"
        if self.kind == "image":
            return [{"type": "image_url", "image_url": {"url": address}}]
        name = [{"type": "text", "text": f"{self.filename}\n"}] if self.filename else []
        return [*name, {"type": "file", "file": {"file_data": address}}]

    def _check_address(self) -> None:
        run = current_run.get()
        patterns = () if run is None else run.context.shared.get("urls", ())
        if not allows(patterns, Address.parse(self.url)):
            reason = "the operator of the worker has not allowed images at this address (--allow-url); send the data"
            raise PassedError(errors.NotAllowed(f"{self.path}: {reason}", path=self.path))

    @pydantic.model_serializer()
    def serialize_model(self, info: pydantic.SerializationInfo) -> Any:
        """Return what DSPy expects of its types, or the form in which hosts send the value."""
        if info.context != AS_SENT:
            return super().serialize_model()
        fields = ("url",) if self.url else ("data", "mime_type", "filename")
        return {name: getattr(self, name) for name in fields if getattr(self, name)}

    def __str__(self) -> str:
        return repr(self)

    def __repr__(self) -> str:
        return f"<{self.kind} {self.url or f'of {len(self.data) * 3 // 4} bytes'}>"


class Conversation(dspy.History):  # type: ignore[misc]  # DSPy is not typed
    """A history whose messages hosts get under their own names of the fields."""

    _names: dict[str, str] = pydantic.PrivateAttr(default_factory=dict)

    @classmethod
    def of(cls, messages: list[dict[str, Any]], names: dict[str, str]) -> Conversation:
        """Return the history. names: the host's names of fields, by their names in DSPy."""
        made = cls(messages=messages)
        made._names = names
        return made

    @pydantic.model_serializer(mode="wrap")
    def _serialized(self, handler: Any, info: pydantic.SerializationInfo) -> Any:
        data = handler(self)
        if info.context != AS_SENT:
            return data
        return {
            "messages": [{self._names.get(key, key): value for key, value in turn.items()} for turn in data["messages"]]
        }


class Described:
    """A type that prompts describe by its JSON Schema, as DSPy does for models of pydantic.

    schema: the JSON Schema. type: of the values.
    """

    schema: ClassVar[dict[str, Any]]
    type: ClassVar[Any]

    @classmethod
    def validated(cls, value: Any) -> Any:
        """Return data as a value of the type. Raises ValueError."""
        return convert(exact_numbers(value), cls.type)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return core_schema.no_info_plain_validator_function(cls.validated)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> dict[str, Any]:
        """Return the schema, with its definitions as those of the schema that pydantic is making."""
        generator = handler.generate_json_schema
        known: dict[str, str] = {}

        def translated(part: Any) -> Any:
            if isinstance(part, list):
                return [translated(each) for each in part]
            if not isinstance(part, dict):
                return part
            made = {key: translated(each) for key, each in part.items() if key not in DEFINITIONS}
            if isinstance(part.get("$ref"), str):
                made["$ref"] = reference(part["$ref"])
            return made

        def reference(pointer: str) -> str:
            if pointer not in known:
                name = pointer.rpartition("/")[2].lstrip("#") or cls.__name__
                key, made = generator.get_cache_defs_ref_schema(f"{name}:{id(cls)}{pointer}")
                known[pointer] = made["$ref"]
                generator.definitions[key] = translated(target(cls.schema, pointer))
            return known[pointer]

        described = translated(cls.schema)
        while "$ref" in described:  # pydantic would add the definitions to the definition itself
            described = dict(generator.get_schema_from_definitions(described["$ref"]))
        return dict(described)


def annotation_of(field: Field) -> Any:
    """Return the type that DSPy gets for a field.

    Types with a JSON Schema that are more than a text, a number or a choice are described by it.
    """
    if not field.schema:
        return _as_native(field.type)
    if _is_simple(field.type):
        return bare_type(field.type)
    schema = msgspec.json.decode(field.schema)
    return type(_shown(field.type), (Described,), {"schema": schema, "type": field.type})


def constraints_of(field: Field) -> str:
    """Return the constraints on a field's values as DSPy writes them in prompts, if its annotation has none."""
    _, constraints = unconstrained(target_of(field.type))
    return ", ".join(f"{_WORDS[each.keyword]}: {each.bound}" for each in constraints) if _is_simple(field.type) else ""


def _is_simple(kind: Any) -> bool:
    base = bare_type(kind)
    return base in (str, Any, *SCALARS) or is_literal(base)


# DSPy's words, and our own for what it has no words for.
_WORDS = {
    "minimum": "greater than or equal to",
    "maximum": "less than or equal to",
    "exclusiveMinimum": "greater than",
    "exclusiveMaximum": "less than",
    "multipleOf": "a multiple of the given number",
    "minLength": "minimum length",
    "maxLength": "maximum length",
    "pattern": "matches the regular expression",
    "format": "has the format",
}


def _as_native(kind: Any) -> Any:
    """Return a type with DSPy's types in place of those that stand for them."""
    if kind in _NATIVE:
        return _NATIVE[kind]
    if is_kind(kind, Code):
        return dspy.Code[kind.language]
    if get_origin(kind) in (list, dict):
        return GenericAlias(get_origin(kind), tuple(map(_as_native, get_args(kind))))
    if is_union(kind):
        return _union[tuple(map(_as_native, get_args(kind)))]
    return kind


_NATIVE = {
    Image: dspy.Image,
    Audio: dspy.Audio,
    File: dspy.File,
    History: dspy.History,
    Reasoning: dspy.Reasoning,
    Code: dspy.Code,
}
_union: Any = Union


def _shown(kind: Any) -> str:
    """Return the name of a type as DSPy writes it in prompts."""
    kind = unconstrained(kind)[0]
    origin, parts = get_origin(kind), get_args(kind)
    if is_kind(kind, Items) or origin is None or is_literal(kind):
        return str(get_annotation_name(kind))
    outer = "Union" if is_union(kind) else origin.__name__
    name = f"{outer}[{', '.join(map(_shown, parts))}]"
    return name if len(name) <= _LONGEST_NAME else outer
