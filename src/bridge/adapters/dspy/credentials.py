"""Keys and other identities of the worker's machine, and the addresses that may receive them."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

from bridge import errors
from bridge.adapters.dspy.providers import ADDRESSES, GEMINI, GEMINI_KEYS, LOCAL
from bridge.adapters.dspy.settings import LMSettings, header_value
from bridge.security.destinations import Address, allows

# Providers whose requests carry, or are signed with, an identity of the machine besides the API key.
WITH_IDENTITY = (
    *("aws_", "azure", "bedrock", "chatgpt", "databricks", "gdc", "gigachat", "github_copilot"),
    "oci",
    *("microsoft_", "s3_vectors", "sagemaker", "sap", "snowflake", "vertex_ai", "watsonx"),
)
_KEY = re.compile(r"(?:KEY|TOKEN)$")


def check_destination(settings: LMSettings, allowed: tuple[Address, ...]) -> None:
    """Raise InvalidArgs if requests with these settings are not allowed.

    That is so for forbidden addresses, and if a key of the environment would be sent to an address that the host
    chose. allowed: further addresses that may receive keys of the operator.
    """
    provider = settings.provider
    if provider in LOCAL:
        return
    if settings.api_key is None:
        _check_environment_key(provider)
    if settings.api_base is None:
        return
    address = Address.parse(settings.api_base)
    if address.is_forbidden:
        raise _refused("requests never go to link-local and metadata addresses")
    if allows([*addresses_of(provider), *allowed], address):
        return
    if not settings.has_own_key:
        raise _refused(
            "the worker's own key goes to its provider only: send an api_key for this address (any"
            " text for a server that wants none), or have the operator allow it with --api-base"
        )
    if provider.startswith(WITH_IDENTITY):
        raise _refused(
            f"requests to {provider} carry an identity of the worker's machine: only the operator"
            " can allow an address for them, with --api-base"
        )
    if address.leads_to_forbidden():
        raise _refused("this name leads to a link-local or metadata address")


def environment_key(variable: str, shared: dict[str, Any]) -> str:
    """Return the key in the environment variable that a host has named. shared: has `key_variables`, the allowed ones.

    Raises NotAllowed for any other variable, and InvalidArgs if there is no key in it, or one that cannot be sent.
    """
    if variable not in shared.get("key_variables", ()):
        raise errors.NotAllowed(
            f"args.api_key: the operator has not allowed keys from {errors.shown(variable)} (--api-key-env)",
            path="args.api_key",
        )
    key = _checked_key(variable)
    if not key:
        raise errors.InvalidArgs(
            f"args.api_key: the worker's environment has no {variable}", path="args.api_key", variable=variable
        )
    return key


def addresses_of(provider: str) -> Iterator[Address]:
    """Yield the addresses of a provider: its own API, and those that the operator set in the environment."""
    for base in (ADDRESSES.get(provider), *_environment_addresses(provider)):
        with contextlib.suppress(ValueError):
            if base:
                yield Address.parse(base)


def _refused(why: str) -> errors.InvalidArgs:
    return errors.InvalidArgs(f"args.api_base: {why}", path="args.api_base")


def strip_environment_keys() -> None:
    """Strip white space around the keys in the environment.

    They often end with the line break of a file, and the libraries send keys as they are.
    """
    for name, value in list(os.environ.items()):
        if _KEY.search(name) and value != value.strip():
            os.environ[name] = value.strip()


def openai_headers() -> Iterator[tuple[str, str]]:
    """Yield the headers that OpenAI's client takes from the environment and sends to any address."""
    for variable in ("OPENAI_ORGANIZATION", "OPENAI_ORG_ID"):
        yield "OpenAI-Organization", os.environ.get(variable, "").strip()
    yield "OpenAI-Project", os.environ.get("OPENAI_PROJECT_ID", "").strip()
    for line in os.environ.get("OPENAI_CUSTOM_HEADERS", "").splitlines():
        name, _, value = line.partition(":")
        yield name.strip(), value.strip()


def _check_environment_key(provider: str) -> None:
    """Raise InvalidArgs, without the key in the message, for a key of the environment that cannot be sent."""
    for name in _environment_keys(provider):
        _checked_key(name)


def _checked_key(variable: str) -> str:
    try:
        return header_value(os.environ.get(variable, ""))
    except ValueError as error:
        raise errors.InvalidArgs(
            f"the key in the worker's environment variable {variable} cannot be sent: {error}",
            path="args.api_key",
            variable=variable,
        ) from None


def _environment_keys(provider: str) -> list[str]:
    """Return the names of the environment variables that hold keys of the provider."""
    prefix = f"{provider.upper().replace('-', '_')}_"
    names = [name for name in os.environ if name.startswith(prefix) and _KEY.search(name)]
    return [*names, *(GEMINI_KEYS if provider == GEMINI else ())]


def _environment_addresses(provider: str) -> list[str]:
    prefix = provider.upper().replace("-", "_")
    found = (os.environ.get(f"{prefix}_{end}") for end in ("API_BASE", "BASE_URL", "BASE"))
    return [base for base in found if base]
