"""Base class of learning rate schedules, and the curves that they use."""

import abc
import math


class Schedule(abc.ABC):
    """Maps a step to a factor of the optimizer's learning rate.

    Attributes:
        num_steps: Number of steps of the run.
    """

    num_steps: int

    @abc.abstractmethod
    def __call__(self, step: int) -> float:
        """Returns the factor of a step from 1 to `num_steps`."""


def straight(begin: float, end: float, progress: float) -> float:
    """Interpolates linearly from `begin` at progress 0 to `end` at progress 1."""
    return begin + (end - begin) * progress


def cosine(begin: float, end: float, progress: float) -> float:
    """Interpolates from `begin` to `end` by half a cosine (Loshchilov and Hutter, SGDR, 2017, equation 5)."""
    return end + (begin - end) * (1.0 + math.cos(math.pi * progress)) / 2.0
