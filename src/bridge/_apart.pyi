from collections.abc import Callable
from typing import Any

APART: int
LONG: int
OTHER: int
FORGED: int
BUFFER: str
TENSOR: str

class Misplaced(ValueError):
    path: list[Any]
    def __init__(self, message: str) -> None: ...

class Found:
    tensor: Any
    def __init__(self, tensor: Any) -> None: ...

def apart_in(value: Any) -> int: ...
def resolve(value: Any, make: Callable[[str, Any], Any]) -> Any: ...
def opened(value: Any, open: Callable[[Any], Any]) -> Any: ...
