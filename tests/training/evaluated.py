"""A small model with random weights, and its predictions by brute force: one token at a time, in float64."""

from functools import partial

import torch
import torch.nn.functional as F

from ml.blocks import DecoderBlock, Pattern
from ml.layers import Attention, Mamba2
from ml.models import LanguageModel, materialize

DECODER = partial(
    Pattern,
    blocks={
        "ssm": partial(DecoderBlock, mixer=partial(Mamba2, head_size=16, state_size=8)),
        "full": partial(DecoderBlock, mixer=partial(Attention, num_heads=4)),
    },
    pattern=["ssm", "full"],
)


def small_model(**options) -> LanguageModel:
    model = materialize(LanguageModel(vocab_size=256, hidden_size=32, decoder=DECODER, **options), seed=3).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # far from uniform
    return model


@torch.no_grad()
def nats_by_hand(model: LanguageModel, before: list[int], token: int) -> tuple[float, int]:
    """Returns the loss of `token` after the tokens `before`, and the most likely token."""
    logits = model.double()(torch.tensor([before]))[0, -1]
    model.float()
    return -F.log_softmax(logits, dim=-1)[token].item(), int(logits.argmax())
