"""Configurations to save, bindings to put on top of them, and what one configuration comes to."""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import torch

import ml
import ml.training  # registers what a file can name
from ml.api import build_trainer
from ml.building import _trainer_on_meta
from ml.config import ConfigError, load

LEFT_OUT = "the saved run left out its value"
TRAINING = ("data/standard_library.gin", "training/default.gin")
WITHOUT_MODEL = {"finetune"}
RECIPES = {
    "base.gin": ("base.gin",),
    **{
        p.stem: (f"recipes/{p.name}",)
        for p in sorted(ml.SHIPPED_CONFIGS.glob("recipes/*.gin"))
        if p.stem not in WITHOUT_MODEL
    },
    **{name: (f"models/{name}.gin", *TRAINING) for name in ("mistral_7b", "mixtral_8x7b", "deepseek_v3_16b")},
}
STEPS = ["Trainer.num_steps = 20", "AdamW.learning_rate = 1e-3", "CosineSchedule.warmup_steps = 4"]
REPEATED = ["decoder/Repeat.num_blocks = 2"]
# What a recipe must be told, and fewer blocks and experts: equal ones say the same.
TOLD = {
    "deepseek_v3_16b": [*STEPS, "sparse/Repeat.num_blocks = 2", "MixtureOfExperts.num_experts = 8"],
    "mixtral_8x7b": [*STEPS, *REPEATED, "MixtureOfExperts.num_experts = 2"],
    "mistral_7b": [*STEPS, *REPEATED],
    "gemma3_1b": ["TokenFiles.paths = 'tokens'", "Pattern.num_blocks = 6"],
    "hybrid_1.5b": ["TokenFiles.paths = 'tokens'", "Pattern.num_blocks = 4"],
    **{
        name: ["TokenFiles.paths = 'tokens'", *REPEATED]
        for name in (
            "gpt2_124m",
            "llama_1b",
            "llama_8b_hsdp",
            "llama_70b_tensor",
            "mamba2_1.3b",
            "qwen3_0.6b",
            "token_files_30m",
        )
    },
}
# For each mixer what it must be told where a recipe was made for another one.
MIXERS = {
    "Attention": ["Attention.num_heads = 4", "Attention.num_kv_heads = 2", "Attention.rotary = @Rotary"],
    "LatentAttention": ["LatentAttention.num_heads = 4", "LatentAttention.key_value_rank = 16"],
    "Mamba": [],
    "Mamba2": ["Mamba2.head_size = 16"],
    "GatedDeltaNet": ["GatedDeltaNet.num_heads = 2"],
    "KimiDeltaAttention": ["KimiDeltaAttention.num_heads = 2"],
    "ShortConvolutionMixer": [],
    "StochasticMixer": ["StochasticMixer.mixers = {'short': @ShortConvolutionMixer, 'mamba': @Mamba}"],
}


class Meaning(NamedTuple):
    """All that a configuration decides: every parameter of every part, every weight, and how each is trained."""

    values: dict[tuple[str, str, str], str]
    weights: dict[str, tuple[int, ...]]
    groups: list[tuple]


def meaning(config: ml.Config) -> Meaning:
    """Builds a configuration on the meta device and returns everything that it decides."""
    trainer = build_trainer(config)
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    return Meaning(
        {(r.path, r.configurable, r.parameter): r.value for r in config.records()},
        {name: tuple(parameter.shape) for name, parameter in trainer.model.named_parameters()},
        [(g.lr_scale, g.weight_decay, sorted(names[id(p)] for p in g.parameters)) for g in trainer.groups()],
    )


def unrehearsed(files: Iterable[str], bindings: Iterable[str]) -> ml.Config | ConfigError:
    """Loads a configuration without passing tensors through its model, or returns why it is refused.

    Equal models pass or fail alike, and the comparison of two configurations shows whether their models are equal.
    """
    try:
        return load(list(files), list(bindings), root=_trainer_on_meta, shipped=ml.SHIPPED_CONFIGS)
    except ConfigError as error:
        return error


@functools.lru_cache(maxsize=64)
def _loaded(recipe: str, bindings: tuple[str, ...]) -> ml.Config | ConfigError:
    return unrehearsed(RECIPES[recipe], [*TOLD.get(recipe, REPEATED), *bindings])


def loaded(recipe: str, bindings: Iterable[str]) -> ml.Config | ConfigError:
    """A recipe with bindings, or why it is refused."""
    return _loaded(recipe, tuple(bindings))


def bound(config: ml.Config, binding: str) -> ml.Config | ConfigError:
    """A binding on top of a saved configuration, or why it is refused."""
    return unrehearsed((), [config.operative, binding])


def assert_promise(recipe: str, bindings: list[str]) -> ml.Config | ConfigError:
    """Saves the recipe before each binding and compares with the recipe and all bindings so far; returns the last."""
    config = loaded(recipe, ())
    for count, binding in enumerate(bindings, start=1):
        direct, config = loaded(recipe, bindings[:count]), bound(config, binding)
        assert_same(direct, config)
        if isinstance(config, ConfigError):
            break
    return config


def assert_same(direct: ml.Config | ConfigError, saved: ml.Config | ConfigError) -> None:
    """Requires that both are refused or both build the same, unless the saved run omitted an option that is needed."""
    if isinstance(saved, ConfigError):
        assert isinstance(direct, ConfigError) or LEFT_OUT in str(saved), str(saved)
        return
    assert not isinstance(direct, ConfigError), str(direct)
    ours, theirs = meaning(direct), meaning(saved)
    assert theirs.values == ours.values
    assert theirs.weights == ours.weights
    assert theirs.groups == ours.groups
    assert saved.fingerprint == direct.fingerprint


def initial_weights(config: ml.Config) -> dict[str, torch.Tensor]:
    """The weights before the first step."""
    return dict(ml.build(config).state_dict())
