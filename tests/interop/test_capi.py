"""libbridge, built by CMake as a user builds it; its own tests in capi/tests, run by ctest here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest


def is_recent(cmake: str | None) -> bool:
    """Return whether CMake is installed in the version that CMakeLists.txt asks for."""
    if cmake is None:
        return False
    said = subprocess.run([cmake, "--version"], capture_output=True, text=True).stdout
    version = re.search(r"(\d+)\.(\d+)", said)
    return version is not None and (int(version[1]), int(version[2])) >= (3, 20)


cmake = shutil.which("cmake")
has_library = sysconfig.get_config_var("Py_ENABLE_SHARED") == 1
pytestmark = [
    pytest.mark.skipif(not has_library, reason="this Python has no shared library"),
    pytest.mark.skipif(not is_recent(cmake), reason="CMake 3.20 is not installed"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="a C++ compiler is not installed"),
    pytest.mark.timeout(300),
]
ROOT = Path(__file__).parent.parent.parent
CONSUMER = """
cmake_minimum_required(VERSION 3.20)
project(host LANGUAGES CXX)
find_package(bridge 0.1 CONFIG REQUIRED)
add_executable(host host.cpp)
target_compile_features(host PRIVATE cxx_std_17)
target_link_libraries(host PRIVATE bridge::bridge)
add_executable(host_static host.cpp)
target_compile_features(host_static PRIVATE cxx_std_17)
target_link_libraries(host_static PRIVATE bridge::bridge_static)
"""
HOST = """
#include <iostream>
#include "bridge.hpp"
int main() {
    libbridge::Bridge worker(R"({"adapter": "echo"})");
    std::cout << worker.call(R"({"id": 1, "command": "ping"})").view() << std::endl;
}
"""


def run(*command: object, **environment: str) -> str:
    result = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env={**os.environ, "BRIDGE_PYTHON": sys.executable, **environment},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def configure(source: Path, build: Path, *flags: str) -> None:
    run(cmake, "-S", source, "-B", build, f"-DPython_EXECUTABLE={sys.executable}", *flags)


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Path:
    """Build the whole repository, and return the folder."""
    build = tmp_path_factory.mktemp("capi")
    configure(ROOT, build)
    run(cmake, "--build", build, "-j2")
    return build


def test_its_own_tests_and_the_examples(built):
    """ctest runs the tests of the header's contract in C and C++, each in a separate process."""
    said = run("ctest", "--test-dir", built, "--output-on-failure", "-j2")
    assert "100% tests passed" in said


def messages(output: str) -> list[dict]:
    found = [json.loads(line) for line in output.splitlines()]
    for message in found:
        message.pop("timestamp", None)
        for varying in ("execution_time", "pid"):
            (message.get("result") or {}).pop(varying, None)
    return found


def test_hosts_of_all_kinds_get_the_same(built):
    """In C and C++ in process, in C and JavaScript with a worker: events, calls of their tool,
    replies."""
    examples = built / "examples"
    expected = run(examples / "spawning_c")
    assert messages(expected)[-1]["result"]["outputs"]["answer"] == "21 degrees"
    for embedded in ("embedded_c", "embedded_cpp"):
        assert messages(run(examples / embedded)) == messages(expected)
    node = shutil.which("node")
    if node is not None:
        assert messages(run(node, ROOT / "examples/node/host.js")) == messages(expected)


def test_a_python_host_and_the_vectors(built):
    """In a running interpreter, the library answers every conformance vector."""
    (library,) = built.glob("capi/libbridge.so")
    program = Path(__file__).parent / "vectors_by_ctypes.py"
    counts = run(sys.executable, program, library).split()
    index = json.loads((ROOT / "tests/vectors/index.json").read_text())
    assert counts == [str(len(index["vectors"]))] * 2


def test_what_is_installed_is_found(built, tmp_path):
    """find_package and pkg-config work after an install, find_package with the Python package alone too."""
    prefix, source = tmp_path / "prefix", tmp_path / "source"
    run(cmake, "--install", built, "--prefix", prefix)
    source.mkdir()
    (source / "CMakeLists.txt").write_text(CONSUMER)
    (source / "host.cpp").write_text(HOST)
    folder = run(sys.executable, "-m", "bridge", "--cmake-dir").strip()
    for name, place in (
        ("installed", f"-DCMAKE_PREFIX_PATH={prefix}"),
        ("package", f"-Dbridge_DIR={folder}"),
    ):
        configure(source, tmp_path / name, place)
        run(cmake, "--build", tmp_path / name, "-j2")
        for host in ("host", "host_static"):
            assert '"status":"ok"' in run(tmp_path / name / host)
    # Where no Python is chosen, that of the build is meant, for the static library as well.
    run(cmake, "-S", source, "-B", tmp_path / "as_built", f"-DCMAKE_PREFIX_PATH={prefix}")
    if shutil.which("pkg-config") is not None:
        (pc,) = prefix.rglob("bridge.pc")
        command = ("pkg-config", "--cflags", "--libs", "bridge")
        flags = run(*command, PKG_CONFIG_PATH=str(pc.parent)).split()
        library = next(flag for flag in flags if flag.startswith("-L"))
        program = tmp_path / "host"
        run(
            "c++",
            "-std=c++17",
            source / "host.cpp",
            "-o",
            program,
            *flags,
            f"-Wl,-rpath,{library[2:]}",
        )
        assert '"status":"ok"' in run(program)


@pytest.mark.skipif(shutil.which("clang++") is None, reason="clang is not installed")
def test_clang_has_no_warnings(tmp_path):
    """Clang's warnings are errors."""
    configure(ROOT, tmp_path, "-DCMAKE_C_COMPILER=clang", "-DCMAKE_CXX_COMPILER=clang++")
    run(cmake, "--build", tmp_path, "-j2")


def code_blocks() -> list:
    """Return the C blocks of all documents."""
    return [
        pytest.param(code, id=f"{path.name}-{index}")
        for path in (ROOT / "docs" / "embedding.md",)
        for index, code in enumerate(re.findall(r"^```c\n(.*?)^```", path.read_text(), re.M | re.S))
    ]


@pytest.mark.parametrize("code", code_blocks())
def test_c_blocks_of_the_documents_run(built, tmp_path, code):
    """They run unchanged, and print what their comments state."""
    (tmp_path / "block.c").write_text(code)
    library = built / "capi"
    run(
        *("cc", "-Wall", "-Wextra", "-Werror", "-o", tmp_path / "block", tmp_path / "block.c"),
        *(f"-I{ROOT / 'capi'}", f"-L{library}", "-lbridge", f"-Wl,-rpath,{library}"),
    )
    said = re.findall(r"// (\{.*)", code)
    assert said
    assert run(tmp_path / "block").splitlines() == said
