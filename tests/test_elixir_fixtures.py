"""The Elixir client has copies of the files that its tests need, so they run without the rest of the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "elixir" / "test" / "fixtures"


def files(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}


def test_its_vectors_are_the_vectors():
    """If this fails, run python tests/vectors/make.py, which writes both."""
    vectors = ROOT / "tests" / "vectors"
    ours = {path: data for path, data in files(vectors).items() if "py" not in path.suffix}
    assert files(FIXTURES / "vectors") == ours


@pytest.mark.parametrize("original", ["tests/support/arrays.py", "examples/python/matrices.py"])
def test_its_adapters_are_the_adapters(original):
    """If this fails, copy the file to elixir/test/fixtures/python."""
    path = ROOT / original
    assert (FIXTURES / "python" / path.name).read_bytes() == path.read_bytes()
