"""Vectors of texts without a model: each word, and each part of it, counts in the dimensions that its hash chooses.

Texts that share words, or forms of them, have similar vectors. What a word means is not known here.
"""

from __future__ import annotations

import zlib
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.adapters.offline.reading import STOP, WORD, stem

if TYPE_CHECKING:
    from collections.abc import Sequence

DIMENSIONS = 512
LONGEST_WORD = 64  # characters of it that count
_STOP_WEIGHT = 0.05  # of a word without meaning of its own, beside 1
_PART_WEIGHT = 0.5  # of all parts of a word together
_PART = 3  # characters


def embed(texts: Sequence[str]) -> Any:
    """Return a row of 32-bit floats for each text, of length 1; zeros for a text without letters and digits."""
    vectors = np.array([_vector(text) for text in texts], dtype=np.float32).reshape(-1, DIMENSIONS)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths == 0, 1, lengths)


def _vector(text: str) -> Any:
    counts = Counter(word[:LONGEST_WORD].lower() for word in WORD.findall(text))
    if not counts:
        return np.zeros(DIMENSIONS)
    features = [_features(word) for word in counts]
    places = np.concatenate([places for places, _ in features])
    weights = np.concatenate(
        [(1 + np.log(count)) * weights for count, (_, weights) in zip(counts.values(), features, strict=True)]
    )
    return np.bincount(places, weights, DIMENSIONS)


@lru_cache(maxsize=50_000)
def _features(word: str) -> tuple[Any, Any]:
    """Return the dimensions in which `word` counts, and how much. Signs let collisions cancel each other."""
    framed = f"^{word}$"
    parts = [framed[start : start + _PART] for start in range(len(framed) - _PART + 1)]
    hashes = [zlib.crc32(text.encode(errors="surrogatepass")) for text in (stem(word), *parts)]
    weights = np.array([1.0, *([_PART_WEIGHT / len(parts) ** 0.5] * len(parts))])
    signs = np.array([1 if value & 1 << 31 else -1 for value in hashes])
    weight = _STOP_WEIGHT if word in STOP else 1.0
    return np.array(hashes) % DIMENSIONS, weights * signs * weight
