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


def progress_of_decay(step: int, num_steps: int, end: float) -> float:
    """Returns the progress of a decay to `end` in its step `step` from 1; it is 1 in the last step.

    A decay to 0 ends one step after its last one, because a step at learning rate 0 would change nothing. This is the
    virtual last step of torchtitan.

    Args:
        step: The step within the decay.
        num_steps: Number of steps of the decay.
        end: Factor at progress 1.
    """
    return step / max(1, num_steps + (end == 0.0))


def straight(begin: float, end: float, progress: float) -> float:
    """Interpolates linearly from `begin` at progress 0 to `end` at progress 1."""
    return begin + (end - begin) * progress


def cosine(begin: float, end: float, progress: float) -> float:
    """Interpolates from `begin` to `end` by half a cosine (Loshchilov and Hutter, SGDR, 2017, equation 5)."""
    return end + (begin - end) * (1.0 + math.cos(math.pi * progress)) / 2.0
