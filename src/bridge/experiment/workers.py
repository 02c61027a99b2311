"""The workers of an experiment: a pool on this machine, or on a Ray cluster, with its models and its program."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bridge.experiment.document import Document, DocumentError
from bridge.pool.pool import Pool

if TYPE_CHECKING:
    from bridge.host.client import Client

PROGRAM = "program"  # its id in the workers
ROWS_PER_WORKER = 16  # that it works on at the same time, unless the user says how many there are
DEFAULT_THREADS = 64  # of a worker
SETUP_TIMEOUT = 120.0  # seconds


def prepare(workers: Client | Pool, document: Document) -> None:
    """Configure the models of an experiment and create its program. Raises the errors of the commands."""
    for model in document.models:
        workers.call("configure_lm", model, timeout=SETUP_TIMEOUT)
    is_document = "document" in document.program
    create, name = ("import_program", "program_id") if is_document else ("create_program", "id")
    workers.call(create, {**document.program, name: PROGRAM}, timeout=SETUP_TIMEOUT)


@contextlib.contextmanager
def pool_of(document: Document, workers: int | None, ray: str | None, concurrency: int | None) -> Iterator[Pool]:
    """Yield a pool that has the program of an experiment. Raises the errors of `Pool` and of the commands.

    workers: how many, on each node of a cluster; None: as many as there are cores. ray: the address of a Ray cluster;
    "" is the one of the environment, or a new one; None: this machine. concurrency: rows at the same time, if the user
    has said it.
    """
    flags = list(document.flags)
    if concurrency is not None and concurrency > DEFAULT_THREADS and "--threads" not in flags:
        flags += ["--threads", str(concurrency)]
    options: dict[str, Any] = {"flags": flags, "format": "json", "name": "map", "timeout": SETUP_TIMEOUT}
    with Pool(workers, **options) if ray is None else _ray_pool(workers, ray, options) as pool:
        prepare(pool, document)
        yield pool


def count_of(pool: Pool) -> int:
    """Return how many workers a pool has, on all nodes of a cluster together."""
    ready: int = pool.status()["workers"].get("ready", 1)
    return ready


def _ray_pool(workers: int | None, address: str, options: dict[str, Any]) -> Pool:
    try:
        from bridge.ray.pool import RayPool
    except ImportError as error:
        raise DocumentError(f"--ray: {error}") from None
    try:
        return RayPool(workers, address=address or None, **options)
    except ValueError as error:
        raise DocumentError(f"--ray: {error}") from None
