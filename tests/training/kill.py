"""Runs a configuration in processes that are killed: python kill.py FOLDER SEED NUM_KILLS FLAG...

A kill comes at a random moment, or as soon as a checkpoint is being written. The processes are forks of this one, which
has imported everything and computed nothing, so that each begins at once. Prints how many were killed
inside a save, and how many at all.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import ml

_LONGEST_LIFE = 1.8  # seconds; and most are shorter than the time to the next checkpoint
_PAUSE = 0.0005  # seconds


def start(config, folder):
    """A process that trains; returns its number."""
    process = os.fork()
    if process == 0:
        torch.set_num_threads(1)
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        code = 70
        try:
            ml.train(config, folder)
            code = 0
        finally:
            os._exit(code)
    return process


def is_saving(folder):
    return any(Path(folder, "checkpoints").glob(".step_*.tmp"))


def kill_at_some_moment(process, folder, chance):
    """Kills a process; True if it was writing a checkpoint, None if it ended before."""
    in_a_save = chance.random() < 0.5
    ends = time.monotonic() + chance.uniform(0.0, _LONGEST_LIFE)
    begun = is_saving(folder)  # a leftover of the last kill, until the process removes it
    while time.monotonic() < ends:
        if os.waitpid(process, os.WNOHANG)[0]:
            return None
        saving = is_saving(folder)
        if in_a_save and saving and not begun:
            time.sleep(chance.uniform(0.0, 0.02))
            break
        begun = begun and saving
        time.sleep(_PAUSE)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return is_saving(folder)


def main(folder, seed, num_kills, flags):
    config = ml.load("tests/kill.gin", list(flags))
    chance = random.Random(int(seed))
    inside = kills = 0
    for _ in range(int(num_kills)):
        killed = kill_at_some_moment(start(config, folder), folder, chance)
        if killed is None:
            break
        inside += killed
        kills += 1
    _, status = os.waitpid(start(config, folder), 0)
    print(inside, kills)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4], sys.argv[4:]))
