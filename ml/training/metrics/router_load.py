"""How evenly a router spreads tokens over its experts."""

import math

from torch import Tensor


def load_balance(load: Tensor) -> dict[str, float]:
    """Of the numbers of tokens (E) that went to each expert:

    busiest: the largest over the mean, 1 where all are equal. idle: the part of the experts with no token. entropy: of
    the distribution over the experts, 1 where all are equal and 0 where one has all.
    """
    shares = load.double().cpu() / load.double().sum().clamp(min=1).cpu()
    count = len(shares)
    entropy = -(shares * shares.clamp(min=1e-30).log()).sum().item()
    return {
        "busiest": shares.max().item() * count,
        "idle": (shares == 0).double().mean().item(),
        "entropy": entropy / math.log(count) if count > 1 else 1.0,
    }
