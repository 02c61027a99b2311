"""What a session holds of DSPy: its programs and its language model's settings."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

from bridge import errors
from bridge._dispatch import timestamp
from bridge.adapters.dspy.args import StoredSettings
from bridge.adapters.dspy.tools import Tool
from bridge.records import EncodedValue, Records
from bridge.wire.codec import Format

if TYPE_CHECKING:
    from bridge.adapters.dspy.models import Model
    from bridge.adapters.dspy.run import Runner
    from bridge.adapters.dspy.signatures import Signature


PROGRAM_TYPES = ("predict", "chain_of_thought", "react")


class Definition(msgspec.Struct, frozen=True):
    """What a program is made from, and made from again when its session comes back.

    signature: as it came, so that it goes back unchanged.
    """

    signature: EncodedValue
    program_type: str
    model: str | None = None
    tools: tuple[Tool, ...] = ()
    max_iters: int | None = None
    created_at: str = msgspec.field(default_factory=timestamp)


# Made here, where one thread at a time comes: see codec.Format.
_definition = msgspec.msgpack.Decoder(Definition).decode
_tools = msgspec.msgpack.Decoder(dict[str, Tool]).decode
_settings = msgspec.msgpack.Decoder(StoredSettings).decode


class Program:
    """A program by its definition; the DSPy module for it is made by run.py, when it is
    first needed."""

    def __init__(self, program_id: str, definition: Definition) -> None:
        self.id = program_id
        self.definition = definition
        self.own_model: Model | None = None
        self.execution_count = 0
        self.last_executed: str | None = None

    @cached_property
    def encoded(self) -> bytes:
        """The definition as the session's records hold it."""
        return msgspec.msgpack.encode(self.definition)

    @cached_property
    def signature(self) -> Signature:
        """Raises InvalidArgs where the definition is wrong."""
        return self._parsed("args.signature")

    def _parsed(self, path: str) -> Signature:
        from bridge.adapters.dspy.signatures import Signature

        kept = self.definition.signature
        return Signature.parse(msgspec.Raw(kept.data), kept.own_format, path)

    def check(self, path: str = "args", name: str = "signature") -> None:
        """Raise InvalidArgs where the definition is wrong: it came at `path`, its signature as
        `name`. Does not wait for DSPy to be loaded."""
        made = self.definition
        if made.program_type not in PROGRAM_TYPES:
            raise errors.InvalidArgs(
                f"{path}.program_type: unknown program type {made.program_type[:100]!r};"
                f" known: {', '.join(PROGRAM_TYPES)}",
                path=f"{path}.program_type",
                expected=" | ".join(PROGRAM_TYPES),
            )
        if made.program_type == "react" and not made.tools:
            raise errors.InvalidArgs(
                "args.tools: react needs tools, and the session has none: send register_tools"
                " first, with the same session_id",
                path="args.tools",
            )
        self.signature = self._parsed(f"{path}.{name}")

    @cached_property
    def runner(self) -> Runner:
        """The DSPy module of the program, which `check` found to be right."""
        from bridge.adapters.dspy import run

        made = self.definition
        return run.runner(self.signature, made.program_type, made.tools, made.max_iters)

    def is_defined_by(self, signature: msgspec.Raw, format: Format, path: str = "args.signature") -> bool:
        """Whether that is the same signature, though its bytes may differ: hosts write what they
        got in an order of their own. Raises InvalidArgs for none, with its place below `path`."""
        from bridge.adapters.dspy.signatures import Signature

        same = EncodedValue(bytes(signature), format.name) == self.definition.signature
        return same or Signature.parse(signature, format, path) == self.signature

    def has_definition(self, other: Definition) -> bool:
        """Whether a program made from `other` would be the same one. Raises InvalidArgs."""
        from bridge.adapters.dspy.run import DEFAULT_ITERATIONS

        mine = self.definition
        if (mine.program_type, mine.model) != (other.program_type, other.model):
            return False
        if mine.program_type == "react":
            iterations = [each.max_iters or DEFAULT_ITERATIONS for each in (mine, other)]
            tools = [{tool.name: tool for tool in each.tools} for each in (mine, other)]
            if iterations[0] != iterations[1] or tools[0] != tools[1]:
                return False
        signature = other.signature
        return self.is_defined_by(msgspec.Raw(signature.data), signature.own_format)

    def executed(self) -> None:
        """Count a run."""
        self.execution_count += 1
        self.last_executed = timestamp()

    def info(self, format: Format) -> dict[str, Any]:
        """Return what listings say of it, for a reply in `format`."""
        return {
            "program_id": self.id,
            "signature": self.definition.signature.in_format(format),
            "program_type": self.definition.program_type,
            "created_at": self.definition.created_at,
            "execution_count": self.execution_count,
            "last_executed": self.last_executed,
        }


class State:
    """The programs, tools and language model of a session, as its records hold them.

    How often a program ran is not recorded. Programs are decoded when they are first needed.
    """

    def __init__(self, records: Records) -> None:
        self._records = records
        self._programs: dict[str, Program] = {}
        self._tools: tuple[bytes | None, dict[str, Tool]] = (None, {})
        self._model: Model | None = None

    def get(self, program_id: str) -> Program | None:
        """Return the program of that id, if there is one."""
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
        """The ids of all programs, oldest first."""
        return list(self._records.of("program"))

    @property
    def programs(self) -> dict[str, Program]:
        """All programs by id, oldest first."""
        found = ((name, self.get(name)) for name in self.program_ids)
        return {name: program for name, program in found if program is not None}

    def check(self, program: Program) -> None:
        """Raise QuotaExceeded if the session has no room for `program`."""
        self._records.check("program", {program.id: program.encoded})

    def add(self, program: Program) -> None:
        """Add `program`, in place of one of the same id. Raises QuotaExceeded."""
        self._records.put("program", program.id, program.encoded)
        self._programs[program.id] = program

    def remove(self, program: Program) -> None:
        """Remove `program`."""
        self._records.remove("program", program.id)
        self._programs.pop(program.id, None)

    @property
    def tools(self) -> dict[str, Tool]:
        """The host's tools by name."""
        encoded = self._records.of("tools").get("")
        if self._tools[0] is not encoded:
            self._tools = (encoded, {} if encoded is None else _tools(encoded))
        return self._tools[1]

    def set_tools(self, tools: dict[str, Tool]) -> None:
        """Replace all tools. Raises QuotaExceeded, and InvalidArgs for a schema that cannot be
        stored."""
        try:
            encoded = msgspec.msgpack.encode(tools)
        except (OverflowError, TypeError, ValueError) as error:
            raise errors.InvalidArgs(f"args.tools: {error}", path="args.tools") from None
        self._records.put("tools", "", encoded)

    def model(self, shared: dict[str, Any]) -> Model | None:
        """Return the session's model, or that of all sessions. Raises LMNotConfigured where it
        was stored, and its key with good reason was not, InvalidArgs where it may not be used
        any more."""
        return self._own_model(shared) or shared.get("model")

    def _own_model(self, shared: dict[str, Any]) -> Model | None:
        stored = self._records.of("model").get("")
        if self._model is None and stored is not None:
            from bridge.adapters.dspy.models import Model

            kept = _settings(stored)
            whole: Model | None = self._records.private("model", "")
            allowed = shared.get("api_bases", ())
            self._model = whole or Model(kept.settings(), kept.cache, allowed=allowed)
        return self._model

    def set_model(self, model: Model) -> None:
        """Raises QuotaExceeded."""
        stored = StoredSettings.of(model.settings, model.cache)
        self._records.put("model", "", msgspec.msgpack.encode(stored), model)
        self._model = model
