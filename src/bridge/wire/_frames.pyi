from typing import Any, final

from typing_extensions import Buffer

from bridge._framing import Frame, Outbox
from bridge.wire.codec import Format

@final
class FrameCodec:
    @property
    def format(self) -> Format: ...
    def __init__(self, format: Format) -> None: ...
    def encoded(
        self,
        message: Any,
        value: Any,
        name: str,
        what: str,
        limit: int,
        uses_buffers: bool,
        passed: tuple[Frame, ...] | None = None,
    ) -> Outbox | None: ...

def format_of(message: Buffer) -> Format | None: ...
def codec_for(format: Format) -> FrameCodec: ...
def unknown_format(message: Buffer) -> str: ...
