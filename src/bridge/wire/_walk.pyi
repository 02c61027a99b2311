from collections.abc import Callable
from typing import Any

LONG_BINARY: int
OTHER_TYPE: int
RESERVED: int
NON_FINITE: int
TOO_LARGE: int
BUFFER: str
TENSOR: str

class InvalidReference(ValueError):
    path: list[Any]
    def __init__(self, message: str) -> None: ...

class Placeholder:
    tensor: Any
    def __init__(self, tensor: Any) -> None: ...

def survey(value: Any, limit: int = 0x7FFFFFFFFFFFFFFF, levels: int = 0, longest: int = 0x7FFFFFFFFFFFFFFF) -> int: ...
def refer_to_long_binaries(value: Any, buffers: list[Any], longest: int) -> Any: ...
def substitute(value: Any, make: Callable[[str, Any], Any]) -> Any: ...
def fill(value: Any, make: Callable[[Any], Any]) -> Any: ...
