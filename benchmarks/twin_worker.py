"""The baseline of the compiled framing: the same dispatcher behind the plain Python twin of it."""

from __future__ import annotations

from bridge.adapters.echo import adapter
from bridge.framing import Reader, Writer
from bridge.worker.control import control
from bridge.worker.dispatch import Dispatcher


def main() -> None:
    dispatcher = Dispatcher(adapter)
    dispatcher.add(control(dispatcher))
    reader, writer = Reader(0), Writer(1)
    while (request := reader.read()) is not None:
        writer.send(dispatcher.call(request))


if __name__ == "__main__":
    main()
