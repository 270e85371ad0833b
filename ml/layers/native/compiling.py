"""Compiles the functions of a C++ file when they are first called, and loads them."""

import ctypes
import functools
import hashlib
import logging
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

_FLAGS = ["-O3", "-std=c++17", "-shared", "-fPIC", "-w"]
_AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]
_AMX = ["-mavx512bf16", "-mamx-tile", "-mamx-bf16"]

# The instructions that this CPU has, on the operating system that the files are written for.
MULTIPLIES_FLOAT32 = sys.platform == "linux" and torch.cpu._is_avx512_supported()
MULTIPLIES_BFLOAT16 = (
    MULTIPLIES_FLOAT32 and torch.cpu._is_avx512_bf16_supported() and torch.cpu._is_amx_tile_supported()
)


@functools.cache
def library(source: Path) -> ctypes.CDLL | None:
    """Loads the functions of a C++ file, compiled once for each kind of CPU by the compiler that `torch.compile` uses.

    Args:
        source: The C++ file.

    Returns:
        The functions; None, with a warning, if the file cannot be compiled here.
    """
    try:
        functions = ctypes.CDLL(str(_compiled(source)))
        functions.use_team(ctypes.CDLL(torch._C.__file__).GOMP_parallel)
        return functions
    except (OSError, subprocess.SubprocessError, AttributeError, ValueError) as error:
        logging.getLogger(__name__).warning("slower functions of torch replace %s: %s", source.name, _reason(error))
        return None


def _compiled(source: Path) -> Path:
    if MULTIPLIES_BFLOAT16 and not torch.cpu._init_amx():
        raise OSError("the operating system refuses the use of AMX")
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    flags = [*_FLAGS, *(_AVX512 if MULTIPLIES_FLOAT32 else []), *(_AMX if MULTIPLIES_BFLOAT16 else [])]
    texts = [file.read_text(encoding="utf-8") for file in (source, *sorted(source.parent.glob("*.h")))]
    key = hashlib.sha256("\0".join([*compiler, *flags, *texts]).encode()).hexdigest()
    target = _folder() / f"{source.stem}_{key[:16]}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            built = Path(folder) / target.name
            command = [*compiler, *flags, str(source), "-o", str(built)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
            built.replace(target)  # another process may have done the same
    return target


def _folder() -> Path:
    """A folder that only this user can write."""
    name = f"juniper_{os.getuid()}"
    folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", tempfile.gettempdir())) / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = folder.stat()
    if state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise OSError(f"others can write to {folder}")
    return folder


def _reason(error: Exception) -> str:
    output = getattr(error, "stderr", None)
    return output.strip().splitlines()[0] if output and output.strip() else str(error)
