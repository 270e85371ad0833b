"""Rules of the placeholders of parts that other ranks of the pipeline hold."""

from ml.distributed.elsewhere import Elsewhere
from ml.distributed.rules.rule import register_rule
from ml.distributed.rules.whole import Positionwise


class ElsewhereRule(Positionwise):
    """`Elsewhere`: nothing to divide, except for the table of tied embeddings."""


register_rule(Elsewhere, ElsewhereRule())
