"""The baseline of the compiled framing: the same dispatcher with the framing in plain Python."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

from bridge import Dispatcher
from bridge.adapters.echo import adapter
from framing_spec import Reader, Writer  # in the folder that the line above adds


def main() -> None:
    dispatcher = Dispatcher(adapter)
    reader, writer = Reader(0), Writer(1)
    while (request := reader.read()) is not None:
        writer.send(dispatcher.call(request))


if __name__ == "__main__":
    main()
