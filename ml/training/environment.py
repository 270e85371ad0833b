"""Environment of a run: facts that are recorded and never configured."""

import datetime
import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("juniper-trainer", "torch", "gin-config", "numpy", "safetensors")


def describe_environment() -> dict[str, Any]:
    """Returns versions, git revision, command line, host and devices as JSON values."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": [sys.executable, *sys.argv],
        "working_folder": os.getcwd(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "git": _git(Path(__file__).parent),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "num_cpus": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(folder: Path) -> dict[str, Any] | None:
    """Returns the revision of the code and whether it has uncommitted changes; None outside its own repository."""
    try:
        _run_git(folder, "ls-files", "--error-unmatch", "__init__.py")  # installed inside another project's folder?
        revision = _run_git(folder, "rev-parse", "HEAD")
        return {"revision": revision, "dirty": bool(_run_git(folder, "status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _run_git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
