"""Builds the compiled modules; pyproject.toml says everything else."""

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup

# Line tracing for coverage of the compiled files; slows them several times over.
TRACE = os.environ.get("BRIDGE_TRACE") == "1"

# CFLAGS stand before these in a command, so they would not count.
OPTIMIZATION = [] if "CFLAGS" in os.environ else ["-O3"]

extensions = [
    Extension(
        ".".join(source.relative_to("src").with_suffix("").parts),
        [str(source)],
        include_dirs=["capi"],
        extra_compile_args=[*OPTIMIZATION, "-g0"],  # some Pythons' own flags carry -g: thrice the size
        define_macros=[("CYTHON_TRACE_NOGIL", "1")] if TRACE else [],
        extra_link_args=[] if sys.platform == "darwin" else ["-pthread"],
    )
    for source in sorted(Path("src/bridge").rglob("_*.pyx"))
]

setup(
    options={"build_ext": {"parallel": True}},  # one compiler for each core
    # The C library's sources are data of the package: `python -m bridge --cmake-dir`.
    packages=[*find_packages("src"), "bridge.capi"],
    package_dir={"": "src", "bridge.capi": "capi"},
    ext_modules=cythonize(
        extensions,
        build_dir=None if TRACE else "build",  # coverage looks for the C file beside its source
        include_path=["src"],
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "embedsignature": True,
            "linetrace": TRACE,
        },
    ),
)
