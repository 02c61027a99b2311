"""Prices of requests to language models."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from dspy.clients.costs import estimate_cost
from dspy.clients.model_metadata import model_info


def cost_usd(request: Any, response: Any) -> float | None:
    """Return the price in US dollars by DSPy's price list; None if the list does not have all of it."""
    provider, _, model = request.model.partition("/")
    if not _is_listed(provider, model, response.model):
        return None
    cost: float | None
    cost, _ = estimate_cost(response, provider=provider, requested_model=model, request=request)
    return cost


@lru_cache(maxsize=1024)
def _is_listed(provider: str, *models: str) -> bool:
    # Searching the whole list, as for a model that it lacks, takes a millisecond.
    return any(model_info(provider, model) for model in models)


def load_prices() -> None:
    """Load DSPy's price list, which takes a tenth of a second and 12 MiB at the first request otherwise."""
    model_info("", "")
