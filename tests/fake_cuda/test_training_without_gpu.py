"""A training step on CUDA, of every recipe, mixer and optimizer, on a machine that has no GPU."""

import pytest
from test_recipes import CONFIGS, SMALL, TRAINING, load, write_data
from training_on_cuda import run_on_cuda

from ml.api import build_trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_data([f"{number} and {number + 1}.\n" for number in range(400)])
    return folder


BINDINGS = [
    *TRAINING, "Trainer.batch_size = 1", "Trainer.num_steps = 1",
]


@pytest.mark.parametrize("recipe", CONFIGS)
def test_a_recipe_trains_on_cuda(recipe, data, tmp_path, monkeypatch, cuda):
    monkeypatch.chdir(data)
    bindings = [*(b for b in BINDINGS if "precision" not in b), *SMALL[recipe]]
    trainer = build_trainer(load(recipe, bindings, allow_unused_bindings=True))
    run_on_cuda(trainer, tmp_path / "run", cuda, [True])
