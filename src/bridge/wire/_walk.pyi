from collections.abc import Callable
from typing import Any

APART: int
LONG: int
OTHER: int
FORGED: int
NOT_FINITE: int
TOO_LARGE: int
BUFFER: str
TENSOR: str

class Misplaced(ValueError):
    path: list[Any]
    def __init__(self, message: str) -> None: ...

class Found:
    tensor: Any
    def __init__(self, tensor: Any) -> None: ...

def survey(value: Any, limit: int = 0x7FFFFFFFFFFFFFFF, levels: int = 0) -> int: ...
def set_apart(value: Any, wrap: Callable[[Any], Any]) -> Any: ...
def resolve(value: Any, make: Callable[[str, Any], Any]) -> Any: ...
def opened(value: Any, open: Callable[[Any], Any]) -> Any: ...
