"""The settings of requests to a model that configure_lm and the options of a run have in common, as data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from bridge import errors

MOST_COMPLETIONS = 128
MOST_STOPS = 64
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]

# The ranges of numbers. A provider may allow less.
RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "max_tokens": (1, 2**31 - 1),
    "top_p": (0, 1),
    "top_k": (1, 2**31 - 1),
    "seed": (-(2**63), 2**63 - 1),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "n": (1, MOST_COMPLETIONS),
}


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a request to a model. None: the provider's default.

    stop: texts that end the reply. n: how many completions are asked for. reasoning_effort: how much the model thinks
    before it answers. response_format: `{"type": "json_object"}`, or `{"type": "json_schema", "json_schema": {"name",
    "schema", "strict"}}`. service_tier: the provider's name of it. user: the end user, for the provider.
    """

    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    n: int | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    response_format: dict[str, Any] | None = None
    service_tier: Text | None = None
    user: Text | None = None

    def given(self) -> dict[str, Any]:
        """Return the settings that are set, by name."""
        settings = {name: getattr(self, name) for name in Generation.__struct_fields__}
        return {name: value for name, value in settings.items() if value is not None}

    def check(self, path: str) -> None:
        """Raise InvalidArgs for a setting that no provider accepts. path: of the settings in the args."""
        check_ranges(self.given(), RANGES, path)
        stops = [self.stop] if isinstance(self.stop, str) else self.stop
        if stops is not None and not (0 < len(stops) <= MOST_STOPS and all(stops)):
            raise _expected(f"{path}.stop", f"1 to {MOST_STOPS} texts that are not empty")
        if self.response_format is not None:
            _check_format(self.response_format, f"{path}.response_format")


def check_ranges(settings: Mapping[str, Any], ranges: Mapping[str, tuple[float, float]], path: str) -> None:
    """Raise InvalidArgs for a number outside its range, and for NaN. path: of `settings` in the args."""
    for name, (least, most) in ranges.items():
        value = settings.get(name)
        if value is not None and not least <= value <= most:
            raise _expected(f"{path}.{name}", f"a number from {least} to {most}")


def _check_format(value: Mapping[str, Any], path: str) -> None:
    kind = value.get("type")
    if kind not in ("json_object", "json_schema"):
        raise _expected(f"{path}.type", '"json_object" or "json_schema"')
    allowed = {"type"} if kind == "json_object" else {"type", "json_schema"}
    unknown = [name for name in value if name not in allowed]
    if unknown:
        raise errors.InvalidArgs(f"{path}.{unknown[0]}: unknown key", path=f"{path}.{unknown[0]}")
    if kind == "json_object":
        return
    declared = value.get("json_schema")
    if not isinstance(declared, dict) or not isinstance(declared.get("schema"), dict):
        raise _expected(f"{path}.json_schema", 'a map with "name" and "schema", which is a JSON Schema')


def _expected(path: str, expected: str) -> errors.InvalidArgs:
    return errors.InvalidArgs(f"{path}: expected {expected}", path=path, expected=expected)
