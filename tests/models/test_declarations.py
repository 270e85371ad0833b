"""Layer declarations: they are used, and a missing one is refused where it is needed, with its place."""

from functools import partial

import pytest
import torch
from torch import nn

from ml.blocks import DecoderBlock, MultiTokenPrediction, Pattern, Repeat
from ml.config import child
from ml.config.configurable import candidates, known_names
from ml.layers import (
    MLP,
    Attention,
    Buffered,
    GatedMLP,
    Layer,
    Linear,
    Mamba,
    Mixer,
    StochasticMixer,
    TwoDimensionalRotary,
)
from ml.layers.vision import PatchEmbedding
from ml.models import LanguageModel, VisionEncoder, flops_per_token, materialize
from ml.models.declarations import obstacle_to_allocation, obstacle_to_flops
from ml.models.generation import generate, reason_for_full_pass
from ml.models.sampling import Sampler

V, H = 19, 16
ATTENTION = partial(Attention, num_heads=2)
GREEDY = Sampler(temperature=0.0)


class Undeclared(nn.Module):
    """The mean of the tokens so far, without declarations."""

    def __init__(self, hidden_size):
        super().__init__()
        self.output = child("output", Linear, hidden_size, hidden_size)

    def forward(self, x, context):
        counts = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
        return self.output(x.cumsum(1) / counts)


class Denying(Undeclared, Mixer):
    """Declares that it supports neither decoding nor separate documents."""


class UndeclaredConvolution(nn.Module):
    def __init__(self, channels, **options):
        super().__init__()

    def forward(self, x, context):
        return x


class WithBuffer(Undeclared):
    def __init__(self, hidden_size):
        super().__init__(hidden_size)
        self.register_buffer("places", torch.arange(4))


def model_of(*mixers, **options) -> LanguageModel:
    """Returns a model with these mixers, one per block."""
    blocks = {f"kind_{i}": partial(DecoderBlock, mixer=mixer) for i, mixer in enumerate(mixers)}
    decoder = partial(Pattern, blocks=blocks, pattern=list(blocks))
    return LanguageModel(vocab_size=V, hidden_size=H, decoder=decoder, **options)


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(0))


UNDECLARED = {
    "a plain module": (Undeclared, "decoder.kind_1.block_1.mixer (Undeclared) does not declare"),
    "a mixer that cannot": (Denying, "decoder.kind_1.block_1.mixer (Denying) does not"),
    "its convolution": (
        partial(Mamba, convolution=UndeclaredConvolution),
        "decoder.kind_1.block_1.mixer.convolution (UndeclaredConvolution) does not declare",
    ),
    "one of several": (
        partial(StochasticMixer, mixers={"full": ATTENTION, "mean": Undeclared}),
        "decoder.kind_1.block_1.mixer.mean (Undeclared) does not declare",
    ),
}
every_undeclared = pytest.mark.parametrize(("mixer", "beginning"), UNDECLARED.values(), ids=UNDECLARED)


@every_undeclared
def test_a_mixer_that_does_not_decode_is_named_and_refused_with_a_cache(mixer, beginning):
    model = materialize(model_of(ATTENTION, mixer)).eval()
    obstacle = model.obstacle_to_decoding
    assert obstacle.startswith(beginning)
    assert "decode" in obstacle
    assert obstacle in reason_for_full_pass(model)
    with pytest.raises(ValueError, match="from a cache"):
        list(generate(model, [[1, 2]], 2, GREEDY, use_cache=True))


@every_undeclared
def test_a_mixer_that_does_not_separate_documents_is_named_and_refused_with_them(mixer, beginning):
    model, text = materialize(model_of(ATTENTION, mixer)), tokens(1, 6)
    assert model.obstacle_to_documents.startswith(beginning)
    documents = torch.tensor([[0, 0, 1, 1, 1, 1]])
    for call in (partial(model, text), partial(model.loss, text, text)):
        with pytest.raises(ValueError, match="documents"):
            call(documents=documents)


