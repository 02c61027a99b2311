"""Demos chosen for each call: those whose inputs are most similar to the inputs of the call, as by `dspy.KNN`."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from typing import Any

import dspy
import numpy

from bridge.adapters.dspy.predictor import Predictor
from bridge.adapters.dspy.values.inputs import plain

_WORD = re.compile(r"\w+")
_DIMENSIONS = 4096  # of a text's vector: words of equal hashes count as equal


class NeighbourPredictor(Predictor):
    """A predictor that shows the model those `k` of its demos whose inputs are nearest to its own."""

    def __init__(self, signature: Any, k: int) -> None:
        super().__init__(signature)
        self._k = k
        self._index: tuple[list[Any], _Index] | None = None

    def forward(
        self, config: dict[str, Any] | None = None, demos: list[Any] | None = None, **inputs: Any
    ) -> dspy.Prediction:
        known = self.demos if demos is None else demos
        nearest = self._index_of(known).nearest(self._text(inputs), self._k)
        return super().forward(config, [known[each] for each in nearest], **inputs)

    def _index_of(self, demos: list[Any]) -> _Index:
        index = self._index
        if index is None or index[0] is not demos:
            index = self._index = (demos, _Index([self._text(demo) for demo in demos]))
        return index[1]

    def _text(self, fields: Any) -> str:
        names = [name for name in self.signature.input_fields if name in fields]
        return " | ".join(f"{name}: {plain(fields[name])}" for name in names)


class _Index:
    """Texts, as vectors of the words in them, which weigh more the fewer texts contain them."""

    def __init__(self, texts: list[str]) -> None:
        counts = [_counts(text) for text in texts]
        found = Counter(dimension for each in counts for dimension in each)
        self._weights = {each: numpy.log((1 + len(texts)) / (1 + count)) + 1 for each, count in found.items()}
        self._default = numpy.log(1 + len(texts)) + 1
        self._matrix = numpy.stack([self._vector(each) for each in counts]) if texts else numpy.zeros((0, _DIMENSIONS))

    def nearest(self, text: str, k: int) -> list[int]:
        """Return the numbers of the `k` nearest texts, the nearest last: a model minds the last demo most."""
        scores = self._matrix @ self._vector(_counts(text))
        return [int(each) for each in numpy.argsort(-scores, kind="stable")[:k][::-1]]

    def _vector(self, counts: dict[int, int]) -> Any:
        vector = numpy.zeros(_DIMENSIONS, dtype=numpy.float32)
        for dimension, count in counts.items():
            vector[dimension] = (1 + numpy.log(count)) * self._weights.get(dimension, self._default)
        length = numpy.linalg.norm(vector)
        return vector / length if length else vector


def _counts(text: str) -> dict[int, int]:
    """Return how often each word occurs, by its dimension."""
    return Counter(zlib.crc32(word.encode()) % _DIMENSIONS for word in _WORD.findall(text.casefold()))
