"""How the learning rate changes, and the curves that schedules are made of."""

import abc
import math


class Schedule(abc.ABC):
    """Maps a step in 1 to `num_steps`, those of the run, to a factor of the learning rate of the optimizer."""

    num_steps: int

    @abc.abstractmethod
    def __call__(self, step: int) -> float:
        """The factor of a step."""


def straight(begin: float, end: float, progress: float) -> float:
    """From `begin` at progress 0 to `end` at 1."""
    return begin + (end - begin) * progress


def cosine(begin: float, end: float, progress: float) -> float:
    """Half a cosine from `begin` to `end` (Loshchilov and Hutter, SGDR, 2017, equation 5)."""
    return end + (begin - end) * (1.0 + math.cos(math.pi * progress)) / 2.0