def test_the_advice_names_the_declaration_to_add():
    model = model_of(Undeclared)
    assert "ml.layers.Mixer and set `decodes = True`" in model.obstacle_to_decoding
    assert "ml.layers.Mixer and set `separates_documents = True`" in model.obstacle_to_documents


def test_multi_token_prediction_sees_packed_documents_too():
    depth = partial(MultiTokenPrediction, depth=partial(_Depth))
    model = model_of(ATTENTION, multi_token=depth)
    assert model.obstacle_to_decoding is None  # it takes no part in decoding
    assert model.obstacle_to_documents.startswith("multi_token.depth_0 (_Depth)")


class _Depth(nn.Module):
    def __init__(self, hidden_size):
        super().__init__()
        self.projection = child("projection", Linear, hidden_size, hidden_size)

    def forward(self, x, embedded, context):
        return self.projection(x + embedded)


@torch.no_grad()
@pytest.mark.parametrize("mixers", [[Undeclared], [ATTENTION, Undeclared]], ids=["alone", "beside attention"])
def test_generation_without_a_cache_equals_full_passes_over_each_prompt(mixers):
    model = materialize(model_of(*mixers)).eval()
    prompts = [tokens(length).tolist() for length in (3, 7, 3, 1)]
    together = torch.stack(list(generate(model, prompts, 5, GREEDY)), dim=1)
    for prompt, row in zip(prompts, together, strict=True):
        text = list(prompt)
        for expected in row.tolist():
            assert model(torch.tensor([text]))[0, -1].argmax().item() == expected
            text.append(expected)


def test_draws_do_not_depend_on_how_prompts_are_grouped():
    sampler, prompts = Sampler(temperature=1.0), [tokens(length).tolist() for length in (5, 2, 5)]
    model = materialize(model_of(Undeclared)).eval()
    together = torch.stack(list(generate(model, prompts, 6, sampler, seed=4)))
    assert torch.equal(together[:, 0], torch.cat(list(generate(model, prompts[:1], 6, sampler, seed=4))))


def test_a_plain_module_trains_as_one_that_declares_everything():
    class Declared(Undeclared, Mixer):
        causal = decodes = separates_documents = True

        def training_flops_per_token(self, sequence_length):
            return 0.0

    results = []
    for mixer in (Undeclared, Declared):
        model = materialize(model_of(mixer, ATTENTION)).train()
        model.loss(tokens(2, 8), tokens(2, 8)).total.backward()
        results.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert flops_per_token(model, 8) is not None


class OwnProducts(Mixer):
    """A layer with the contract's base class but without FLOPs."""

    def __init__(self, hidden_size):
        super().__init__()
        self.inner = nn.Dropout(0.0)  # a module of torch, without parameters: no products

    def forward(self, x, context):
        return x @ x.mT.tril().softmax(-1).mT


@pytest.mark.parametrize("mixer", [Undeclared, OwnProducts])
def test_flops_are_unknown_where_one_layer_does_not_declare_its_own(mixer):
    model = model_of(ATTENTION, mixer)
    assert flops_per_token(model, 8) is None
    message = rf"decoder.kind_1.block_1.mixer ({mixer.__name__}) does not declare its FLOPs"
    assert obstacle_to_flops(model).startswith(message)
    assert "define `training_flops_per_token`" in obstacle_to_flops(model)


def test_modules_of_torch_count_where_they_hold_parameters():
    assert obstacle_to_flops(nn.Sequential(nn.Dropout(0.1), nn.Identity(), Linear(2, 2))) is None
    assert obstacle_to_flops(nn.Sequential(nn.Linear(2, 2))).startswith("0 (Linear) does not declare its FLOPs")


def test_buffers_that_nothing_computes_are_named():
    assert obstacle_to_allocation(model_of(ATTENTION)) is None
    obstacle = obstacle_to_allocation(model_of(ATTENTION, WithBuffer))
    assert obstacle.startswith("decoder.kind_1.block_1.mixer (WithBuffer) has the buffer places")
    assert "ml.layers.Buffered" in obstacle


