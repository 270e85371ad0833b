"""`Trainer` is immutable settings: a run does not change it."""

import pytest
import torch

from ml.training import RunError, RunFolder, train
from ml.training.step import train_step

CPU = torch.device("cpu")


def test_a_trainer_is_frozen(tiny):
    trainer = tiny()
    for name in vars(trainer):
        with pytest.raises(AttributeError, match=rf"Trainer\.{name} is a setting"):
            setattr(trainer, name, None)
    with pytest.raises(AttributeError, match=r"Trainer\.dataset is a setting"):
        trainer.dataset = None


@pytest.mark.parametrize("binding", ["", "LanguageModel.tie_word_embeddings = True", "Repeat.shared = True"])
def test_states_of_one_trainer_are_independent(tiny, run_in, binding):
    trainer = tiny(binding)
    before = {name: id(value) for name, value in vars(trainer).items()}
    run_in(trainer)
    assert {name: id(value) for name, value in vars(trainer).items()} == before
    assert all(parameter.is_meta for parameter in trainer.model.parameters())
    first, second = trainer.start(CPU), trainer.start(CPU)
    initial = {name: weight.clone() for name, weight in first.model.state_dict().items()}
    train_step(first, trainer.batches(trainer.open_data().training, 1), trainer.precision, 1.0, CPU)
    assert any(not torch.equal(weight, initial[name]) for name, weight in first.model.state_dict().items())
    assert all(torch.equal(weight, initial[name]) for name, weight in second.model.state_dict().items())
    assert [group.names for group in second.groups] == [group.names for group in first.groups]


def test_distillation_without_a_teacher_is_refused_before_anything_is_written(tiny, tmp_path):
    trainer = tiny("Trainer.distillation = @Distillation", "Distillation.teacher = 'nowhere'")
    with pytest.raises(RunError, match="goes with a teacher"):
        train(trainer, trainer.open_data(), RunFolder(tmp_path / "run"), CPU)
    assert not (tmp_path / "run").exists()
