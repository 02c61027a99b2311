"""The state that a session stores for DSPy: programs, the host's tools, and its language model. Data only."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

from bridge import errors
from bridge._dispatch import timestamp
from bridge.adapters.dspy.credentials import environment_key
from bridge.adapters.dspy.format_choice import FormatChoice
from bridge.adapters.dspy.settings import Model, StoredSettings
from bridge.adapters.dspy.tools import Tool
from bridge.records import EncodedValue, Records
from bridge.wire.codec import Format

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.adapters.dspy.retrieval.stored import Retrieval
    from bridge.adapters.dspy.signatures import Signature


class Learned(msgspec.Struct, frozen=True):
    """What one predictor of a program has learned: what optimizers change.

    instructions: None: those of the signature. demos: examples for prompts, each a map of values by the fields' labels.
    """

    instructions: str | None = None
    demos: tuple[dict[str, Any], ...] = ()


class Definition(msgspec.Struct, frozen=True):
    """The definition of a program, from which it is created, and created again when its session is restored.

    signature: as it was sent, so that it is returned unchanged. model: that of a provider, of a program with its own
    model; models: the names of configured ones, in order. options: the further args of create_program that its type
    takes. learned: by the predictor's name in DSPy. adapter: the format of prompts and replies; None: that of the
    model.
    """

    signature: EncodedValue
    program_type: str
    model: str | None = None
    tools: tuple[Tool, ...] = ()
    max_iters: int | None = None
    created_at: str = msgspec.field(default_factory=timestamp)
    options: dict[str, Any] = {}
    learned: dict[str, Learned] = {}
    adapter: FormatChoice | None = None
    models: tuple[str, ...] = ()


# Created here, at import: decoders must not be created by several threads at once, see codec.Format.
_definition = msgspec.msgpack.Decoder(Definition).decode
_tools = msgspec.msgpack.Decoder(dict[str, Tool]).decode
_settings = msgspec.msgpack.Decoder(StoredSettings).decode


class Program:
    """A program: its definition, and how often it ran. `prepared` creates the DSPy module for it.

    is_registered: whether the operator has registered it, with a module and for all sessions.
    """

    is_registered = False

    def __init__(self, program_id: str, definition: Definition) -> None:
        self.id = program_id
        self.definition = definition
        self.execution_count = 0
        self.last_executed: str | None = None

    @cached_property
    def encoded(self) -> bytes:
        """Return the definition as the session's records hold it. Raises InvalidArgs if they cannot."""
        try:
            return msgspec.msgpack.encode(self.definition)
        except (OverflowError, TypeError, ValueError) as error:  # of a value in demos or stages
            raise errors.InvalidArgs(f"args: the program cannot be stored: {error}", path="args") from None

    @cached_property
    def signature(self) -> Signature:
        """Return the checked signature. Raises InvalidArgs if the definition is wrong."""
        return self.parse_signature("args.signature")

    def parse_signature(self, path: str) -> Signature:
        """Return the checked signature. Raises InvalidArgs. path: of the signature in the args."""
        signature = self.definition.signature
        self.signature = _parsed(msgspec.Raw(signature.data), signature.own_format, path)
        return self.signature

    def has_signature(self, signature: msgspec.Raw, format: Format, path: str = "args.signature") -> bool:
        """Return whether `signature`, at `path` of the args, is this program's. Raises InvalidArgs if it is invalid.

        Its bytes may differ: hosts may send the keys of a map in another order.
        """
        same = EncodedValue(bytes(signature), format.name) == self.definition.signature
        return same or _parsed(signature, format, path) == self.signature

    @property
    def workflow(self) -> str:
        """Return the name of the signature, for traces."""
        return self.signature.name

    def executed(self) -> None:
        """Count a run."""
        self.execution_count += 1
        self.last_executed = timestamp()

    def info(self, format: Format) -> dict[str, Any]:
        """Return the program's entry in a listing, for a reply in `format`."""
        return {
            "program_id": self.id,
            "signature": self.definition.signature.in_format(format),
            "program_type": self.definition.program_type,
            "created_at": self.definition.created_at,
            "execution_count": self.execution_count,
            "last_executed": self.last_executed,
        }


