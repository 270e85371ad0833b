"""Load-balance metrics of a router."""

import math

from torch import Tensor


def load_balance(load: Tensor) -> dict[str, float]:
    """Measures how evenly tokens are distributed over experts.

    Args:
        load: (E) number of tokens of each expert.

    Returns:
        busiest: The largest load over the mean, 1 if balanced. idle: The fraction of experts without a token. entropy:
        The normalized entropy of the load, 1 if balanced and 0 if one expert has all tokens.
    """
    shares = load.double().cpu() / load.double().sum().clamp(min=1).cpu()
    count = len(shares)
    entropy = -(shares * shares.clamp(min=1e-30).log()).sum().item()
    return {
        "busiest": shares.max().item() * count,
        "idle": (shares == 0).double().mean().item(),
        "entropy": entropy / math.log(count) if count > 1 else 1.0,
    }
