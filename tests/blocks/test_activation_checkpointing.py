"""Activation checkpointing: bitwise equal results with less memory."""

from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ml.blocks import ActivationCheckpointing, DecoderBlock, Repeat, SelectiveActivationCheckpointing
from ml.layers import MLP, Attention
from ml.models import LanguageModel, materialize

POLICIES = {
    "full": ActivationCheckpointing,
    "selective": SelectiveActivationCheckpointing,
    "selective, nothing saved": partial(SelectiveActivationCheckpointing, saved=()),
}
TOKENS = torch.arange(24).view(2, 12) % 11


def build(policy, dtype=torch.float32) -> LanguageModel:
    mixer = partial(Attention, num_heads=2, dropout=0.2)
    block = partial(DecoderBlock, mixer=mixer, mlp=MLP, dropout=0.1, activation_checkpointing=policy)
    model = LanguageModel(vocab_size=11, hidden_size=16, decoder=partial(Repeat, block=block, num_blocks=2))
    return materialize(model).to(dtype)


def loss_and_gradients(model) -> list[torch.Tensor]:
    torch.manual_seed(5)
    loss = model.loss(TOKENS, TOKENS).mean
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_loss_and_gradients_are_bitwise_equal_with_dropout(policy, dtype):
    for value, expected in zip(
        loss_and_gradients(build(policy, dtype)), loss_and_gradients(build(None, dtype)), strict=True
    ):
        assert torch.equal(value, expected)


class Count(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.counts = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function.overloadpacket)
        self.counts[name] = self.counts.get(name, 0) + 1
        return function(*args, **(kwargs or {}))


def operations(policy) -> dict[str, int]:
    model = build(policy)
    with Count() as count:
        loss_and_gradients(model)
    return count.counts


def test_full_checkpointing_recomputes_products_and_selective_does_not():
    none, full, selective = (operations(policy) for policy in (None, *list(POLICIES.values())[:2]))
    assert full["aten.addmm"] == 2 * none["aten.addmm"]
    assert selective["aten.addmm"] == none["aten.addmm"]
    assert full["aten.gelu"] == selective["aten.gelu"] == 2 * none["aten.gelu"]


def test_the_saved_operations_can_be_chosen():
    chosen = operations(partial(SelectiveActivationCheckpointing, saved=("aten.gelu",)))
    none = operations(None)
    assert chosen["aten.gelu"] == none["aten.gelu"]
    assert chosen["aten.addmm"] == 2 * none["aten.addmm"]


def test_it_saves_fewer_bytes_for_the_backward_pass():
    kept = {}
    for name, policy in {"none": None, **POLICIES}.items():
        model, sizes = build(policy), []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=sizes: s.append(x.numel()) or x, lambda x: x):
            model.loss(TOKENS, TOKENS)
        kept[name] = sum(sizes)
    assert kept["full"] < kept["none"] / 2


def test_nothing_is_recomputed_without_gradients():
    model = build(ActivationCheckpointing)
    with Count() as count, torch.no_grad():
        model(TOKENS)
    plain = build(None)
    with Count() as expected, torch.no_grad():
        plain(TOKENS)
    assert count.counts == expected.counts


@pytest.mark.slow
@pytest.mark.parametrize("policy", [ActivationCheckpointing, SelectiveActivationCheckpointing])
def test_a_compiled_block_is_checkpointed_too(policy):
    mixer = partial(Attention, num_heads=2)
    blocks = [DecoderBlock(16, mixer=mixer, mlp=MLP, activation_checkpointing=p) for p in (policy, None)]
    results = []
    for block in map(materialize, blocks):
        block.compile()
        model = LanguageModel(vocab_size=11, hidden_size=16, decoder=lambda hidden_size, block=block: block)
        materialize(model)
        results.append(loss_and_gradients(model))
    for value, expected in zip(*results, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)  # fused kernels round differently


@pytest.mark.parametrize("name", ["aten.nothing", "mm", "nowhere.mm"])
def test_an_unknown_operation_is_named(name):
    with pytest.raises(ValueError, match=f"saved must name operations of torch.*not {name}"):
        SelectiveActivationCheckpointing(saved=(name,))
