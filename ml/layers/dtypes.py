"""The dtypes of torch as constants of the configuration: `%bfloat16`, or in full `%torch.bfloat16`."""

import torch

from ml.config import register_constant

for _dtype in {value for value in vars(torch).values() if isinstance(value, torch.dtype)}:
    register_constant(str(_dtype), _dtype)
