"""What a template is started with."""

from __future__ import annotations

from dataclasses import dataclass

from bridge.options import Options


@dataclass(frozen=True)
class Settings:
    """Holds what the command line says.

    adapter: its name on the command line. options: of the workers. path: of the socket. drain: seconds for which
    workers may go on after SIGTERM. preload: modules to import before the first worker is forked. replace: take the
    place of another template at `path` once this one is ready. control: the format of the frames on stdin and stdout;
    None: they are not used.
    """

    adapter: str
    options: Options
    path: str
    max_workers: int
    drain: float
    preload: tuple[str, ...]
    replace: bool
    control: str | None