def test_a_class_that_promises_and_does_not_deliver_cannot_be_built():
    class Empty(Buffered):
        pass

    with pytest.raises(TypeError, match="reset_buffers"):
        Empty()


def encoder_of(mixer) -> VisionEncoder:
    block = partial(DecoderBlock, mixer=mixer, mlp=partial(MLP, intermediate_size=8))
    patches = partial(PatchEmbedding, image_size=(4, 4), patch_size=2)
    return VisionEncoder(H, hidden_size=8, patches=patches, encoder=partial(Repeat, block=block, num_blocks=1))


def test_a_vision_encoder_takes_only_mixers_that_declare_to_see_everything():
    class Seeing(Undeclared, Mixer):
        causal = False

    sighted = partial(ATTENTION, causal=False, rotary=TwoDimensionalRotary)
    encoder_of(Seeing)
    encoder_of(partial(StochasticMixer, mixers={"a": sighted, "b": Seeing}))
    with pytest.raises(ValueError, match=r"encoder\.block_0\.mixer \(Undeclared\) does not declare .*`causal = False`"):
        encoder_of(Undeclared)
    with pytest.raises(ValueError, match=r"encoder\.block_0\.mixer \(StochasticMixer\) does not declare"):
        encoder_of(partial(StochasticMixer, mixers={"a": sighted, "b": Undeclared}))


def test_a_decoder_that_does_not_declare_its_depth_is_refused_where_depth_is_needed():
    class Decoder(Undeclared):
        pass

    LanguageModel(vocab_size=V, hidden_size=H, decoder=Decoder)
    with pytest.raises(ValueError, match=r"decoder \(Decoder\) does not declare how many layers it has"):
        LanguageModel(vocab_size=V, hidden_size=H, decoder=Decoder, multi_token=MultiTokenPrediction)


def test_the_longest_sequence_is_the_least_that_any_layer_takes():
    class Short(Undeclared, Layer):
        max_sequence_length = 7

    assert model_of(ATTENTION).max_sequence_length is None
    assert model_of(ATTENTION, Short).max_sequence_length == 7


def layers_there_are() -> list[type]:
    targets = {info.target for name in known_names() for info in candidates(name) if info.selector.startswith("ml.")}
    return sorted((t for t in targets if isinstance(t, type) and issubclass(t, nn.Module)), key=lambda t: t.__name__)


@pytest.mark.parametrize("layer", layers_there_are(), ids=lambda layer: layer.__name__)
def test_every_layer_there_is_declares(layer):
    assert issubclass(layer, Layer)
    assert layer.training_flops_per_token is not Layer.training_flops_per_token
    if issubclass(layer, Mixer):
        assert layer.separates_documents is True
        assert layer is Attention or layer.__name__ == "LatentAttention" or layer.decodes is True


def test_shipped_layers_hold_no_undeclared_buffer_and_the_rest_declares_all():
    model = model_of(ATTENTION, Mamba, partial(StochasticMixer, mixers={"a": ATTENTION}))
    assert (model.obstacle_to_decoding, model.obstacle_to_documents, obstacle_to_flops(model)) == (None, None, None)
    assert obstacle_to_flops(GatedMLP(8)) is None


def test_a_learning_rate_scale_counts_where_it_is_declared_and_is_refused_elsewhere():
    class Scaled(Undeclared):
        def __init__(self, hidden_size):
            super().__init__(hidden_size)
            self.lr_scale = 0.0

    class DeclaredScale(Scaled, Mixer):
        pass

    frozen = {name for name, p in model_of(ATTENTION, DeclaredScale).named_parameters() if not p.requires_grad}
    assert frozen == {f"decoder.kind_1.block_1.mixer.output.{name}" for name in ("weight", "bias")}
    with pytest.raises(ValueError, match=r"Scaled has an lr_scale and .*derive it from ml\.layers\.Layer"):
        model_of(ATTENTION, Scaled)
