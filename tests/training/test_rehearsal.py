"""Errors found before a run by one pass on the meta device."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ml
from ml.cli import dry_run
from ml.config import ConfigError, configurable
from ml.layers.linear import Linear
from ml.training import rehearsal

TINY = "recipes/tiny.gin"
PATTERN = "\n".join(
    [
        "LanguageModel.decoder = @Pattern",
        "Pattern.blocks = {'a': @DecoderBlock, 'b': @DecoderBlock}",
        "Pattern.pattern = ['a', 'a', 'b', 'a']",
    ]
)
VISION = "recipes/vision_language.gin"


class Mixer(nn.Module):
    def __init__(self, hidden_size: int):
        super().__init__()
        self.linear = Linear(hidden_size, hidden_size)


@configurable(module="rehearsal")
class TwoValues(Mixer):
    def forward(self, x: Tensor, context) -> tuple:
        return self.linear(x), None


@configurable(module="rehearsal")
class Narrow(Mixer):
    def forward(self, x: Tensor, context) -> Tensor:
        return self.linear(x)[..., :-1]


@configurable(module="rehearsal")
class Multiplies(Mixer):
    def forward(self, x: Tensor, context) -> Tensor:
        return self.linear(x[..., 1:])


@configurable(module="rehearsal")
class Wrong(Mixer):
    def forward(self, x: Tensor, context) -> Tensor:
        return x.nothing


@configurable(module="rehearsal")
class OwnFault(Mixer):
    def forward(self, x: Tensor, context) -> Tensor:
        return self.nothing(x)


@configurable(module="rehearsal")
class HeadWithoutLoss(nn.Module):
    def __init__(self, hidden_size: int, vocab_size: int, tied: bool):
        super().__init__()
        self.linear = Linear(hidden_size, vocab_size)

    def forward(self, x: Tensor, tied_weight: Tensor | None = None) -> Tensor:
        return self.linear(x)


@configurable(module="rehearsal")
class EmbeddingsWithoutTable(nn.Module):
    def __init__(self, vocab_size: int, hidden_size: int):
        super().__init__()
        self.linear = Linear(hidden_size, vocab_size)

    def forward(self, tokens: Tensor, context) -> Tensor:
        return self.linear.weight[tokens]


READS = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: 1.0 if x.sum() > 0 else 2.0,
    "list": lambda x: x[0, 0].tolist()[0],
    "mask": lambda x: x[x > 0].mean(),
    "nonzero": lambda x: len(x.nonzero()),
    "unique": lambda x: x.unique().sum(),
    "numpy": lambda x: float(x.detach().numpy().max()),
    "text": lambda x: float(f"{x.sum():.3f}"),
    "pointer": lambda x: x.data_ptr(),
}


@configurable(module="rehearsal")
class ReadsValues(Mixer):
    """Uses what a pass that follows shapes does not have."""

    def __init__(self, hidden_size: int, what: str = "item"):
        super().__init__(hidden_size)
        self.what = what

    def forward(self, x: Tensor, context) -> Tensor:
        return self.linear(x) * READS[self.what](x)


@configurable(module="rehearsal")
class Multiples(Mixer):
    """Takes sequences of whole 16 tokens, as those of the run are."""

    def forward(self, x: Tensor, context) -> Tensor:
        return x.unflatten(1, (-1, 16)).flatten(1, 2)


@configurable(module="rehearsal")
class Draws(Mixer):
    def forward(self, x: Tensor, context) -> Tensor:
        return nn.functional.dropout(x + torch.randn(x.shape) + torch.arange(x.shape[-1]), 0.5)


@configurable(module="rehearsal")
class FailsOnDocuments(ml.layers.Mixer):
    separates_documents = True

    def __init__(self, hidden_size: int):
        super().__init__()
        self.linear = Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, context) -> Tensor:
        return self.linear(x) if context.documents is None else x + context.documents


def refusal(files, *bindings) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        ml.load(files, list(bindings))
    return [str(problem) for problem in caught.value.problems]


CASES = {
    "call": ("DecoderBlock.mixer = @RMSNorm", "RMSNorm at decoder/block_0_to_1/mixer cannot be called as its place"),
    "tuple": (
        "DecoderBlock.mixer = @TwoValues",
        "TwoValues at decoder/block_0_to_1/mixer returned a tuple, after",
    ),
    "shape": (
        "DecoderBlock.mixer = @Narrow",
        "Narrow at decoder/block_0_to_1/mixer returned a tensor of shape (2,",
    ),
    "inside": ("DecoderBlock.mixer = @Multiplies", "Linear at decoder/block_0_to_1/mixer/linear failed"),
    "error of the code": ("DecoderBlock.mixer = @Wrong", "Wrong at decoder/block_0_to_1/mixer failed"),
    "own fault": ("DecoderBlock.mixer = @OwnFault", "OwnFault at decoder/block_0_to_1/mixer failed: 'OwnFault' object"),
    "no loss": (
        "LanguageModel.head = @HeadWithoutLoss",
        "HeadWithoutLoss at head has no `loss`, which LanguageModel needs",
    ),
    "no table": (
        "LanguageModel.embeddings = @EmbeddingsWithoutTable\nLanguageModel.tie_word_embeddings = True",
        "EmbeddingsWithoutTable at embeddings has no `token`, which LanguageModel needs",
    ),
    "one block": ("block_1/DecoderBlock.mixer = @RMSNorm", "RMSNorm at decoder/block_1/mixer cannot be called"),
    "norm": (
        "DecoderBlock.normalization = @Attention",
        "Attention at decoder/block_0_to_1/mixer_norm cannot be",
    ),
    "embeddings": ("LanguageModel.embeddings = @Linear", "Linear at embeddings cannot be called"),
    "expert": (
        "DecoderBlock.mlp = @MixtureOfExperts\nMixtureOfExperts.expert = @RMSNorm",
        "RMSNorm at decoder/block_0_to_1/mlp/experts/expert_0 cannot be called",
    ),
    "drawn mixer": (
        "DecoderBlock.mixer = @StochasticMixer\nStochasticMixer.mixers = {'full': @Attention, 'other': @RMSNorm}",
        "RMSNorm at decoder/block_0_to_1/mixer/other cannot be called",
    ),
    "further token": (
        "LanguageModel.multi_token = @MultiTokenPrediction\nPredictionDepth.block = @RMSNorm",
        "RMSNorm at multi_token/depth_0/block cannot be called",
    ),
    "recomputed": (
        "DecoderBlock.mixer = @RMSNorm\nDecoderBlock.activation_checkpointing = @ActivationCheckpointing",
        "RMSNorm at decoder/block_0_to_1/mixer cannot be called",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_part_that_does_not_fit_its_place_is_an_error_at_the_binding_that_chose_it(name):
    binding, message = CASES[name]
    (problem,) = [p for p in refusal(TINY, *binding.splitlines()) if message in p]
    chosen = next(i for i, line in enumerate(binding.splitlines()) if message.split()[0] in line or name == "inside")
    assert problem.startswith(f"--gin_bindings[{chosen}]: ")
    assert problem.endswith(binding.splitlines()[chosen])


def test_a_mixer_that_fails_on_packed_documents_is_refused_in_a_run_that_packs_them():
    ml.load(TINY, "DecoderBlock.mixer = @FailsOnDocuments")
    (problem,) = refusal("recipes/chat.gin", "DecoderBlock.mixer = @FailsOnDocuments")
    assert "FailsOnDocuments at decoder/block_0_to_3/mixer failed" in problem


def test_every_kind_of_block_is_tried():
    found = refusal(TINY, PATTERN, "a/DecoderBlock.mixer = @RMSNorm", "b/DecoderBlock.mixer = @Narrow")
    messages = "\n".join(found)
    assert "RMSNorm at decoder/a/block_0_to_1/mixer, decoder/a/block_3/mixer cannot be called" in messages
    assert "Narrow at decoder/b/block_2/mixer returned" in messages


def test_the_encoder_of_images_is_run():
    (problem,) = refusal(VISION, "vision/DecoderBlock.mlp = @RMSNorm")
    assert problem.startswith("--gin_bindings[0]: RMSNorm at vision/encoder/block_0")


@pytest.mark.parametrize("what", READS)
@pytest.mark.filterwarnings("ignore:Accessing the data pointer")
def test_what_reads_values_is_not_refused(what):
    ml.load(TINY, ["DecoderBlock.mixer = @ReadsValues", f"ReadsValues.what = '{what}'"])


def test_a_dry_run_of_what_reads_values_ends_without_activations(tmp_path, capsys):
    config = ml.load(TINY, ["DecoderBlock.mixer = @ReadsValues"])
    dry_run.show(config, str(tmp_path / "run"), None, dry_run.Machines())
    shown = capsys.readouterr().out
    assert "activations are not estimated, because a step on tensors without values fails: " in shown
    assert "The configuration is right" in shown


@pytest.mark.parametrize("mixer", ["Multiples", "Draws"])
def test_what_shapes_cannot_tell_is_not_refused(mixer):
    ml.load(TINY, [f"DecoderBlock.mixer = @{mixer}"])


@pytest.mark.parametrize(
    "recipe", sorted({p.name for p in Path(ml.SHIPPED_CONFIGS, "recipes").glob("*.gin")} - {"finetune.gin"})
)
def test_each_recipe_passes_to_its_end(recipe, monkeypatch):
    """No part of a recipe is one that the rehearsal cannot judge."""
    monkeypatch.setattr(rehearsal, "_NOT_JUDGED", ())
    monkeypatch.setattr(rehearsal, "_OF_THE_TRACE", ())
    ml.load(f"recipes/{recipe}", ["TokenFiles.paths = ['tokens']"], allow_unused_bindings=True)


def test_equal_blocks_are_run_once():
    calls = []

    class Counted(Mixer):
        def forward(self, x: Tensor, context) -> Tensor:
            calls.append(1)
            return x

    configurable(module="rehearsal")(Counted)
    ml.load(
        TINY, ["decoder/Repeat.num_blocks = 9", "DecoderBlock.mixer = @Counted", "block_4/DecoderBlock.dropout = 0.1"]
    )
    assert len(calls) == 2  # block_4, and one of the others


def test_the_pass_leaves_no_state():
    state = torch.get_rng_state()
    config = ml.load(TINY, ["DecoderBlock.mixer = @Draws"])
    assert torch.equal(torch.get_rng_state(), state)
    again = ml.load(TINY, ["DecoderBlock.mixer = @Draws"])
    weights = ml.build(config).state_dict()
    assert all(torch.equal(weights[name], value) for name, value in ml.build(again).state_dict().items())
