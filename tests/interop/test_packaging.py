"""The packages: the wheel that is built from the sdist runs without the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile

import pytest


def run(*command, **options):
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return (sdist, wheel made from it)."""
    from pathlib import Path

    root = Path(__file__).parent.parent.parent
    folder = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", str(folder), str(root))
    (sdist,) = folder.glob("*.tar.gz")
    run(
        *(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"),
        *("-w", str(folder), str(sdist)),
        env={**os.environ, "CFLAGS": "-O0"},  # which takes half the time
    )
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


@pytest.mark.timeout(600)
def test_the_sdist_holds_sources_and_the_wheel_what_runs(built):
    """No generated C, no sources of compiled modules in the wheel; in it stubs, data, and the C
    library's sources."""
    sdist, wheel = built
    with tarfile.open(sdist) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "Makefile", "LICENSE", "README.md", "tests/conftest.py"} <= sources
    assert {"CMakeLists.txt", "capi/bridge.c", "capi/tests/test_bridge.c"} <= sources
    assert {"src/bridge/_framing.pyx", "src/bridge/_framing.pxd", "src/bridge/py.typed"} <= sources
    assert not [name for name in sources if name.startswith("src/") and name.endswith((".c", ".so"))]
    files = set(zipfile.ZipFile(wheel).namelist())
    for name in ("_framing", "_dispatch", "_histogram", "_watch"):
        assert f"bridge/{name}.pyi" in files
        assert [file for file in files if file.startswith(f"bridge/{name}.cpython")]
    assert {"bridge/py.typed", "bridge/demo/questions.json", "bridge/bench/beam.exs"} <= files
    capi = {"bridge.h", "bridge.hpp", "bridge.c", "embed.h", "CMakeLists.txt"}
    assert {f"bridge/capi/{name}" for name in {*capi, "cmake/bridge-config.cmake"}} <= files
    files -= {"bridge/capi/bridge.c"}
    assert not [name for name in files if name.endswith((".c", ".pyx")) or "tests" in name]


@pytest.mark.timeout(600)
def test_the_wheel_installs_and_runs_outside_the_repository(built, tmp_path):
    """It is installed into a separate folder and started from another one."""
    target = tmp_path / "installed"
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), built[1])
    program = (
        "import bridge; print(bridge.__file__)\n"
        "from bridge import Client\n"
        "with Client.start() as client:\n"
        "    client.call('configure_lm', {'provider': 'offline'})\n"
        "    print(client.call('ping')['status'])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(target)}
    said = run(sys.executable, "-c", program, cwd=tmp_path, env=environment).split()
    assert said == [str(target / "bridge" / "__init__.py"), "ok"]
