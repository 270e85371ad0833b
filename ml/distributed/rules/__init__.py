"""Rules: how each kind of layer is divided over the mesh. One file for each kind of layer.

A layer without a rule is computed whole by every rank; within a divided layer it is refused by name.
"""

from ml.distributed.rules import (  # noqa: F401  (each registers its rules)
    attention,
    containers,
    convolution,
    delta_rule,
    elsewhere,
    embeddings,
    experts,
    head,
    latent_attention,
    lightning_attention,
    linear,
    mamba,
    mamba2,
    mlp,
    normalization,
)
from ml.distributed.rules.rule import Rule, find_rule, register_rule
from ml.distributed.rules.split import Split
from ml.distributed.rules.whole import AllPositions, Positionwise, divide, misfits, rule_of

__all__ = [
    "AllPositions",
    "Positionwise",
    "Rule",
    "Split",
    "divide",
    "find_rule",
    "misfits",
    "register_rule",
    "rule_of",
]
