"""The layers: who may import whom, and what a worker must not load before its first ping."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import bridge

PACKAGE = Path(bridge.__file__).parent
# Lowest first. A module imports from its own layer and those below; the entry points import
# everything.
SHARED = {
    "version",
    "errors",
    "salvage",
    "messages",
    "codec",
    "telemetry",
    "redaction",
    "secret_values",
    "unescaped",
    "addresses",
    "activity",
    "adapter",
    "records",
    "_apart",
    "_companion",
    "tensors",
    "array_args",
    "empty_maps",
    "unknown_args",
    "framing",
    "_framing",
    "_histogram",
    "_limits",
    "_dispatch",
    "_embed",
    "_etf",
    "_watch",
}


def layer_of(module: str) -> str:
    first = module.split(".")[0] if module else "__init__"
    if first in SHARED:
        return "shared"
    return first if first in {"worker", "host", "adapters"} else "entry"


def imports_of(path: Path) -> set[str]:
    """Names below `bridge.` that the file imports, and top-level names of other packages."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


# What only the benchmark of formats compares, or shows them with.
OF_BENCH = {
    *("rich", "matplotlib", "orjson", "msgpack", "ormsgpack", "cbor2", "google", "pyarrow"),
    *("fastavro", "zstandard"),
}
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
ALLOWED = {
    "shared": {"shared"},
    "worker": {"shared", "worker"},
    "host": {"shared", "host"},
    "adapters": {"shared", "adapters"},
    "entry": {"shared", "worker", "host", "adapters", "entry"},
}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards(module):
    """worker | host, generic | DSPy: nothing imports over a boundary."""
    own = layer_of(module)
    for name in imports_of(MODULES[module]):
        if name == "bridge" or name.startswith("bridge."):
            target = layer_of(name.removeprefix("bridge").removeprefix("."))
            package_itself = name == "bridge"  # as in `from bridge import errors`
            assert target in ALLOWED[own] or package_itself, f"{module} imports {name}"
        if name.split(".")[0] in {"dspy", "litellm", "pydantic", "pydantic_core", "numpy"}:
            ours = module.startswith("adapters.dspy.") or (module, name) == ("tensors", "numpy")
            ours = ours or (module == "host.arguments" and name.startswith("pydantic"))
            assert ours, f"{module} imports {name}"
        if name.split(".")[0] == "prometheus_client":
            assert module == "worker.metrics", f"{module} imports {name}"
        if name.split(".")[0] == "opentelemetry":
            assert module == "worker.tracing", f"{module} imports {name}"
        if name.split(".")[0] in OF_BENCH:
            assert module.startswith("bench."), f"{module} imports {name}"


def test_the_compiled_path_knows_no_command():
    """bytes | meaning: no name of a command stands in a compiled module's source."""
    root = Path(__file__).parent.parent / "src" / "bridge"
    for source in root.glob("*.pyx"):
        text = source.read_text()
        for command in ("ping", "execute_program", "get_stats", "shutdown"):
            assert f'"{command}"' not in text, f"{source.name} knows {command}"


def loaded_after(code: str) -> set[str]:
    """Modules that a fresh interpreter has loaded after `code`."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(output.stdout))


HEAVY = {
    *("dspy", "numpy", "litellm", "pydantic", "asyncio"),
    *("prometheus_client", "opentelemetry", "bridge.bench"),
    *OF_BENCH,
}
FIRST_PING = """
import bridge.worker.loop
from bridge.adapters.dspy import adapter
from bridge.worker.control import control
from bridge.worker.dispatch import Dispatcher
dispatcher = Dispatcher(adapter)
dispatcher.add(control(dispatcher))
assert b'"dspy_available":true' in dispatcher.call(b'{"id": 1, "command": "ping"}')
import sys
assert "logging" not in sys.modules
"""
STATISTICS = f"""
{FIRST_PING}
assert b'"commands"' in dispatcher.call(b'{{"id": 1, "command": "get_stats"}}')
everything = b'["commands", "sessions", "process", "histograms", "worker"]'
request = b'{{"id": 1, "command": "get_stats", "args": {{"include": ' + everything + b'}}}}'
assert b'"success":true' in dispatcher.call(request)
request = b'{{"id": 1, "command": "get_stats", "args": {{"format": "prometheus"}}}}'
assert b'"not_allowed"' in dispatcher.call(request)
"""


PROGRAM = f"""
{FIRST_PING}
signature = b'{{"inputs": [{{"name": "q"}}], "outputs": [{{"name": "a", "type": "list<date>"}}]}}'
request = b'{{"id": 1, "command": "create_program", "args": {{"signature": ' + signature + b'}}}}'
assert b'"created"' in dispatcher.call(request)
"""
FLAGS = "from bridge.cli import _parser; _parser(['worker']).parse_args(['worker'])"


@pytest.mark.parametrize("code", ["import bridge", "from bridge import Client", FLAGS, FIRST_PING, STATISTICS, PROGRAM])
def test_heavy_libraries_are_loaded_late(code):
    """`import bridge`, a first ping, statistics, and making a program load none of them."""
    assert not loaded_after(code) & HEAVY


def test_a_failed_import_of_the_compiled_modules_says_what_to_type(tmp_path):
    """The package without its compiled half, as in a checkout that was not built."""
    import shutil

    shutil.copytree(PACKAGE, tmp_path / "bridge", ignore=shutil.ignore_patterns("*.so"))
    result = subprocess.run([sys.executable, "-m", "bridge", "worker"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode != 0
    assert "pip install" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_worker_starts_without_inspect():
    """msgspec would load it through typing_extensions, for a quarter of the start."""
    command = [sys.executable, "-X", "importtime", "-P", "-m", "bridge", "worker"]
    done = subprocess.run([*command, "--adapter", "echo"], input=b"", capture_output=True, check=True)
    loaded = {line.rpartition(b"|")[2].strip().decode() for line in done.stderr.splitlines()}
    assert "bridge.worker.loop" in loaded
    assert not loaded & {"inspect", "dspy", "numpy"}
