"""Draws bindings at random: of any parameter of any part that a recipe builds, with a value of the right kind."""

import functools
import inspect
from collections.abc import Callable

from hypothesis import strategies as st
from later_bindings import MIXERS, loaded

from ml.config.configurable import Configurable, candidates, known_names
from ml.config.types import mismatch, takes_constructor
from ml.config.values import Reference

# Parts with options that are set on a separate line.
ADDED = [
    *("\n".join([f"DecoderBlock.mixer = @{mixer}", *options]) for mixer, options in MIXERS.items()),
    *("\n".join([f"block_0/DecoderBlock.mixer = @{mixer}", *options]) for mixer, options in MIXERS.items()),
    "Linear.apply_peft = @LoRA\nLoRA.rank = 2",
    "query/Linear.apply_peft = @LoRA\nLoRA.rank = 2",
    "DecoderBlock.mlp = @MixtureOfExperts\nMixtureOfExperts.num_experts = 4",
    "LanguageModel.multi_token = @MultiTokenPrediction",
    "Embeddings.position = @PositionEmbedding\nPositionEmbedding.num_positions = 100000",
    "Trainer.validation = {'books': @Validation}\nbooks/Validation.every = 7",
    "Trainer.optimizer = @CombinedOptimizer",
    "wide/GatedMLP.intermediate_size = 96\nblock_0/DecoderBlock.mlp = @wide/GatedMLP",
    "MIXER = @Mamba\nDecoderBlock.mixer = %MIXER",
]
# No integers: sizes must match each other, and a wrong one is refused on both sides.
LITERALS = {bool: ["True", "False"], float: ["0.0", "0.25", "0.5", "1.0"], str: []}


@functools.cache
def registered() -> list[Configurable]:
    """Everything that Juniper registers."""
    return [info for name in known_names() for info in candidates(name) if info.selector.startswith("ml.")]


def texts_for(annotation: object) -> list[str]:
    """Values of gin that fit an annotation."""
    texts = [text for kind, some in LITERALS.items() if mismatch(kind(), annotation) is None for text in some]
    if mismatch(None, annotation) is None:
        texts.append("None")
    if takes_constructor(annotation):
        fitting = [info for info in registered() if mismatch(Reference((), info), annotation) is None]
        texts += [f"@{info.name}" for info in fitting]
    return texts


@functools.cache
def places(recipe: str) -> tuple[dict[str, Configurable], list[tuple[str, ...]]]:
    """Configurables that a recipe builds, by name, and the paths of its modules."""
    config = loaded(recipe, [])
    built = {record.configurable: tuple(record.path.split("/")) for record in config.records()}
    paths = sorted({tuple(record.path.split("/")) for record in config.records() if record.path})
    return {name: candidates(name)[0] for name in sorted(built)}, paths


@st.composite
def scopes(draw: Callable, recipe: str) -> str:
    """No scope, or some components of a path of the recipe in order, one of them perhaps as a range."""
    if draw(st.booleans()):
        return ""
    path = draw(st.sampled_from(places(recipe)[1]))
    kept = draw(st.sets(st.sampled_from(range(len(path))), min_size=1, max_size=2))
    parts = [path[index] for index in sorted(kept)]
    spelled = [f"{p}_to_{int(p[-1]) + 1}" if p.startswith("block_") and draw(st.booleans()) else p for p in parts]
    return "".join(f"{part}/" for part in spelled)


@st.composite
def bindings(draw: Callable, recipe: str) -> str:
    """One binding, or a part with its options."""
    if draw(st.integers(0, 3)) == 0:
        return draw(st.sampled_from(ADDED))
    parts = places(recipe)[0]
    everything = draw(st.integers(0, 4)) == 0
    info = draw(st.sampled_from(registered() if everything else list(parts.values())))
    choices = [
        f"{info.name}.{spec.name} = {text}"
        for spec in info.parameters.values()
        if spec.default is not inspect.Parameter.empty
        for text in texts_for(spec.annotation)
    ]
    return draw(scopes(recipe)) + draw(st.sampled_from(choices)) if choices else draw(st.sampled_from(ADDED))
