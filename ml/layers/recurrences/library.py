"""Base class of the recurrence kernels of libraries for CUDA, which are installed by extras."""

import abc
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor

from ml.errors import UserError
from ml.layers.recurrences.chunked import ChunkedRecurrence, Rule
from ml.layers.tracing import has_values
from ml.optional import optional_import

_HALF = (torch.bfloat16, torch.float16)


class LibraryKernel(ChunkedRecurrence, abc.ABC):
    """A kernel of a library for CUDA.

    A single token, as in decoding, and passes without a gradient that the library does not support, are computed by
    `ChunkedRecurrence`: a run generates text on any device.

    Attributes:
        extra: The extra that installs the library.
        modules: The module of each rule.
        wide_rules: The rules that are computed in float32 too.
    """

    takes_chunk_size = False
    extra: ClassVar[str]
    modules: ClassVar[dict[Rule, str]]
    wide_rules: frozenset[Rule] = frozenset()

    def library(self, rule: Rule) -> ModuleType:
        """Imports the module of a rule.

        Raises:
            UserError: The library is not installed.
        """
        return optional_import(self.modules[rule], self.extra, "it")

    def obstacle(self, rule: Rule, device_type: str, dtype: torch.dtype) -> str | None:
        if device_type != "cuda":
            return f"it needs a GPU and not {device_type}: train on one"
        if dtype not in _HALF and rule not in self.wide_rules:
            return f"it needs bfloat16 or float16 and not {dtype}: set Trainer.precision = @MixedBFloat16"
        try:
            self.library(rule)
        except UserError as error:
            return str(error)
        return None

    def takes(self, rule: Rule, x: Tensor, *others: Tensor | None) -> bool:
        """Returns whether the library computes a pass; if not, `ChunkedRecurrence` does.

        Args:
            rule: The rule.
            x: The values (B, T, ...), in the dtype of the products.
            others: The other inputs.

        Raises:
            ValueError: The pass has a gradient, and the library does not support it.
        """
        if x.shape[1] == 1 or not has_values(x):
            return False
        problem = self.problem(rule, x.device.type, x.dtype)
        if problem is None:
            return True
        if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in (x, *others)):
            raise ValueError(f"kernel {problem}")
        return False
