"""Run a DSPy program in a worker at the other end of a Unix socket, with a tool and a streamed answer.

The socket is $BRIDGE_SOCKET, or /run/bridge/bridge.sock, where this listens:

    python -m bridge serve --listen unix:/run/bridge/bridge.sock
"""

from __future__ import annotations

import os

from bridge import Client

SIGNATURE = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]}
QUESTION = {"program_id": "weather", "inputs": {"question": "What is the temperature in Graz?"}}


def temperature(city: str) -> str:
    """The temperature in a city."""
    return f"It is 21 degrees in {city}."


def main() -> None:
    path = os.environ.get("BRIDGE_SOCKET", "/run/bridge/bridge.sock")
    with Client.connect(f"unix:{path}") as client:  # a worker of its own, which ends with the connection
        client.call("configure_lm", {"provider": "offline"})
        client.register_tools([temperature])
        client.call("create_program", {"id": "weather", "program_type": "react", "signature": SIGNATURE})
        with client.stream("execute_program", QUESTION) as stream:
            for event, data in stream:
                print(event, data)
            print(stream.result()["outputs"]["answer"])


if __name__ == "__main__":
    main()
