"""Every shipped configuration loads, builds, and is what it was: its operative config equals the golden one.

To accept a change: JUNIPER_UPDATE_GOLDEN=1 python -m pytest tests/test_recipes.py
"""

import os
import re
from pathlib import Path

import pytest

import ml
from ml.api import build_trainer

GOLDEN = Path(__file__).parent / "golden"
RECIPES = [
    "base.gin",
    *sorted(p.relative_to(ml.SHIPPED_CONFIGS).as_posix() for p in ml.SHIPPED_CONFIGS.glob("recipes/*.gin")),
]
# GPT-2 small as published; Llama 3.2 1B as published; the others by 12 H² and their vocabularies, checked by hand.
PARAMETERS = {"recipes/gpt2_124m.gin": 124_439_808, "recipes/llama_1b.gin": 1_235_814_400}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_has_its_golden_operative_config(recipe):
    operative = ml.load(recipe).operative
    golden = GOLDEN / f"{Path(recipe).stem}.gin"
    if os.environ.get("JUNIPER_UPDATE_GOLDEN"):
        golden.write_text(operative, encoding="utf-8")
    assert operative == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_saved_and_loaded_is_the_same(recipe):
    golden = GOLDEN / f"{Path(recipe).stem}.gin"
    assert ml.load(golden).operative == golden.read_text(encoding="utf-8")


def test_there_is_no_golden_config_without_a_recipe():
    assert {path.stem for path in GOLDEN.iterdir()} == {Path(recipe).stem for recipe in RECIPES}


@pytest.mark.parametrize(("recipe", "count"), PARAMETERS.items(), ids=PARAMETERS)
def test_a_recipe_of_a_published_model_has_as_many_parameters(recipe, count):
    assert sum(p.numel() for p in build_trainer(ml.load(recipe)).model.parameters()) == count


def test_the_recipe_of_30_million_parameters_has_about_as_many():
    model = build_trainer(ml.load("recipes/llama_30m.gin")).model
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(30e6, rel=0.03)


def test_every_shipped_file_is_used_by_some_recipe():
    used, waiting = set(), list(RECIPES)
    while waiting:
        used.add(name := waiting.pop())
        text = (ml.SHIPPED_CONFIGS / name).read_text(encoding="utf-8")
        waiting += set(re.findall(r"^include '(.*)'", text, re.MULTILINE)) - used
    assert used == {p.relative_to(ml.SHIPPED_CONFIGS).as_posix() for p in ml.SHIPPED_CONFIGS.rglob("*.gin")}
