"""The memory that a device has for a run."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

_KIB = 1024


def available_memory(device: torch.device) -> int | None:
    """Bytes that a run can take: all of a CUDA device; of the CPU what is free and allowed. None if not known."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return available_cpu_memory()


def available_cpu_memory(root: Path = Path("/")) -> int | None:
    """Bytes of RAM that are free or can be freed, or the limit of this process's control group where that is lower.

    Args:
        root: The folder that holds `proc` and `sys`.
    """
    return min((*_free(root), *_limits(root)), default=None)


def _free(root: Path) -> Iterator[int]:
    """What the kernel estimates to be available; without its file, all RAM that the system states."""
    lines = _lines(root / "proc/meminfo")
    found = [int(line.split()[1]) * _KIB for line in lines if line.startswith("MemAvailable:")]
    if found:
        yield found[0]
    elif "SC_PHYS_PAGES" in os.sysconf_names:
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _limits(root: Path) -> Iterator[int]:
    """The memory limits of the control group of this process and of those above it, of version 1 or 2."""
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
