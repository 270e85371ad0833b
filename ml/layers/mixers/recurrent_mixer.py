"""Base class of the mixers whose state is computed by a recurrence kernel."""

from collections.abc import Callable
from typing import ClassVar

import torch

from ml.config import child, require
from ml.layers.protocol import Mixer
from ml.layers.recurrences.chunked import ChunkedRecurrence, Rule


class RecurrentMixer(Mixer):
    """A mixer whose state changes from token to token by a linear rule.

    Attributes:
        rule: The rule.
        kernel: The recurrence kernel.
    """

    causal = True
    decodes = True
    separates_documents = True
    rule: ClassVar[Rule]
    kernel: ChunkedRecurrence

    def build_kernel(self, kernel: Callable[..., ChunkedRecurrence]) -> None:
        """Builds the kernel, and checks that it computes the rule of the layer."""
        self.kernel = child("kernel", kernel)
        name = type(self.kernel).__name__
        computes = self.rule in self.kernel.rules
        require(computes, "kernel", f"= @{name} does not compute {self.rule.value}: take @ChunkedRecurrence")
        self.separates_documents = self.kernel.separates_documents(self.rule)

    def obstacle_on(self, device_type: str, dtype: torch.dtype) -> str | None:
        """The device, dtype or library that the kernel does not have."""
        problem = self.kernel.problem(self.rule, device_type, dtype)
        return None if problem is None else f"{type(self).__name__}.kernel {problem}"
