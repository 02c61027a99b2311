"""What a session holds of DSPy: its programs and its language model's settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from bridge import errors
from bridge._dispatch import timestamp
from bridge.adapters.dspy.tools import Tool
from bridge.codec import JSON, Format

if TYPE_CHECKING:
    from bridge.adapters.dspy.models import Model


class Program:
    """A program by its definition; the DSPy module for it is made by runtime.py.

    definition: the signature's own bytes, as they came, so that it goes back unchanged.
    """

    def __init__(
        self,
        program_id: str,
        definition: msgspec.Raw,
        format: Format,
        program_type: str,
        *,
        model: str | None = None,
        tools: tuple[Tool, ...] = (),
        max_iters: int | None = None,
    ) -> None:
        """Raises InvalidArgs where the definition is wrong: what is made is known to run."""
        from bridge.adapters.dspy import runtime
        from bridge.adapters.dspy.signatures import Signature

        self.id = program_id
        self.definition = bytes(definition)
        self.format = format
        self.program_type = program_type
        self.model = model
        self.own_model: Model | None = None
        self.signature = Signature.parse(definition, format)
        self.runner = runtime.runner(self.signature, program_type, tools, max_iters)
        self.created_at = timestamp()
        self.execution_count = 0
        self.last_executed: str | None = None

    def is_defined_by(self, definition: msgspec.Raw, format: Format) -> bool:
        """Whether that is the same signature, though its bytes may differ: hosts write what they
        got in an order of their own."""
        from bridge.adapters.dspy.signatures import Signature

        same_bytes = format is self.format and bytes(definition) == self.definition
        return same_bytes or Signature.parse(definition, format) == self.signature

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
        """The definition itself, unless that would make the reply unreadable."""
        raw = msgspec.Raw(self.definition)
        if format is self.format and (format is not JSON or _is_utf8(self.definition)):
            return raw
        return self.format.decode_args(raw, Any, undecodable="replace")


class State:
    """model: None where the session has none of its own. tools: the host's, by name."""

    def __init__(self) -> None:
        self.programs: dict[str, Program] = {}
        self.model: Model | None = None
        self.tools: dict[str, Tool] = {}

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


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
