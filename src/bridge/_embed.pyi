from collections.abc import Callable
from typing import Any, final

from bridge._framing import Frame, Outbox
from bridge.errors import BridgeError

interface_1: Any

@final
class Door:
    @property
    def ended(self) -> bool: ...
    def __init__(
        self,
        answer: Callable[[Frame, Outbox, Callable[[Outbox], None]], bool],
        refuse: Callable[[BridgeError, Outbox], None],
        arrival: Any,
        max_frame: int,
    ) -> None: ...

@final
class Call:
    @property
    def number(self) -> int: ...
    def __call__(self, outbox: Outbox) -> None: ...
