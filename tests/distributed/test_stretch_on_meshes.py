"""Sequences divided over the context axis together with other axes: loss and gradients are those of one process."""

import copy
from functools import partial

import pytest
import torch
from processes import run_ranks
from tensor_models import LOSS_TOLERANCE, SEED, assert_gradients_equal, batch_of, gradients_of, small_model

from ml.distributed import Layout, Mesh, MeshSizes, parallelize
from ml.distributed.initialization import materialize_shards
from ml.models import materialize

STEPS = ["time_step_bias.dt_min = 0.5", "time_step_bias.dt_max = 1.0", "normal.std = 0.1"]
HYBRID = [
    "LanguageModel.decoder = @Pattern",
    "Pattern.blocks = {'full': @DecoderBlock, 'scan': @DecoderBlock, 'rule': @DecoderBlock, 'latent': @DecoderBlock}",
    "Pattern.pattern = ('scan', 'full', 'rule', 'latent')",
    "scan/DecoderBlock.mixer = @Mamba2",
    "rule/DecoderBlock.mixer = @GatedDeltaNet",
    "latent/DecoderBlock.mixer = @LatentAttention",
    "Mamba2.head_size = 8",
    "Mamba2.state_size = 6",
    "GatedDeltaNet.num_heads = 4",
    "LatentAttention.num_heads = 4",
    "LatentAttention.key_value_rank = 12",
    "LatentAttention.head_size = 8",
    "LatentAttention.rotary_size = 4",
    "LatentAttention.value_head_size = 6",
    *STEPS,
]
AGAIN = "DecoderBlock.activation_checkpointing = @ActivationCheckpointing"
CASES = {
    "hybrid": HYBRID,
    "hybrid, recomputed": [*HYBRID, AGAIN],
    "window, tied": ["Attention.window_size = 5", "LanguageModel.tie_word_embeddings = True"],
    "shared blocks, recomputed": [
        "DecoderBlock.mixer = @Mamba", "Mamba.state_size = 4", "Repeat.shared = True", AGAIN, *STEPS,
    ],
    "further tokens": ["LanguageModel.multi_token = @MultiTokenPrediction"],
}  # fmt: skip
SIZES = {
    "data 2 x context 2": MeshSizes(data_shard=2, context=2),
    "replicate 2 x context 2": MeshSizes(data_replicate=2, context=2),
    "context 2 x tensor 2": MeshSizes(context=2, tensor=2),
}


def rows_of(batch, rank, num_ranks):
    """The sequences of a data rank; the number of targets stays that of the whole batch."""
    tokens, targets, documents = (x.chunk(num_ranks)[rank] for x in (batch.tokens, batch.targets, batch.documents))
    return batch._replace(tokens=tokens, targets=targets, documents=documents)


def of_one_process(model, batch):
    sums, gradients = gradients_of(materialize(copy.deepcopy(model), "cpu", SEED), batch)
    return sums.total.detach(), sums.cross_entropy.detach(), gradients


def every_case(world, sizes):
    layout = Layout.of(world, sizes)
    mesh = Mesh(**sizes._asdict())
    for name, bindings in CASES.items():
        model = small_model(bindings)
        batch = batch_of(num_rows=4, documents=True)
        expected, cross_entropy, gradients = world.first(partial(of_one_process, model, batch))
        parallelize(model, layout, mesh, compile=False)
        materialize_shards(model, world, "cpu", SEED)
        try:
            rows = rows_of(batch, layout.data_rank, layout.num_data_ranks)
            found, found_gradients = gradients_of(model, rows)
            total = layout.sum(found.total.detach())
            torch.testing.assert_close(total, expected, rtol=LOSS_TOLERANCE, atol=0.0)
            assert_gradients_equal(found_gradients, gradients)
            model.eval()
            with torch.no_grad():
                evaluated = layout.sum(model.loss(**rows.inputs).cross_entropy)
            torch.testing.assert_close(evaluated, cross_entropy, rtol=LOSS_TOLERANCE, atol=0.0)
        except Exception as error:
            raise AssertionError(name) from error


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_loss_and_gradients_on_four_ranks(sizes):
    run_ranks(4, every_case, sizes)
