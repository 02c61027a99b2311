"""What a session holds of DSPy: its programs and its language model's settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from bridge import errors
from bridge._dispatch import timestamp
from bridge.adapters.dspy.messages import LMSettings
from bridge.codec import Format

if TYPE_CHECKING:
    from bridge.adapters.dspy.signatures import Signature


class Program:
    """A program by its definition; the DSPy module for it is made by runtime.py.

    definition: the signature's own bytes, as they came, so that it goes back unchanged.
    """

    def __init__(
        self,
        program_id: str,
        signature: Signature,
        definition: bytes,
        format: Format,
        program_type: str,
        model: str | None,
    ) -> None:
        self.id = program_id
        self.signature = signature
        self.definition = definition
        self.format = format
        self.program_type = program_type
        self.model = model
        self.created_at = timestamp()
        self.execution_count = 0
        self.last_executed: str | None = None

    @classmethod
    def build(
        cls,
        program_id: str,
        definition: msgspec.Raw,
        format: Format,
        program_type: str,
        model: str | None,
    ) -> Program:
        """A program that is known to run. Raises InvalidArgs where its definition is wrong."""
        from bridge.adapters.dspy import runtime
        from bridge.adapters.dspy.signatures import Signature

        signature = Signature.parse(definition, format)
        runtime.module(signature, program_type)
        return cls(program_id, signature, bytes(definition), format, program_type, model)

    def executed(self) -> None:
        """Count a run."""
        self.execution_count += 1
        self.last_executed = timestamp()

    def info(self, format: Format) -> dict[str, Any]:
        """What listings say of it, for a reply in `format`."""
        return {
            "program_id": self.id,
            "signature": self._definition_for(format),
            "program_type": self.program_type,
            "created_at": self.created_at,
            "execution_count": self.execution_count,
            "last_executed": self.last_executed,
        }

    def _definition_for(self, format: Format) -> Any:
        raw = msgspec.Raw(self.definition)
        return raw if format is self.format else self.format.decode_args(raw, Any)


class State:
    """lm: None where the session has none of its own."""

    def __init__(self) -> None:
        self.programs: dict[str, Program] = {}
        self.lm: LMSettings | None = None

    def __len__(self) -> int:
        return len(self.programs)

    def find(self, program_id: str | None) -> Program:
        """The program of that id. Raises InvalidArgs (None), ProgramNotFound."""
        if program_id is None:
            raise errors.InvalidArgs("Program ID is required", path="args.program_id")
        program = self.programs.get(program_id)
        if program is None:
            raise errors.ProgramNotFound(f"Program not found: {program_id}", program_id=program_id)
        return program
