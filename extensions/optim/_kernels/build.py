"""Compile a C++ operator at its first use, once for each source, torch and processor."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch

# No -ffast-math: NaN and infinities must stay what they are.
FLAGS = (
    "-std=c++20",
    "-O3",
    "-march=native",
    "-mprefer-vector-width=512",
    "-fno-math-errno",
    "-fno-trapping-math",
)


@functools.cache
def load_operators(source: Path) -> bool:
    """Compile ``source`` if need be and register its operators with torch.

    The library is kept in ``$TORCH_EXTENSIONS_DIR`` (by default ~/.cache/torch_extensions), where torch keeps
    its own. The compiler is ``$CXX``, or c++.

    Returns:
        whether the operators are there. If they are not, there is one warning that says why.
    """
    try:
        torch.ops.load_library(str(_compiled(source)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        detail = (getattr(error, "stderr", None) or str(error)).strip()
        warnings.warn(
            f"fused=True on the CPU wants a C++ compiler, and building {source.name} failed, so the for-loop "
            "is used instead: same results, some 4 times slower. Install g++ (or set CXX), or pass "
            "fused=False. "
            f"What went wrong: {detail[-500:]}",
            stacklevel=2,
        )
        return False
    return True


def _compiled(source: Path) -> Path:
    from torch.utils.cpp_extension import get_cxx_compiler, include_paths, library_paths

    compiler = get_cxx_compiler()
    how = (source.read_bytes(), Path(__file__).read_bytes(), torch.__version__, compiler, _processor())
    key = hashlib.sha256(repr(how).encode()).hexdigest()
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions"
    library = Path(root) / "rl_extensions" / f"{source.stem}-{key[:16]}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        # Several processes may build at once: each to a name of its own, and the last rename stands.
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            built, compiled = Path(folder) / library.name, Path(folder) / "source.o"
            compile_ = [compiler, *FLAGS, "-fopenmp", "-fPIC", *(f"-I{path}" for path in include_paths())]
            libraries = [*(f"-L{path}" for path in library_paths()), "-ltorch_cpu", "-lc10"]
            # Linked without -fopenmp: the one OpenMP runtime is to be the one that torch brought.
            link = [compiler, "-shared", compiled, "-o", built, *libraries]
            for command in ([*compile_, "-c", source, "-o", compiled], link):
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
            os.replace(built, library)
    return library


def _processor() -> str:
    """What -march=native compiles for: a home folder may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
