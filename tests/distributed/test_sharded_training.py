"""Training on shards: optimizers, skipped steps, averages, adapters and norms as in one process."""

import pytest
import torch
from distributed_runs import all_trained, built, squares, trained
from processes import run_ranks

from ml.distributed import Layout, World
from ml.distributed.shards import local
from ml.training.step import train_step

MUON = ("Trainer.optimizer = @Muon", "Muon.learning_rate = 1e-2")
# Any step above the mean of the two before is skipped.
SKIPPING = ("Trainer.skip_step = @SkipStep", "SkipStep.min_history = 2", "SkipStep.threshold = 1e-4")
AVERAGE = (
    "Trainer.weight_average = @ExponentialMovingAverage",
    "ExponentialMovingAverage.decay = 0.9",
    "ExponentialMovingAverage.warmup = False",
)
KEEPING = ("FullyShard.reshard_after_forward = False",)  # of more than one process
CASES = {
    "muon, norms": (*MUON, "Trainer.norms = @Norms"),
    "adafactor, skipping": ("Trainer.optimizer = @Adafactor", *SKIPPING, "Adafactor.learning_rate = 0.3"),
    "lion, average, shared": (
        "Trainer.optimizer = @Lion",
        "Lion.learning_rate = 1e-3",
        "Repeat.shared = True",
        *AVERAGE,
    ),
    "sgd, adapters": (
        "Trainer.optimizer = @SGD",
        "Linear.apply_peft = @LoRA",
        "Parameter.lr_scale = 0.0",
        "adapter/Parameter.lr_scale = 1.0",
    ),
    "frozen, scaled, tied": (
        "LanguageModel.tie_word_embeddings = True",
        "block_0/DecoderBlock.lr_scale = 0.0",
        "block_1/DecoderBlock.lr_scale = 0.5",
        "Trainer.norms = @Norms",
    ),
}
# Of the machine; and loads, for a token with two equally good experts is sent to either.
OMITTED = {"seconds", "tokens_per_second", "mfu", "data_wait", "memory", "routers"}
STEPS = ("Trainer.num_steps = 6",)


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(squares(200))
    return str(file)


def flat(record, prefix=""):
    for name, value in record.items():
        if name in OMITTED:
            continue
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


EXPERTS = (
    "DecoderBlock.mlp = @MixtureOfExperts",
    "MixtureOfExperts.num_experts = 4",
    "MixtureOfExperts.router = @SigmoidRouter",
)
LAYOUTS = {
    "2 shards": (2, ("Mesh.data_shard = 2",), CASES),
    "2 replicas of 2 tensor ranks": (4, ("Mesh.data_replicate = 2", "Mesh.tensor = 2"), CASES),
    "2 shards of 2 groups of experts": (
        4,
        ("Mesh.data_shard = 4", "Mesh.expert = 2"),
        {"muon, experts": (*MUON, *EXPERTS, "Trainer.norms = @Norms"), "average": (*EXPERTS, *AVERAGE, *SKIPPING)},
    ),
    "2 shards of 2 stages": (
        4,
        ("Mesh.data_shard = 2", "Mesh.pipeline = 2", "Trainer.micro_batch_size = 2"),
        {"muon, tied": (*MUON, "Trainer.norms = @Norms", "LanguageModel.tie_word_embeddings = True")},
    ),
}


@pytest.mark.parametrize(("num_ranks", "mesh", "cases"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_run_on_shards_is_that_of_one_process(tmp_path, text_file, num_ranks, mesh, cases):
    bindings = [((*case, *STEPS), mesh) for case in cases.values()]
    runs = run_ranks(num_ranks, all_trained, str(tmp_path / "shards"), text_file, bindings)
    for (name, case), records in zip(cases.items(), runs[0], strict=True):
        alone = trained(World(), str(tmp_path / name), text_file, (*case, *STEPS))
        assert len(records) == len(alone) == 6
        for ours, theirs in zip(records, alone, strict=True):
            # Sums in another order, and products of Muon in bfloat16.
            assert dict(flat(ours)) == pytest.approx(dict(flat(theirs)), rel=2e-3 if "muon" in name else 1e-4), name


def test_the_cases_skip_steps(tmp_path, text_file):
    records = trained(World(), str(tmp_path), text_file, (*CASES["adafactor, skipping"], *STEPS))
    assert 0 < records[-1]["skipped_steps"] < 6


def spike_on_one_rank(world, text_file):
    history = ("SkipStep.window = 4", "SkipStep.min_history = 4", "SkipStep.threshold = 0.5")
    trainer = built(text_file, (*SKIPPING[:1], *history))
    layout = Layout.of(world, trainer.mesh_sizes(world.size))
    state, dataset = trainer.start(layout.device, layout), trainer.open_data().training

    def step(number, spoil):
        (batch,) = trainer.batches(dataset, number, layout.data_rank, layout.num_data_ranks)
        if spoil and world.rank == 1:
            batch = batch._replace(targets=torch.full_like(batch.targets, 255))  # no text has it
        (num_targets,) = world.host_sum([batch.num_targets])
        train_step(state, [batch], trainer.precision, 1.0, layout.device, num_targets=num_targets)

    for number in range(1, 7):
        step(number, spoil=False)
    before = {name: local(tensor).clone() for name, tensor in state.tensors().items()}
    step(7, spoil=True)
    changed = [name for name, old in before.items() if not torch.equal(local(state.tensors()[name]), old)]
    return changed, state.skip_step.skipped.item()


def test_a_spike_in_the_data_of_one_rank_is_skipped_by_all(text_file):
    for changed, num_skipped in run_ranks(2, spike_on_one_rank, text_file):
        assert num_skipped == 1
        assert set(changed) == {"skip_step/skipped", "skip_step/in_a_row"}


def averages_and_weights(world, text_file):
    """Losses with the weights, with their average, and with the weights again; gathered weights are kept."""
    trainer = built(text_file, (*AVERAGE, *KEEPING[: world.size - 1]))
    layout = Layout.of(world, trainer.mesh_sizes(world.size))
    state, dataset = trainer.start(layout.device, layout), trainer.open_data().training
    part = (layout.data_rank, layout.num_data_ranks)
    for number in range(1, 5):
        batches = trainer.batches(dataset, number, *part)
        (num_targets,) = world.host_sum([sum(batch.num_targets for batch in batches)])
        train_step(state, batches, trainer.precision, 1.0, layout.device, num_targets=num_targets)
    (batch,) = trainer.batches(dataset, 9)

    @torch.no_grad()
    def loss():
        return state.model.loss(**batch.inputs).total.item() / batch.num_targets

    weights = loss()
    with state.weight_average.in_place_of_weights(state.model):
        average = loss()
    return weights, average, loss()


def test_the_average_is_measured_in_place_of_the_weights(text_file):
    expected = averages_and_weights(World(), text_file)
    assert expected[0] == expected[2]
    assert abs(expected[1] - expected[0]) > 1e-2, "the average differs from the weights"
    for found in run_ranks(2, averages_and_weights, text_file):
        assert found == pytest.approx(expected, rel=1e-4)
