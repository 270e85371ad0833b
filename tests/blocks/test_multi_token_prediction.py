"""Multi-token prediction against its definition, one position at a time."""

from functools import partial

import pytest
import torch

from ml.blocks import DecoderBlock, MultiTokenPrediction, Repeat
from ml.layers import Attention, Context, NoNorm
from ml.models import LanguageModel, materialize

V, H = 13, 8
MIXER = partial(Attention, num_heads=2)
BLOCK = partial(DecoderBlock, mixer=MIXER)


def build(num_depths=2, **options) -> LanguageModel:
    from ml.blocks.multi_token_prediction import PredictionDepth

    depth = partial(PredictionDepth, block=BLOCK)
    multi_token = partial(MultiTokenPrediction, num_depths=num_depths, depth=depth, **options)
    decoder = partial(Repeat, block=BLOCK, num_blocks=1)
    model = LanguageModel(vocab_size=V, hidden_size=H, decoder=decoder, multi_token=multi_token)
    return materialize(model).double()


def data(length=7) -> tuple[torch.Tensor, torch.Tensor]:
    text = torch.randint(0, V, (2, length + 1), generator=torch.Generator().manual_seed(0))
    return text[:, :-1], text[:, 1:].clone()


def expected_loss(model, tokens, targets, num_depths) -> torch.Tensor:
    """Returns the loss of DeepSeek-V3, equations 21 to 25, one depth at a time over the existing positions."""
    length = tokens.shape[1]
    x = model.decoder(model.embeddings(tokens, Context()), Context())
    losses = []
    for k in range(1, num_depths + 1):
        depth = getattr(model.multi_token, f"depth_{k - 1}")
        later = model.embeddings(tokens[:, k:], Context())  # positions that have a token k later
        joined = torch.cat((depth.hidden_norm(x[:, : length - k]), depth.embedding_norm(later)), dim=-1)
        x = depth.block(depth.projection(joined), Context())
        logits = model.head(x)
        total = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, k:].flatten(), reduction="sum")
        losses.append(total / targets.numel())  # divided by T, not by the T - k existing positions: equation 24
    return sum(losses) / num_depths


@pytest.mark.parametrize("num_depths", [1, 3])
def test_the_loss_is_that_of_the_model_plus_the_mean_over_the_depths(num_depths):
    model = build(num_depths, loss_weight=0.4)
    tokens, targets = data()
    plain = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
    further = expected_loss(model, tokens, targets, num_depths)
    sums = model.loss(tokens, targets)
    # Losses are float32 by contract.
    torch.testing.assert_close(sums.cross_entropy.double() / 14, plain, rtol=1e-6, atol=0)
    torch.testing.assert_close(sums.parts["multi_token_loss"].double() / 14, 0.4 * further, rtol=1e-6, atol=0)
    torch.testing.assert_close(sums.mean.double(), plain + 0.4 * further, rtol=1e-6, atol=0)
    expected = torch.autograd.grad(plain + 0.4 * further, list(model.parameters()))
    for value, other in zip(torch.autograd.grad(sums.mean, list(model.parameters())), expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-7)


def test_it_is_active_in_training_only():
    model = build().eval()
    tokens, targets = data()
    assert not model.loss(tokens, targets).parts


def test_ignored_targets_and_other_documents_are_not_predicted():
    model = build(1)
    _, targets = data()
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1]]).expand(2, -1)
    targets[:, 2] = -100  # the first token of the second document
    (_, further), *_ = model.multi_token(
        torch.zeros(2, 7, H).double(), torch.zeros(2, 7, H).double(), targets, Context(documents=documents)
    )
    kept = further != -100
    # A position predicts the target of the next position if that is in the same document and has a target.
    assert kept.tolist() == [[True, False, False, True, True, True, False]] * 2
    assert torch.equal(further[kept], targets[:, 1:][kept[:, :-1]])


def test_a_sequence_shorter_than_the_depth_has_no_additional_loss():
    model = build(3)
    tokens, targets = data(2)
    documents = torch.zeros(2, 2, dtype=torch.long)
    assert torch.isfinite(model.loss(tokens, targets, documents=documents).mean)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_depths": 0}, "num_depths must be positive"),
        ({"loss_weight": -0.1}, "loss_weight must be at least 0"),
        ({"lr_scale": -1.0}, "lr_scale must be at least 0"),
    ],
)
def test_invalid_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MultiTokenPrediction(H, 2, 4, depth=lambda size: NoNorm(size), **options)
