"""Block-wise quantization to 8 bits with a dynamic map."""

from typing import NamedTuple

import torch
from torch import Tensor

_DECADES = 7
_INT8_OFFSET = 128


class DynamicMap(NamedTuple):
    """The 256 values of an 8-bit code, relative to the largest magnitude of its block (Dettmers et al., 2022).

    Decade i of 7 spans 10^(i-7) to 10^(i-6) and holds the centers of 2^i equal intervals for each sign, or of 2^(i+1)
    without a sign. 0 and 1 complete the map. Codes with a sign are int8, codes without one uint8.

    Attributes:
        values: (256) float32, ascending.
        midpoints: (255) float32, the bounds of rounding to the nearest value.
        dtype: Dtype of the codes.
    """

    values: Tensor
    midpoints: Tensor
    dtype: torch.dtype

    @classmethod
    def of(cls, dtype: torch.dtype, device: torch.device) -> "DynamicMap":
        """Creates the map of a dtype of codes, int8 or uint8, on a device."""
        is_signed = dtype == torch.int8
        centers = []
        for decade in range(_DECADES):
            count = 2 ** (decade if is_signed else decade + 1)
            edges = torch.linspace(0.1, 1.0, count + 1, dtype=torch.float64)
            centers.append((edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - _DECADES + 1))
        positive = torch.cat(centers)
        negative = -positive if is_signed else positive[:0]
        values = torch.cat([negative, torch.tensor([0.0, 1.0], dtype=torch.float64), positive]).sort().values
        midpoints = (values[:-1] + values[1:]) / 2
        return cls(values.float().to(device), midpoints.float().to(device), dtype)

    def quantize(self, values: Tensor, codes: Tensor, scales: Tensor) -> None:
        """Quantizes to the nearest value of the map, in place of codes and scales.

        Without a sign, a value that is not 0 has no code of 0: a second moment of 0 would divide by zero.

        Args:
            values: (..., n · size) values.
            codes: (..., n · size) their codes.
            scales: (..., n) the largest magnitude of each block.
        """
        blocks = values.unflatten(-1, (scales.shape[-1], -1))  # (..., n, size)
        torch.amax(blocks.abs(), dim=-1, out=scales)
        relative = blocks / scales.unsqueeze(-1)
        found = torch.bucketize(relative.nan_to_num_(0.0), self.midpoints, out_int32=True)  # a block of zeros: 0 / 0
        if self.dtype == torch.int8:
            found.sub_(_INT8_OFFSET)
        else:
            found.clamp_(min=(blocks > 0.0).int())
        codes.copy_(found.flatten(-2))

    def dequantize(self, codes: Tensor, scales: Tensor) -> Tensor:
        """Returns the float32 values of codes (..., n · size) with scales (..., n)."""
        indices = codes.int().add_(_INT8_OFFSET) if self.dtype == torch.int8 else codes.int()
        return self.values[indices].unflatten(-1, (scales.shape[-1], -1)).mul_(scales.unsqueeze(-1)).flatten(-2)
