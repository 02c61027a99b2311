"""Answers with options follow the examples in the prompt."""

from __future__ import annotations

from typing import Literal

import dspy
import pytest

from bridge.adapters.offline import OfflineReader
from bridge.adapters.offline.examples import Example, choose_like

KINDS = ("date", "person", "place")
EXAMPLES = [("Who wrote Faust?", "person"), ("When did it end?", "date"), ("Where is Bonn?", "place")]


def test_the_words_of_examples_decide():
    """The first words of a question count most; words that go with several answers count little."""
    examples = [Example(text, {"kind": kind}) for text, kind in EXAMPLES]
    for text, kind in (("Who painted it?", "person"), ("When was Bonn founded?", "date"), ("Where?", "place")):
        assert choose_like(examples, "kind", KINDS, text) == kind


def test_nothing_is_suggested():
    """By no examples, by examples of other outputs or options, and by examples without a word in common."""
    example = Example("Who wrote Faust?", {"kind": "person"})
    assert choose_like([], "kind", KINDS, "Who?") is None
    assert choose_like([example], "other", KINDS, "Who?") is None
    assert choose_like([example], "kind", ("date",), "Who?") is None
    assert choose_like([example], "kind", KINDS, "Quand?") is None


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter(), dspy.JSONAdapter()])
def test_demos_of_dspy_are_examples(adapter):
    """As the adapters of DSPy write them; numbers are options, too."""
    fields = {"question": (str, dspy.InputField()), "kind": (Literal[1, 2], dspy.OutputField())}
    signature = dspy.make_signature(fields, "Say what is asked for.")
    demos = [{"question": "Who wrote Faust?", "kind": 2}, {"question": "When did it end?", "kind": 1}]
    *messages, last = adapter.format(signature, demos, {"question": "Who painted it?"})
    texts = [message["content"] for message in (*messages[1:], last)]
    reply, _ = OfflineReader().reply(messages[0]["content"], texts)
    assert adapter.parse(signature, reply)["kind"] == 2
