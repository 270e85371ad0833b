"""Available memory of a device."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from ml import launcher

_KIB = 1024


def available_memory(device: torch.device) -> int | None:
    """Returns the bytes available to a run.

    Args:
        device: The device of the run.

    Returns:
        The total memory of a CUDA device, or the available memory of the host, divided among the processes on it; None
        if unknown.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    available = available_cpu_memory()
    return None if available is None else available // launcher.num_local_processes()


def available_cpu_memory(root: Path = Path("/")) -> int | None:
    """Returns the available RAM in bytes, or the limit of this process's control group if lower; None if unknown.

    Args:
        root: The folder that holds `proc` and `sys`.
    """
    return min((*_free(root), *_limits(root)), default=None)


def _free(root: Path) -> Iterator[int]:
    """Yields the kernel's estimate of available memory, or else the total RAM."""
    lines = _lines(root / "proc/meminfo")
    found = [int(line.split()[1]) * _KIB for line in lines if line.startswith("MemAvailable:")]
    if found:
        yield found[0]
    elif "SC_PHYS_PAGES" in os.sysconf_names:
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _limits(root: Path) -> Iterator[int]:
    """Yields the memory limits of this process's control group and its parents, version 1 or 2."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):
            yield from (int(limit) for limit in _lines(base / folder / name) if limit.isdigit())


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
