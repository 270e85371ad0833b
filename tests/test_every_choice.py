"""Whatever part is put in a place, the configuration is valid or refused by a `ConfigError`.

All pairs of a parameter and a registered part that passes its type check are found in the registry. A fixed fraction of
them is tried.
"""

import re
import zlib

import pytest
from torch import nn

import ml
from ml.config import ConfigError, configurable
from ml.config.configurable import candidates, known_names
from ml.config.signatures import Configurable
from ml.config.types import mismatch, takes_constructor
from ml.config.values import Reference

TINY = ("recipes/tiny.gin", ["Repeat.num_blocks = 1"])
VISION = ("recipes/vision_language.gin", ["Repeat.num_blocks = 1"])
EXPERTS = (TINY[0], [*TINY[1], "DecoderBlock.mlp = @MixtureOfExperts", "MixtureOfExperts.num_experts = 4"])


@configurable(module="choices")
class Faulty(nn.Module):
    """Its own code is wrong, in one of several ways."""

    def __init__(self, hidden_size: int, how: str = "attribute"):
        super().__init__()
        if how == "attribute":
            self.nothing.more = 1
        raise {"runtime": RuntimeError("two lines\nof it"), "key": KeyError("a"), "type": TypeError("no sum")}[how]


def registered() -> list[Configurable]:
    return [info for name in known_names() for info in candidates(name) if info.selector.startswith("ml.")]


def refusal(recipe: tuple[str, list[str]], *bindings: str) -> str | None:
    file, others = recipe
    try:
        ml.load(file, [*others, *bindings], allow_unused_bindings=True)
    except ConfigError as error:
        return str(error)
    return None


def choices(recipe: tuple[str, list[str]]) -> list[str]:
    """Bindings that put a part in a place of a recipe, whether it belongs there or not."""
    file, bindings = recipe
    built = {record.configurable for record in ml.load(file, bindings, allow_unused_bindings=True).records()}
    return [
        f"{info.name}.{spec.name} = @{part.name}"
        for info in registered()
        if info.name in built
        for spec in info.parameters.values()
        if takes_constructor(spec.annotation)
        for part in registered()
        if mismatch(Reference((), part), spec.annotation) is None
    ]


@pytest.mark.parametrize(
    ("recipe", "every"), [(TINY, 60), (VISION, 25), (EXPERTS, 25)], ids=["tiny", "vision", "experts"]
)
def test_a_part_in_any_place_is_valid_or_a_configuration_error(recipe, every):
    others = set(choices(TINY)) if recipe is not TINY else set()
    tried = [c for c in choices(recipe) if c not in others and zlib.crc32(c.encode()) % every == 0]
    refused = [choice for choice in tried if refusal(recipe, choice)]  # any other error fails the test
    assert refused


@pytest.mark.parametrize("part", ["Attention", "Mamba2", "Projections"])
def test_what_a_place_needs_of_its_part_is_asked_when_it_is_built(part):
    message = refusal(VISION, f"VisionEncoder.patches = @{part}")
    assert message.splitlines()[1].startswith("  --gin_bindings[1]: ")
    lacks = re.search(rf"{part} \(at vision/patches\) has no `(num_patches|image_shape)`, which VisionEncoder", message)
    assert lacks or part == "Projections"  # which cannot be built there at all


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("attribute", "AttributeError: 'Faulty' object has no attribute 'nothing' (test_every_choice.py, line "),
        ("runtime", "RuntimeError: two lines (test_every_choice.py, line "),
        ("key", "KeyError: 'a' (test_every_choice.py, line "),
        ("type", "TypeError: no sum (test_every_choice.py, line "),
    ],
)
def test_an_error_in_the_code_of_a_part_names_its_line(how, message):
    found = refusal(TINY, "DecoderBlock.mlp = @Faulty", f"Faulty.how = '{how}'")
    assert f"--gin_bindings[1]: Faulty cannot be built (at decoder/block_0/mlp): {message}" in found
