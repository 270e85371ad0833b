"""Runs a configuration in processes that are killed: python kill.py FOLDER SEED NUM_KILLS BINDING... [+ BINDING...]

What follows a + extends the run, which has those bindings from then on; each segment is killed as often.

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
_LONGEST_WAIT = 60.0  # seconds for a save to begin
_PAUSE = 0.0005  # seconds


def start(config, folder, extend):
    """A process that trains; returns its number."""
    process = os.fork()
    if process == 0:
        torch.set_num_threads(1)
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        code = 70
        try:
            ml.train(config, folder, extend=extend)
            code = 0
        finally:
            os._exit(code)
    return process


def is_saving(folder):
    return any(Path(folder, "checkpoints").glob(".step_*.tmp"))


def kill_at_some_moment(process, folder, chance):
    """Kills a process; True if it was writing a checkpoint, None if it ended before."""
    in_a_save = chance.random() < 0.5
    life = chance.uniform(0.0, _LONGEST_LIFE)
    ends = time.monotonic() + (_LONGEST_WAIT if in_a_save else life)
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


def main(folder, seed, num_kills, bindings):
    chance = random.Random(int(seed))
    inside = kills = 0
    segments = [text.split("\n") for text in "\n".join(bindings).split("\n+\n")]
    for number, segment in enumerate(segments):
        config, extend = ml.load("tests/kill.gin", segment), number > 0
        for _ in range(int(num_kills) // len(segments)):
            killed = kill_at_some_moment(start(config, folder, extend), folder, chance)
            if killed is None:
                break
            inside += killed
            kills += 1
        _, status = os.waitpid(start(config, folder, extend), 0)
        if status:
            break
    print(inside, kills)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4], sys.argv[4:]))
