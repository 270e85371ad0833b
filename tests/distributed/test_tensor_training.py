"""Training over data and tensor ranks: the losses, norms and validation of one process."""

import re

import pytest
from distributed_runs import all_trained, built, squares, trained
from processes import run_ranks

from ml.distributed import World
from ml.training.errors import RunError

TEXT = squares(300)
CASES = {
    "sequence parallel": ((), ()),
    "whole stream, accumulation, tied": (
        ("Trainer.micro_batch_size = 2", "LanguageModel.tie_word_embeddings = True"),
        ("Mesh.sequence = False",),
    ),
    "uneven vocabulary and width": (("LanguageModel.vocab_size = 257", "GatedMLP.intermediate_size = 37"), ()),
    "stretches of sequences": ((), ("Mesh.context = 2",)),
    "multi-token prediction": (("LanguageModel.multi_token = @MultiTokenPrediction",), ()),
    "LoRA, checkpointing": (
        (
            "Linear.apply_peft = @LoRA",
            "Parameter.lr_scale = 0.0",
            "adapter/Parameter.lr_scale = 1.0",
            "DecoderBlock.activation_checkpointing = @ActivationCheckpointing",
        ),
        (),
    ),
    "Muon, biases, norms of heads": (
        ("Trainer.optimizer = @Muon", "Linear.bias = True", "Attention.query_norm = @RMSNorm"),
        (),
    ),
}


@pytest.mark.parametrize(
    ("mesh", "num_processes", "problem"),
    [
        ("Mesh.sequence = True", 2, "Trainer.sequence_length (18) is not divisible by Mesh.tensor (4)"),
        ("Mesh.context = 2", 2, None),
        ("Mesh.sequence = None", 1, None),
    ],
)
def test_a_stated_division_of_the_stream_needs_a_length_that_fits(tmp_path, mesh, num_processes, problem):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    bindings = ("Trainer.sequence_length = 18", "Attention.num_kv_heads = 4", "Mesh.tensor = 4", mesh)
    trainer = built(str(text), bindings)
    if problem is None:
        assert trainer.mesh_sizes(4 * num_processes).tensor == 4
    else:
        with pytest.raises(RunError, match=re.escape(problem)):
            trainer.mesh_sizes(4 * num_processes)


@pytest.mark.slow
def test_training_is_that_of_one_process(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    (tmp_path / "one").mkdir()
    cases = [(bindings, ("Mesh.tensor = 2", *mesh)) for bindings, mesh in CASES.values()]
    found = run_ranks(4, all_trained, str(tmp_path), str(text), cases, timeout=600.0)
    for index, (name, (bindings, _)) in enumerate(CASES.items()):
        expected = trained(World(), str(tmp_path / f"one/{index}"), str(text), bindings)
        assert {"loss", "grad_norm", "validation_loss"} <= {key for metrics in expected for key in metrics}
        assert len(expected) == len(found[0][index]) > 0
        for rank in range(4):
            for one, many in zip(expected, found[rank][index], strict=True):
                assert one.keys() == many.keys()
                for key in ("step", "tokens", "loss", "grad_norm", "validation_loss", "multi_token_loss"):
                    # Adam divides by the size of small gradients, so differences of rounding grow from step to step.
                    assert many.get(key, 0) == pytest.approx(one.get(key, 0), rel=1e-4), (name, rank, key, one, many)
