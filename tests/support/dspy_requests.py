"""Requests to the DSPy commands, without a pipe."""

from __future__ import annotations

QA = {
    "name": "My.App.QA",
    "description": "Answer the question.",
    "inputs": [{"name": "question", "type": "string", "description": "what is asked"}],
    "outputs": [{"name": "answer", "type": "string"}],
}


def script(ask, *answers, **args):
    ask("configure_lm", provider="scripted", answers=list(answers), **args)
