"""Number formats on shards: float8 products, 8-bit optimizer state and stochastic rounding, also when resumed."""

import pytest
import torch
from distributed_runs import built, squares, trained
from processes import run_ranks
from test_sharded_training import flat

from ml.distributed import Layout, World
from ml.distributed.shards import local
from ml.training.step import train_step

SHARDS = ("Mesh.data_shard = 2",)
# Scales of activations are those of a micro-batch, so both sides have micro-batches of the same sequences.
FLOAT8 = ("Trainer.precision = @MixedBFloat16", "mlp/Linear.kernel = @Float8")
MICRO = ("Trainer.micro_batch_size = 4",)
EIGHT_BITS = ("AdamW.state_format = @Blockwise8BitState", "Blockwise8BitState.block_size = 16")
ROUNDING = ("Trainer.precision = @PureBFloat16", "PureBFloat16.stochastic_rounding = True")
CASES = {
    "float8 tensorwise": (*FLOAT8, *MICRO),
    "float8 rowwise": (*FLOAT8, *MICRO, "Float8.scaling = 'rowwise'"),
    "8 bits": EIGHT_BITS,
    "8 bits, stochastic rounding": (*EIGHT_BITS, *ROUNDING),
}
# Gradients are summed in another order, which flips roundings: of bfloat16, 2^-8; of 8 bits, in a block up to 2^-7.
# Stochastic rounding draws other bits on other shards.
TOLERANCE = {"8 bits, stochastic rounding": 5e-2}
RESUMED = "8 bits, stochastic rounding"
STOP = ("Trainer.stop_at_step = 2",)


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(squares(200))
    return str(file)


def replicated_weights(world, text_file, mesh):
    """Trains some steps; returns the weights of this rank by the names that all copies of a weight have."""
    trainer = built(text_file, (*ROUNDING, *EIGHT_BITS, "LanguageModel.tie_word_embeddings = True", *mesh))
    layout = Layout.of(world, trainer.mesh_sizes(world.size))
    state, dataset = trainer.start(layout.device, layout), trainer.open_data().training
    for number in (1, 2):
        batches = trainer.batches(dataset, number, layout.data_rank, layout.num_data_ranks)
        train_step(state, batches, trainer.precision, 1.0, layout.device, num_targets=128)
    weights = {name: local(weight.detach()) for name, weight in state.model.named_parameters()}
    tied = ("embeddings.token.weight", "head.weight")
    return {"tied" if name in tied else name: weight.view(torch.int16).tolist() for name, weight in weights.items()}


def runs(world, folder, text_file):
    whole = [trained(world, f"{folder}/{index}", text_file, case, SHARDS) for index, case in enumerate(CASES.values())]
    trained(world, f"{folder}/resumed", text_file, (*CASES[RESUMED], *STOP), SHARDS)
    resumed = trained(world, f"{folder}/resumed", text_file, CASES[RESUMED], SHARDS)
    copies = [
        replicated_weights(world, text_file, mesh)
        for mesh in (("Mesh.data_replicate = 2",), ("Mesh.pipeline = 2", "Trainer.micro_batch_size = 2"))
    ]
    return dict(zip(CASES, whole, strict=True)), resumed, copies


@pytest.fixture(scope="module")
def ranks(text_file, tmp_path_factory):
    return run_ranks(2, runs, str(tmp_path_factory.mktemp("runs")), text_file)


@pytest.mark.parametrize("case", CASES)
def test_a_run_on_shards_is_that_of_one_process(case, ranks, text_file, tmp_path):
    alone, found = trained(World(), str(tmp_path), text_file, CASES[case]), ranks[0][0][case]
    assert len(alone) == len(found) == 4
    for ours, theirs in zip(found, alone, strict=True):
        assert dict(flat(ours)) == pytest.approx(dict(flat(theirs)), rel=TOLERANCE.get(case, 5e-3))


def test_a_resumed_run_repeats_codes_and_random_bits(ranks):
    whole, resumed, _ = ranks[0]
    assert [dict(flat(record)) for record in resumed] == [dict(flat(record)) for record in whole[RESUMED]]


@pytest.mark.parametrize("index", [0, 1], ids=["replicas", "a tied weight in two stages"])
def test_copies_of_a_weight_are_rounded_alike(index, ranks):
    first, second = (copies[index] for _, _, copies in ranks)
    shared = first.keys() & second.keys()
    assert shared == (first.keys() if index == 0 else {"tied"})
    assert all(first[name] == second[name] for name in shared)
