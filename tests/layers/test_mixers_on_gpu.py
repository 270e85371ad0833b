"""Every mixer on a GPU against the same layer in float64 on the CPU."""

import copy

import pytest
import torch
from devices import CPU, CUDA, relative_error
from mixer_cases import ATTENTION
from test_every_mixer import B, H, T, build, context_of, documents_of_rows, every_mixer, random_input
from torch import Tensor, nn

from ml.blocks import ActivationCheckpointing, DecoderBlock, SelectiveActivationCheckpointing
from ml.layers import Cache, Context
from ml.layers.context import places_in_documents
from ml.models import materialize

pytestmark = pytest.mark.gpu
# Root mean squares. float32 rounds to 6e-8, and sums and recurrences over a few dozen terms let that grow; TF32 would
# round to 5e-4. bfloat16 rounds to 4e-3, several times one after another.
FLOAT32, BFLOAT16 = 3e-5, 2e-1


def results(layer: nn.Module, x: Tensor, documents: Tensor | None, autocast: bool = False) -> dict[str, Tensor]:
    """Returns the output and every gradient."""
    x = x.detach().requires_grad_()
    context = Context() if documents is None else Context(places_in_documents(documents), documents)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
        output = layer(x, context)
    output.backward(random_input(B, T, H, seed=5).to(output))
    gradients = {name: weight.grad for name, weight in layer.named_parameters() if weight.grad is not None}
    return {"output": output, "x": x.grad, **gradients}


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor], limit: float) -> None:
    """Some gradients are zero but for rounding, such as that of a bias of the keys: those count by the others' size."""
    assert found.keys() == expected.keys()
    least = expected["x"].square().mean().sqrt().item()
    errors = {name: relative_error(value, expected[name], least) for name, value in found.items()}
    assert max(errors.values()) < limit, errors


@every_mixer
@pytest.mark.parametrize("packed", [False, True], ids=["whole rows", "documents"])
@pytest.mark.parametrize(("autocast", "limit"), [(False, FLOAT32), (True, BFLOAT16)], ids=["float32", "bfloat16"])
def test_outputs_and_gradients_are_those_of_the_cpu(mixer, packed, autocast, limit):
    layer, x, documents = build(mixer), random_input(B, T, H), documents_of_rows() if packed else None
    expected = results(layer, x, documents)
    on_gpu = copy.deepcopy(layer).float().to(CUDA)
    on_gpu.zero_grad()
    found = results(on_gpu, x.float().to(CUDA), None if documents is None else documents.to(CUDA), autocast)
    assert_near(found, expected, limit)


@every_mixer
@torch.no_grad()
def test_decoding_from_a_cache_is_one_pass_on_the_cpu(mixer):
    layer, x = build(mixer), random_input(B, T, H)
    on_gpu, cache, outputs = copy.deepcopy(layer).float().to(CUDA), Cache(), []
    for piece in x.float().to(CUDA).split([5, 1, 1, T - 7], dim=1):
        length = piece.shape[1]
        positions = torch.arange(length, device=CUDA) + cache.num_tokens
        outputs.append(on_gpu(piece, Context(positions, cache=cache)))
        cache.advance(length, None)
    assert relative_error(torch.cat(outputs, dim=1), layer(x, context_of(Cache(), T))) < FLOAT32


@pytest.mark.parametrize("policy", [ActivationCheckpointing, SelectiveActivationCheckpointing])
def test_recomputed_dropout_is_the_same(policy):
    found = []
    for checkpointing in (None, policy):
        made = DecoderBlock(64, mixer=ATTENTION, dropout=0.5, activation_checkpointing=checkpointing)
        block = materialize(made, CUDA)
        for number, weight in enumerate(block.parameters()):
            values = torch.randn(weight.shape, generator=torch.Generator(CPU).manual_seed(number))
            weight.data.copy_(0.1 * values)
        torch.cuda.manual_seed(3)
        x = random_input(B, T, 64).float().to(CUDA)
        x.requires_grad_()
        block(x, Context()).square().sum().backward()
        found.append([x.grad, *(weight.grad for weight in block.parameters())])
    torch.testing.assert_close(*found)
