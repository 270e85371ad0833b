"""Validation and samples of several processes: the numbers and texts of one."""

import itertools

import pytest
from distributed_runs import squares
from processes import run_ranks
from quick_trainers import quick_trainer

from ml.data import DataError, Dataset, ImageFormat, ImageTextData, Shapes
from ml.distributed import Layout, World
from ml.errors import OtherProcessFailed

TINY = """
LanguageModel.vocab_size = 256
LanguageModel.hidden_size = 16
decoder/Repeat.num_blocks = 2
Attention.num_heads = 2
Trainer.batch_size = 6
Trainer.sequence_length = 16
Trainer.samples = @Samples
Samples.prompts = ['', '7 squared']
Samples.num_tokens = 12
normal.std = 1.0
"""
MIXTURE = """
Trainer.data = @Mixture
Mixture.datasets = {'long': @TextData, 'short': @TextData}
Mixture.weights = {'long': 0.5, 'short': 0.5}
"""
CASES = {
    "all": ["Validation.num_tokens = None"],
    "fewer sequences than processes": ["Validation.num_tokens = 20"],
    "packed documents": ["TextData.sampling = @PackedDocuments", "Validation.num_tokens = 200"],
    "mixture": [MIXTURE, "Validation.num_tokens = 333"],
    "mixture of experts": ["DecoderBlock.mlp = @MixtureOfExperts", "MixtureOfExperts.num_experts = 3"],
    "divided experts": ["DecoderBlock.mlp = @MixtureOfExperts", "MixtureOfExperts.num_experts = 6"],
}


def trainer_of(root, bindings):
    path = f"TextFiles.paths = '{root}/text.txt'"
    short = [f"short/TextFiles.paths = '{root}/short.txt'"] if MIXTURE in bindings else []
    return quick_trainer([TINY, path, *bindings, *short])


def measured(world, root):
    """The validation loss of each case, the texts of two, and what is measured when rank 1 is asked to stop."""
    found = {}
    for name, bindings in CASES.items():
        axes = [f"Mesh.expert = {world.size}"] if name == "divided experts" else []
        trainer = trainer_of(root, [*bindings, *axes])
        layout, (one,) = Layout.of(world, trainer.mesh_sizes(world.size)), trainer.open_data().validation_sets
        model = trainer.start(world.device, layout).model
        settings = (model, one.dataset, 3, trainer.precision, world.device)
        if name in ("all", "divided experts"):
            texts = trainer.samples.draw(model, trainer.data, trainer.precision, world.device, world)
            found[f"texts, {name}"] = [text["text"] for text in texts]
        if name == "all":
            calls = []
            stop = lambda calls=calls: calls.append(1) or (world.rank == world.size - 1 and len(calls) == 2)  # noqa: E731
            found["stopped"] = one.validation.measure(*settings, stop, layout), len(calls)
            settings[1].validation_part = lost_after(
                2 if world.rank == world.size - 1 else 9, one.dataset.validation_part
            )
            with pytest.raises((DataError, OtherProcessFailed)) as lost:
                one.validation.measure(*settings, layout=layout)
            found["lost"] = type(lost.value).__name__, str(lost.value)
            del settings[1].validation_part
        found[name] = one.validation.measure(*settings, layout=layout)
        assert all(module.training for module in model.modules())
    return found


def lost_after(num_batches, validation_part):
    """The batches of a rank, whose file vanishes."""

    def batches(*arguments):
        yield from itertools.islice(validation_part(*arguments), num_batches)
        raise DataError("text.txt is gone")

    return batches


@pytest.fixture(scope="module")
def by_one(tmp_path_factory):
    root = tmp_path_factory.mktemp("texts")
    (root / "text.txt").write_text(squares(200))
    (root / "short.txt").write_text("".join(f"{number} and {number + 1}\n\n" for number in range(40)))
    return root, measured(World(), root)


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_a_sharded_model_has_the_validation_loss_and_the_texts_of_one_process(by_one, num_ranks):
    root, expected = by_one
    texts = [f"texts, {name}" for name in ("all", "divided experts")]
    assert all(len(set(expected[name])) == 2 for name in texts)
    for rank, found in enumerate(run_ranks(num_ranks, measured, root)):
        is_last = rank == num_ranks - 1
        told = ("DataError", "text.txt is gone")
        assert found["lost"] == (told if is_last else ("OtherProcessFailed", f"rank {num_ranks - 1}: {told[1]}"))
        assert all(found[name] == expected[name] for name in texts)
        assert found["stopped"] == (None, 2) == expected["stopped"]
        for name in CASES:
            assert found[name] == pytest.approx(expected[name], rel=1e-6), name  # sums in another order


class Listed(Dataset):
    """Custom data that does not know of ranks."""

    def __init__(self, batches):
        self.batches = batches

    def sequences(self, indices):
        raise NotImplementedError

    def describe(self):
        raise NotImplementedError

    def validation_batches(self, size, num_tokens=None):
        yield from self.batches


def dataset_of(root, name):
    if name == "of a user":
        return Listed(list(dataset_of(root, "all").validation_batches(3)))
    if name == "images":
        captions = ImageTextData(Shapes, validation_fraction=0.4)
        return captions.open(64, 0, ImageFormat(255, 4, (3, 16, 16)))
    return trainer_of(root, CASES[name]).open_data().validation_sets[0].dataset


@pytest.mark.parametrize("name", ["all", "packed documents", "mixture", "images", "of a user"])
def test_each_held_out_sequence_is_in_the_part_of_one_rank(by_one, name):
    root, _ = by_one
    dataset = dataset_of(root, name)
    for num_tokens in (None, 100, 1):
        expected = sorted(rows_of(dataset.validation_batches(3, num_tokens)))
        for num_ranks in (1, 2, 3, 7, 50):
            parts = [list(dataset.validation_part(3, num_tokens, rank, num_ranks)) for rank in range(num_ranks)]
            assert sorted(row for part in parts for row in rows_of(part)) == expected
            assert all(len(batch.tokens) <= 3 for part in parts for batch in part)
            sizes = [sum(len(batch.tokens) for batch in part) for part in parts]
            assert max(sizes) - min(sizes) <= (6 if name == "mixture" else 3)


def rows_of(batches):
    """Tokens and targets of each sequence."""
    return [
        (tokens.tolist(), targets.tolist())
        for batch in batches
        for tokens, targets in zip(batch.tokens, batch.targets, strict=True)
    ]
