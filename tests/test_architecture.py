"""The layers: who may import whom, and what a worker must not load before its first ping."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bridge
import imports

PACKAGE = Path(bridge.__file__).parent

# Lowest first. An entry is a module or a package with all that it holds. A module imports from its own entry and from
# lower layers, not from its neighbours. A new module in the root, or a new package, has to be entered here.
LAYERS = (
    ("version", "errors", "flags"),
    ("security", "addresses", "health"),
    ("options",),
    ("_framing", "_histogram", "_watch"),
    ("wire",),
    ("records",),
    ("adapter",),
    ("_dispatch", "_embed"),
    ("telemetry",),
    ("adapters.type_names",),
    ("adapters.offline",),
    ("worker", "adapters", "host"),
    ("pool",),
    ("ray",),
    ("template", "aio", "signatures", "embed", "bench", "demo", "experiment"),
    ("testing",),
    ("__init__",),
    ("cli",),
    ("__main__",),
)

# Which modules may import a library besides msgspec and the standard library; sqlite3, which is part of that, is one
# that a worker without a store does not load.
LIBRARIES = {
    "dspy": ("adapters.dspy",),
    "dspy_monty_interpreter": ("adapters.dspy.sandbox.monty",),
    "pydantic_monty": ("adapters.dspy.sandbox.monty",),
    "fastavro": ("bench.avro",),
    "google": ("bench.formats", "bench.protobuf"),
    "httpx": ("adapters.dspy.engines.litellm",),
    "jsonschema": ("adapters.dspy.tools.schema", "adapters.dspy.tools.validation"),
    "litellm": ("adapters.dspy.engines.embeddings", "adapters.dspy.engines.litellm", "adapters.dspy.providers"),
    "matplotlib": ("bench.plots",),
    "msgspec": ("",),
    "numpy": (
        "wire.tensors",
        "adapters.offline",
        "adapters.dspy.modules.neighbours",
        "adapters.dspy.retrieval",
        "adapters.dspy.commands.retrieval",
    ),
    "opentelemetry": ("telemetry.tracing",),
    "prometheus_client": ("worker.metrics",),
    "psycopg": ("worker.stores.postgres",),
    "pyarrow": ("bench.arrow",),
    "pydantic": (
        *("adapters.dspy.formats", "adapters.dspy.native_types", "adapters.dspy.values", "adapters.offline.prompt"),
        "host.arguments",
    ),
    "pydantic_core": (
        *("adapters.dspy.values.inputs", "adapters.dspy.native_types", "adapters.dspy.schemas.texts"),
        "host.arguments",
    ),
    "ray": ("ray",),
    "rich": ("bench.terminal", "experiment.display"),
    "sqlite3": ("worker.stores",),
    "typing_extensions": (
        *("_dispatch", "_framing", "host._inbox", "signatures"),
        *("wire._etf", "wire._frames", "wire.lenient"),
    ),
    "zstandard": ("bench.case",),
    **dict.fromkeys(("cbor2", "msgpack", "orjson", "ormsgpack"), ("bench.formats",)),
}
GRAPH = imports.edges()


def entry_of(module: str) -> tuple[int, str]:
    """Return the layer of `module` and the entry that it belongs to."""
    found = [
        (index, entry)
        for index, layer in enumerate(LAYERS)
        for entry in layer
        if module == entry or module.startswith(f"{entry}.")
    ]
    assert found, f"{module} belongs to no layer: enter it in LAYERS"
    return max(found, key=lambda each: len(each[1]))


@pytest.mark.parametrize("module", GRAPH)
def test_imports_go_downwards(module):
    """This includes imports inside functions, for the type checker only, and in compiled modules."""
    layer, entry = entry_of(module)
    for target in GRAPH[module]:
        below, other = entry_of(target)
        assert other == entry or below < layer, f"{module} imports {target}"


@pytest.mark.parametrize("module", GRAPH)
def test_libraries_are_imported_only_where_the_table_allows(module):
    """A library that is not in the table fails."""
    for library in imports.third_party(module, LIBRARIES):
        allowed = LIBRARIES.get(library, ())
        assert any(not name or module == name or module.startswith(f"{name}.") for name in allowed), (
            f"{module} imports {library}"
        )


def test_no_modules_import_each_other():
    """Lazy imports and those for the type checker count."""
    assert imports.circles(GRAPH) == []


@pytest.mark.parametrize("entry", [entry for layer in LAYERS for entry in layer])
def test_each_entry_of_the_layers_exists(entry):
    assert any(module == entry or module.startswith(f"{entry}.") for module in GRAPH)


def test_the_compiled_path_knows_no_command():
    """The source of a compiled module contains no name of a command."""
    for source in [*imports.PACKAGE.rglob("*.pyx"), *imports.PACKAGE.rglob("*.pxi")]:
        text = source.read_text()
        for command in ("ping", "execute_program", "get_stats", "shutdown"):
            assert f'"{command}"' not in text, f"{source.name} knows {command}"


def loaded_after(code: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after `code`."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(output.stdout))


# Of these, what a worker may load before its first ping.
LIGHT = {"msgspec", "typing_extensions"}
HEAVY = {*LIBRARIES, "asyncio", "bridge.bench"} - LIGHT
FIRST_PING = """
import bridge.worker.main
from bridge.adapters.dspy import adapter
from bridge import Dispatcher
dispatcher = Dispatcher(adapter)
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
DOUBLE = """
from bridge import Options
from bridge.testing.commands import MockDispatcher
from bridge.testing.script import Script
dispatcher = MockDispatcher(Script(), Options())
for command, args in (
    (b"configure_lm", b'{"provider": "offline"}'),
    (b"create_program", b'{"id": "p", "signature": {"inputs": [], "outputs": [{"name": "a"}]}}'),
    (b"execute_program", b'{"program_id": "p"}'),
):
    assert b'"success":true' in dispatcher.call(b'{"id": 1, "command": "%s", "args": %s}' % (command, args))
"""
FLAGS = "from bridge.cli import _parser; _parser(['worker']).parse_args(['worker'])"


