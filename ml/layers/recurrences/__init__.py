"""Linear recurrences, and their kernels, of which a mixer takes one: `GatedDeltaNet.kernel = @FlashLinearAttention`."""

from ml.layers.recurrences.chunked import ChunkedRecurrence, Rule
from ml.layers.recurrences.flash_linear_attention import FlashLinearAttention
from ml.layers.recurrences.mamba_ssm import MambaSSM
from ml.layers.recurrences.reference import ReferenceRecurrence

__all__ = ["ChunkedRecurrence", "FlashLinearAttention", "MambaSSM", "ReferenceRecurrence", "Rule"]
