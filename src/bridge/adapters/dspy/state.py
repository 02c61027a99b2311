"""What a session holds of DSPy: its programs and its language model's settings."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

from bridge import errors
from bridge._dispatch import timestamp
from bridge.adapters.dspy.messages import LMSettings, StoredSettings
from bridge.adapters.dspy.tools import Tool
from bridge.codec import Format
from bridge.records import Kept, Records

if TYPE_CHECKING:
    from bridge.adapters.dspy.models import Model
    from bridge.adapters.dspy.runtime import Runner
    from bridge.adapters.dspy.signatures import Signature


class Definition(msgspec.Struct, frozen=True):
    """What a program is made from, and made from again when its session comes back.

    signature: as it came, so that it goes back unchanged.
    """

    signature: Kept
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
    """A program by its definition; the DSPy module for it is made by runtime.py, when it is
    first needed."""

    def __init__(self, program_id: str, definition: Definition) -> None:
        self.id = program_id
        self.definition = definition
        self.own_model: Model | None = None
        self.execution_count = 0
        self.last_executed: str | None = None

    @cached_property
    def signature(self) -> Signature:
        """Raises InvalidArgs where the definition is wrong."""
        from bridge.adapters.dspy.signatures import Signature

        kept = self.definition.signature
        return Signature.parse(msgspec.Raw(kept.data), kept.own_format)

    @cached_property
    def runner(self) -> Runner:
        """Raises InvalidArgs where the definition is wrong."""
        from bridge.adapters.dspy import runtime

        made = self.definition
        return runtime.runner(self.signature, made.program_type, made.tools, made.max_iters)

    def is_defined_by(self, signature: msgspec.Raw, format: Format) -> bool:
        """Whether that is the same signature, though its bytes may differ: hosts write what they
        got in an order of their own."""
        from bridge.adapters.dspy.signatures import Signature

        same = Kept(bytes(signature), format.name) == self.definition.signature
        return same or Signature.parse(signature, format) == self.signature

    def executed(self) -> None:
        """Count a run."""
        self.execution_count += 1
        self.last_executed = timestamp()

    def info(self, format: Format) -> dict[str, Any]:
        """What listings say of it, for a reply in `format`."""
        return {
            "program_id": self.id,
            "signature": self.definition.signature.in_format(format),
            "program_type": self.definition.program_type,
            "created_at": self.definition.created_at,
            "execution_count": self.execution_count,
            "last_executed": self.last_executed,
        }


class State:
    """programs, tools (the host's): by name. model: None where the session has none of its own.

    All of it stands in the session's records, too; how often a program ran does not.
    """

    def __init__(self, records: Records) -> None:
        self._records = records
        self.programs = {
            name: Program(name, _definition(value)) for name, value in records.of("program").items()
        }
        tools = records.of("tools").get("")
        self.tools: dict[str, Tool] = {} if tools is None else _tools(tools)
        self._model: Model | None = None

    def add(self, program: Program) -> None:
        """Raises QuotaExceeded."""
        encoded = msgspec.msgpack.encode(program.definition)
        self._records.put("program", program.id, encoded)
        self.programs[program.id] = program

    def drop(self, program: Program) -> None:
        self._records.remove("program", program.id)
        del self.programs[program.id]

    def set_tools(self, tools: dict[str, Tool]) -> None:
        """Raises QuotaExceeded."""
        self._records.put("tools", "", msgspec.msgpack.encode(tools))
        self.tools = tools

    @property
    def model(self) -> Model | None:
        """Raises LMNotConfigured where it was stored, and its key with good reason was not."""
        stored = self._records.of("model").get("")
        if self._model is None and stored is not None:
            from bridge.adapters.dspy.models import Model

            kept = _settings(stored)
            whole: LMSettings | None = self._records.private("model", "")
            self._model = Model(whole or kept.settings(), kept.cache)
        return self._model

    def set_model(self, model: Model) -> None:
        """Raises QuotaExceeded."""
        stored = StoredSettings.of(model.settings, model.cache)
        self._records.put("model", "", msgspec.msgpack.encode(stored), model.settings)
        self._model = model

    def find(self, program_id: str | None) -> Program:
        """The program of that id. Raises InvalidArgs (None), ProgramNotFound."""
        if program_id is None:
            raise errors.InvalidArgs("Program ID is required", path="args.program_id")
        program = self.programs.get(program_id)
        if program is None:
            raise errors.ProgramNotFound(f"Program not found: {program_id}", program_id=program_id)
        return program
