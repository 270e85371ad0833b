"""The environment variables by which `torchrun` tells a process its place. Imports no torch."""

import os


def num_processes() -> int:
    """Returns the number of processes of the run, 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def is_launched() -> bool:
    """Returns whether a launcher started this process with others."""
    return num_processes() > 1


def rank() -> int:
    """Returns the index of this process, 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Returns the index of this process on its machine, 0 without a launcher."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def num_local_processes() -> int:
    """Returns the number of processes of the run on this machine, 1 without a launcher."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if is_launched() else 1
