"""Templates that tests start."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from serving import Served


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Return a function that starts templates, which end after the test with all their workers."""
    served: list[Served] = []

    def start(*flags: str, **options: object) -> Served:
        served.append(Served(*flags, **options))
        return served[-1]

    yield start
    for each in served:
        each.finish()
