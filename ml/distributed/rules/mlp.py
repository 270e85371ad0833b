"""Rules of feed-forward layers. The number of ranks need not divide their width."""

from ml.distributed.rules.rule import register_rule
from ml.distributed.rules.split import Split
from ml.layers.mlp import MLP, GatedMLP
from ml.layers.vision import Projector

register_rule(MLP, Split(columns=("up",), rows=("down",)))
register_rule(GatedMLP, Split(columns=("gate", "up"), rows=("down",)))
register_rule(Projector, Split(columns=("first",), rows=("second",)))
