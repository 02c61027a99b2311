from collections.abc import Callable
from typing import Any, NoReturn, final

from bridge._framing import Frame, Outbox
from bridge.errors import BridgeError

interface_1: Any

_Deliver = Callable[[Outbox], Callable[[], None] | None]

@final
class Endpoint:
    ended: bool
    @property
    def pending(self) -> dict[int, bool]: ...
    def __init__(
        self,
        answer: Callable[[Frame, Outbox, _Deliver], bool],
        refuse: Callable[[BridgeError, Outbox, Frame | None], None],
        arrival: Any,
        cancel: Callable[[int], object],
        max_frame: int,
    ) -> None: ...

@final
class Call:
    @property
    def number(self) -> int: ...
    def __init__(self, *args: Any, **kwargs: Any) -> NoReturn: ...
    def __call__(self, outbox: Outbox) -> Callable[[], None] | None: ...
    def deliver_all(self) -> None: ...
