"""What prompts call the fields of a DSPy signature.

DSPy calls the host's fields by names that cannot be taken for its own; models see the host's.
"""

from __future__ import annotations

from typing import Any

LABEL = "label"  # the key under which a field of DSPy's keeps it


class Labelled:
    """A signature whose fields go by their labels, for what DSPy makes text of."""

    def __init__(self, signature: Any) -> None:
        self.instructions = signature.instructions
        self.input_fields = labelled(signature.input_fields)
        self.output_fields = labelled(signature.output_fields)


def label_of(name: str, field: Any) -> str:
    """Return what prompts call a field; those of DSPy's own go by their names."""
    label: str = field.json_schema_extra.get(LABEL, name)
    return label


def labelled(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields by their labels."""
    return {label_of(name, field): field for name, field in fields.items()}
