"""The imports of the package, compiled modules included: `python tests/support/imports.py` prints their figures."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Collection
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "src" / "bridge"
SOURCES = (".py", ".pyx", ".pxd", ".pxi", ".pyi")
# An import as Cython has it; the names may be in parentheses over several lines.
_CYTHON = re.compile(
    r"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+c?import[ \t]+(\([^)]*\)|[^\n(#]+)"
    r"|c?import[ \t]+([\w.]+(?:[ \t]*,[ \t]*[\w.]+)*))",
    re.MULTILINE,
)


def modules() -> dict[str, list[Path]]:
    """Return the files of each module by its name below the package, as `wire._etf`.

    A package is named like its folder and the root is ``__init__``. A part that a compiled module includes (.pxi), as
    `wire/etf/reading.pxi`, belongs to the module of the same name, `wire._etf`.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix in SOURCES:
            parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
            if path.suffix == ".pxi":
                parts[-2:] = [f"_{parts[-2]}"]
            elif parts[-1] == "__init__" and len(parts) > 1:
                parts.pop()
            found.setdefault(".".join(parts), []).append(path)
    return found


def imports_of(path: Path) -> set[str]:
    """Return the names that a file imports, wherever the statement stands: `msgspec`, `bridge.wire.codec.JSON`."""
    text = path.read_text()
    names: set[str] = set()
    if path.suffix in (".py", ".pyi"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}: a relative import"
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
        return names
    for package, listed, plain in _CYTHON.findall(text):
        if plain:
            names |= {name.strip() for name in plain.split(",")}
        else:
            items = [item.partition(" as ")[0].strip() for item in listed.strip("() \n").split(",")]
            names |= {f"{package}.{item}" for item in items if item}
    return names


def edges() -> dict[str, set[str]]:
    """Return what each module imports of the package, as the longest name that is a module."""
    known = modules()
    graph: dict[str, set[str]] = {}
    for module, paths in known.items():
        targets = graph.setdefault(module, set())
        for name in set[str]().union(*map(imports_of, paths)):
            if name == "bridge" or name.startswith("bridge."):
                inner = name.removeprefix("bridge").removeprefix(".")
                while inner and inner not in known:
                    inner = inner.rpartition(".")[0]
                targets.add(inner or "__init__")
        targets.discard(module)
    return graph


def third_party(module: str, also: Collection[str] = ()) -> set[str]:
    """Return the top-level packages that a module imports and that are not ours, of Cython, or of the standard library.

    also: those of the standard library to return nevertheless.
    """
    names = set[str]().union(*map(imports_of, modules()[module]))
    usual = (sys.stdlib_module_names - {*also}) | {"bridge", "cython", "cpython", "libc"}
    return {name.partition(".")[0] for name in names} - usual


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or through others."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen, todo = set[str](), [start]
        while todo:
            for target in graph[todo.pop()] - seen:
                seen.add(target)
                todo.append(target)
        reached[start] = seen
    groups = {frozenset({start, *(each for each in seen if start in reached[each])}) for start, seen in reached.items()}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def depth(graph: dict[str, set[str]]) -> int:
    """Return how many modules the longest chain of imports has; modules of a circle count once."""
    circle_of = {module: tuple(group) for group in circles(graph) for module in group}
    deepest: dict[object, int] = {}

    def measure(node: object) -> int:
        if node not in deepest:
            members = node if isinstance(node, tuple) else (node,)
            below = {circle_of.get(target, target) for member in members for target in graph[member]} - {node}
            deepest[node] = 1 + max(map(measure, below), default=0)
        return deepest[node]

    return max(measure(circle_of.get(module, module)) for module in graph)


if __name__ == "__main__":
    graph = edges()
    lines = sum(len(path.read_text().splitlines()) for paths in modules().values() for path in paths)
    in_root = sum(path.is_file() for path in PACKAGE.iterdir())
    print(f"{lines} lines, {depth(graph)} layers, {len(circles(graph))} circles, {in_root} files in the root")
    for group in circles(graph):
        print("circle:", " ".join(group))
