"""Compile a C++ operator at its first use, once for each source, torch and processor."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch

# No -ffast-math: NaN and infinities must stay what they are.
FLAGS = ("-std=c++20", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")
X86_FLAGS = ("-mprefer-vector-width=512",)


@functools.cache
def load_operators(source: Path) -> bool:
    """Compile ``source`` if need be and register its operators with torch.

    The library is kept in ``$TORCH_EXTENSIONS_DIR`` (by default ~/.cache/torch_extensions), where torch keeps
    its own, or in the folder for temporary files where that cannot be written. The compiler is ``$CXX``, or
    c++; it is meant for g++ on Linux, and what else may work has not been tried.

    Returns:
        whether the operators are there. If they are not, there is one warning that says why.
    """
    try:
        library = _library_of(source)
        if library.exists():
            try:
                torch.ops.load_library(str(library))
                return True
            except OSError:
                library.unlink()  # cut short, or of another machine: build it anew
        _build(source, library)
        torch.ops.load_library(str(library))
    except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        detail = (getattr(error, "stderr", None) or str(error)).strip()
        warnings.warn(
            f"fused=True on the CPU builds {source.name} at its first use, which failed, so the for-loop is "
            "used instead: the same results up to rounding, some 4 times slower. It takes a C++ compiler, "
            "g++ or what CXX names, and a folder that can be written, TORCH_EXTENSIONS_DIR; fused=False "
            f"does without. What went wrong: {detail[-500:]}",
            stacklevel=2,
        )
        return False
    return True


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX") or "c++")


def _library_of(source: Path) -> Path:
    """Where the library is, or will be."""
    how = (source.read_bytes(), Path(__file__).read_bytes(), torch.__version__, _compiler(), _processor())
    key = hashlib.sha256(repr(how).encode()).hexdigest()
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions"
    folder = Path(root) / "rl_extensions"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir()) / f"rl_extensions-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise OSError(f"{folder} belongs to another user") from None
    return folder / f"{source.stem}-{key[:16]}.so"


def _build(source: Path, library: Path) -> None:
    from torch.utils.cpp_extension import include_paths, library_paths  # imports setuptools

    # Several processes may build at once: each to a name of its own, and the last rename stands.
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        compiled, built = Path(folder) / "source.o", Path(folder) / library.name
        flags = FLAGS + (X86_FLAGS if platform.machine() == "x86_64" else ())
        compile_: list[str | Path] = [*_compiler(), *flags, *(f"-I{path}" for path in include_paths())]
        libraries = [*(f"-L{path}" for path in library_paths()), "-ltorch_cpu", "-lc10"]
        # Linked without -fopenmp: the one OpenMP runtime is to be the one that torch brought.
        link: list[str | Path] = [*_compiler(), "-shared", compiled, "-o", built, *libraries]
        for command in ([*compile_, "-c", source, "-o", compiled], link):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
        with open(built, "rb") as file:
            os.fsync(file.fileno())
        os.replace(built, library)


def _processor() -> str:
    """What -march=native compiles for: a home folder may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
