"""Placeholders of the parts of a model that other ranks of the pipeline hold."""

from typing import Any, NoReturn

from torch import nn

from ml.layers.protocol import Stack, lr_scale_of
from ml.models.declarations import branches_of, depth_of
from ml.models.flops import flops_per_token


class Elsewhere(Stack):
    """Placeholder of a part that another rank holds; has no parameters.

    It declares the depth, the branches and the FLOPs of the part, so that those of the model, and with them the initial
    values of the other parts, do not depend on the cut.

    Args:
        part: The part, on the meta device.
        path: Its path in the model.
    """

    def __init__(self, part: nn.Module, path: str):
        super().__init__(lr_scale_of(part))
        vars(self)["part"] = part  # not a child, whose parameters would be those of this rank
        self.path = path

    @property
    def num_layers(self) -> int:
        """The number of layers of the part."""
        return depth_of(vars(self)["part"])

    @property
    def num_branches(self) -> int:
        """The number of branches of the part."""
        return branches_of(vars(self)["part"])

    def training_flops_per_token(self, sequence_length: int) -> float | None:
        """The operations of the whole part."""
        return flops_per_token(vars(self)["part"], sequence_length)

    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(f"{self.path} is on another rank of the pipeline: no rank can compute the whole model")

    def extra_repr(self) -> str:
        return type(vars(self)["part"]).__name__


class TiedEmbeddings(Elsewhere):
    """Placeholder of the embeddings on the rank of the last stage, with the weight that a tied head borrows.

    Args:
        embeddings: The embeddings, on the meta device.
        path: Their path in the model.
    """

    def __init__(self, embeddings: Any, path: str):
        super().__init__(embeddings, path)
        self.token = embeddings.token

    def training_flops_per_token(self, sequence_length: int) -> float | None:
        """The operations of the whole embeddings, except those of `token`, which is a child."""
        whole = super().training_flops_per_token(sequence_length)
        of_child = flops_per_token(self.token, sequence_length)
        return None if whole is None or of_child is None else whole - of_child
