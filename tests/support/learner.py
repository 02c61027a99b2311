"""A model on loopback that is right only if its prompt has what an optimizer can add."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from typing import Any

from model_server import KEY, ModelServer, OpenAI

PLACES = {"Louvre": "Paris", "Prado": "Madrid", "Uffizi": "Florence", "Tate": "London", "Met": "New York"}
ROWS = [
    {"inputs": {"question": f"Where is the {name}?"}, "outputs": {"answer": place}} for name, place in PLACES.items()
]
SIGNATURE = {"description": "Answer.", "inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]}
TIP = "Name the city."


class Learner(ModelServer):
    """Answers each of ROWS correctly if the prompt has an example, TIP, or the word that the row's question has.

    Asked for instructions, it writes TIP. is_unsteady: every third answer to a question is right anyway. asked: how
    often each question was asked without examples and TIP.
    """

    def __init__(self) -> None:
        super().__init__(self._respond)
        self.is_unsteady = False
        self.asked: Counter[str] = Counter()
        self._lock = threading.Lock()

    def settings(self, **more: Any) -> dict[str, Any]:
        """Return the args of configure_lm."""
        return {"model": OpenAI.model, "api_base": f"{self.url}/v1", "api_key": KEY, **more}

    def _respond(self, body: dict[str, Any]) -> Any:
        system, *messages = [str(message["content"]) for message in body["messages"]]
        fields = re.findall(r"`\[\[ ## (\w+) ## \]\]`", messages[-1])
        values = {name: self._value(name, system, messages) for name in fields if name != "completed"}
        text = "\n\n".join(f"[[ ## {name} ## ]]\n{value}" for name, value in values.items())
        return 200, {}, OpenAI.whole(text)

    def _value(self, field: str, system: str, messages: list[str]) -> str:
        if field in ("precision", "recall"):
            return "1.0"
        if field == "module_advice":
            return json.dumps({"self": TIP})
        if field != "answer":
            return TIP
        place = next(place for name, place in PLACES.items() if name in messages[-1])
        with self._lock:
            self.asked[place] += 1
            is_right = len(messages) > 1 or TIP in system or (self.is_unsteady and self.asked[place] % 3 == 0)
        return place if is_right else "unknown"