@pytest.mark.parametrize("code", ["import bridge", "from bridge import Client", FLAGS, FIRST_PING, STATISTICS, PROGRAM])
def test_heavy_libraries_are_loaded_late(code):
    """`import bridge`, a first ping, statistics and creating a program load none of them."""
    assert not loaded_after(code) & HEAVY


def test_the_double_of_a_worker_needs_no_dspy():
    """It runs programs without it."""
    assert not loaded_after(DOUBLE) & {"dspy", "litellm"}


def test_without_its_compiled_modules_the_package_explains_the_build(tmp_path):
    """This is a checkout that was not built."""
    import shutil

    shutil.copytree(PACKAGE, tmp_path / "bridge", ignore=shutil.ignore_patterns("*.so"))
    result = subprocess.run([sys.executable, "-m", "bridge", "worker"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode != 0
    assert "pip install" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_worker_starts_without_inspect():
    """msgspec would load it through typing_extensions, which takes a quarter of the start."""
    command = [sys.executable, "-X", "importtime", "-P", "-m", "bridge", "worker"]
    done = subprocess.run([*command, "--adapter", "echo"], input=b"", capture_output=True, check=True)
    loaded = {line.rpartition(b"|")[2].strip().decode() for line in done.stderr.splitlines()}
    assert "bridge.worker.main" in loaded
    assert not loaded & {"inspect", "dspy", "numpy"}


def test_the_picture_in_the_documents_is_the_list_of_layers(repository):
    """docs/architecture.md shows the layers, highest first."""
    text = (repository / "docs" / "architecture.md").read_text()
    picture = re.search(r"^```layers\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[1]
    shown = [re.split(r"  +", re.sub(r"   +.*", "", line)) for line in picture.splitlines()]
    assert shown[::-1] == [list(layer) for layer in LAYERS]