class RegisteredProgram(Program):
    """A program that the operator has registered. Its definition only describes its module."""

    is_registered = True

    def __init__(self, program_id: str, definition: Definition, workflow: str) -> None:
        super().__init__(program_id, definition)
        self._workflow = workflow

    @property
    def workflow(self) -> str:
        return self._workflow

    def info(self, format: Format) -> dict[str, Any]:
        return {**super().info(format), "registered": True}


def _parsed(signature: msgspec.Raw, format: Format, path: str) -> Signature:
    from bridge.adapters.dspy.signatures import Signature  # which the first program needs, not a worker's start

    return Signature.parse(signature, format, path)


class State:
    """The programs, tools and language models of a session, stored as its records.

    How often a program ran is not stored. Programs are decoded when they are first needed.
    """

    def __init__(self, records: Records) -> None:
        self._records = records
        self._programs: dict[str, Program] = {}
        self._tools: tuple[bytes | None, dict[str, Tool]] = (None, {})
        self._models: dict[str, tuple[bytes, Model]] = {}

    def get(self, program_id: str) -> Program | None:
        """Return the program `program_id`, or None."""
        encoded = self._records.of("program").get(program_id)
        if encoded is None:
            return None
        program = self._programs.get(program_id)
        # Another thread may have changed the records since the program was decoded.
        if program is None or program.encoded is not encoded:
            program = Program(program_id, _definition(encoded))
            program.encoded = encoded
            self._programs[program_id] = program
        return program

    @property
    def program_ids(self) -> list[str]:
        """Return the ids of all programs, oldest first."""
        return list(self._records.of("program"))

    def check(self, program: Program) -> None:
        """Raise QuotaExceeded if adding `program` would exceed the session's quota."""
        self._records.check("program", {program.id: program.encoded})

    def add(self, program: Program) -> None:
        """Add `program`, or replace the one with its id. Raises QuotaExceeded."""
        self._records.put("program", program.id, program.encoded)
        self._programs[program.id] = program

    def remove(self, program: Program) -> None:
        """Remove `program`."""
        self._records.remove("program", program.id)
        self._programs.pop(program.id, None)

    @property
    def tools(self) -> dict[str, Tool]:
        """Return the host's tools by name."""
        encoded = self._records.of("tools").get("")
        if self._tools[0] is not encoded:
            self._tools = (encoded, {} if encoded is None else _tools(encoded))
        return self._tools[1]

    def set_tools(self, tools: dict[str, Tool]) -> None:
        """Replace all tools. Raises QuotaExceeded, and InvalidArgs for a schema that cannot be stored."""
        try:
            encoded = msgspec.msgpack.encode(tools)
        except (OverflowError, TypeError, ValueError) as error:
            raise errors.InvalidArgs(f"args.tools: {error}", path="args.tools") from None
        self._records.put("tools", "", encoded)

    @cached_property
    def retrieval(self) -> Retrieval:
        """Return the indexes and embedders of the session."""
        from bridge.adapters.dspy.retrieval.stored import Retrieval  # loads numpy

        return Retrieval(self._records)

    def model(self, shared: dict[str, Any], name: str = "") -> Model | None:
        """Return the session's model of that name, or else the one for all sessions (`shared`). "": the default model.

        Raises LMNotConfigured if it was restored from a store and needs a key that the host has sent, because keys are
        not stored.
        """
        stored = self._records.of("model").get(name)
        if stored is None:
            inherited: Model | None = shared.get("models", {}).get(name)
            return inherited
        model: Model | None = self._records.private("model", name)
        if model is not None:
            return model
        known = self._models.get(name)
        if known is None or known[0] is not stored:
            settings = _settings(stored)
            key = settings.key_variable and environment_key(settings.key_variable, shared)
            known = self._models[name] = (stored, settings.restored(key))
        return known[1]

    def model_names(self, shared: dict[str, Any]) -> set[str]:
        """Return the names of the models that `model` finds, without the default one."""
        return {*self._records.of("model"), *shared.get("models", {})} - {""}

    def set_model(self, model: Model, name: str = "") -> None:
        """Set the session's model of that name. Raises QuotaExceeded."""
        self._records.put("model", name, msgspec.msgpack.encode(StoredSettings.of(model)), model)


def visible_tools(context: Context) -> dict[str, Tool]:
    """Return the session's tools, and those of the default session that have other names."""
    inherited: State | None = context.session.inherited
    return {**({} if inherited is None else inherited.tools), **context.session.state.tools}
