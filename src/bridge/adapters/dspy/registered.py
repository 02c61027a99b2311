"""Loads the programs that the operator registers (`--program`), when the worker starts.

One instance of a module serves all sessions: several threads may call it at once.
"""

from __future__ import annotations

import inspect
from typing import Any

import dspy
import msgspec

from bridge.adapter import AdapterFailed, load_object, reason_of
from bridge.adapters.dspy import prepared, run  # noqa: F401  # importing run sets DSPy up for the operator's modules
from bridge.adapters.dspy.declarations import declaration_of, forward_of
from bridge.adapters.dspy.own_module import OwnModule
from bridge.adapters.dspy.state import Definition, RegisteredProgram
from bridge.options import check
from bridge.records import EncodedValue


def load_programs(given: tuple[str, ...]) -> dict[str, RegisteredProgram]:
    """Return the programs that are given as NAME=MODULE:ATTRIBUTE. Raises AdapterFailed."""
    programs: dict[str, RegisteredProgram] = {}
    for text in given:
        try:
            check("programs", (text,))
        except ValueError as error:
            raise AdapterFailed(str(error)) from None
        program_id, _, reference = text.partition("=")
        if program_id in programs:
            raise AdapterFailed(f"program {program_id!r}: registered twice")
        programs[program_id] = _registered(program_id, reference)
    return programs


def _registered(program_id: str, reference: str) -> RegisteredProgram:
    what = f"program {program_id!r}"
    module = _module(what, load_object(what, reference))
    try:
        declaration = declaration_of(module)
        own = OwnModule(program_id, module, declaration)
    except Exception as error:
        raise AdapterFailed(f"{what}: its inputs cannot be read: {reason_of(error)}") from error
    signature = EncodedValue(msgspec.json.encode(declaration.as_signature()), "json")
    program = RegisteredProgram(program_id, Definition(signature, "module"), declaration.name)
    prepared.register(program, own)
    return program


def _module(what: str, found: Any) -> dspy.Module:
    """Return a module, or the one that its class or a function returns. Raises AdapterFailed."""
    if not isinstance(found, dspy.Module) and callable(found):
        try:
            found = found()
        except BaseException as error:  # code of the operator may raise anything
            raise AdapterFailed(f"{what} cannot be created: {reason_of(error)}") from error
    if not isinstance(found, dspy.Module):
        raise AdapterFailed(
            f"{what}: not a dspy.Module, its class, or a function that returns one: {type(found).__name__!r}"
        )
    forward, kind = forward_of(found), type(found).__name__
    if forward is None:
        raise AdapterFailed(f"{what}: {kind} has no method `forward`")
    if inspect.iscoroutinefunction(inspect.unwrap(forward)):
        raise AdapterFailed(f"{what}: the forward of {kind} is async, which nothing awaits")
    return found
