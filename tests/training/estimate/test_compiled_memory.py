"""The memory that a plan expects of compiled steps, against peaks of an H100 and the memory of single operations."""

import json
import re
from pathlib import Path

import pytest

from ml.api import build_trainer, load
from ml.distributed import MeshSizes
from ml.training.estimate import compiled, plan

RAW = Path(__file__).parents[3] / "benchmarks" / "raw" / "on_gpu_h100_2026-11-27.jsonl"
SHAPES = {  # of `benchmarks/gpu_rows.py`: vocabulary, width, blocks, heads, key-value heads, intermediate size
    "124M": (50304, 768, 12, 12, 12, 2048),
    "1B": (32768, 2048, 18, 32, 8, 7168),
}
ROWS = [json.loads(line) for line in RAW.read_text().splitlines()]
ALONE = [row for row in ROWS if row["table"] == "training step, bfloat16"][::3]  # 124M in float32, 1B in bfloat16


def trainer_of(*bindings, file="base.gin"):
    return build_trainer(load(file, bindings, allow_unused_bindings=True))


@pytest.mark.parametrize("row", ALONE, ids=[row["row"] for row in ALONE])
def test_the_planned_memory_of_a_compiled_step_is_that_of_an_h100(row):
    name, batch, length, weights = re.fullmatch(r"(\w+), (\d+) x (\d+) tokens, weights in (\w+)", row["row"]).groups()
    vocabulary, hidden, blocks, heads, kv_heads, intermediate = SHAPES[name]
    trainer = trainer_of(
        f"LanguageModel.vocab_size = {vocabulary}",
        f"LanguageModel.hidden_size = {hidden}",
        f"decoder/Repeat.num_blocks = {blocks}",
        f"Attention.num_heads = {heads}",
        f"Attention.num_kv_heads = {kv_heads}",
        f"GatedMLP.intermediate_size = {intermediate}",
        f"Trainer.batch_size = {batch}",
        f"Trainer.sequence_length = {length}",
        f"Trainer.precision = @{'MixedBFloat16' if weights == 'float32' else 'PureBFloat16'}",
        "Trainer.optimizer = @AdamW",
        "Trainer.compile = True",
        "TextData.separate_documents = False",
    )
    planned = plan(trainer, MeshSizes(), trainer.cluster).total_memory
    assert planned / 2**30 == pytest.approx(row["memory_gib"], rel=0.1)


def memory_of(compile, *bindings, file="recipes/tiny.gin"):
    trainer = trainer_of(*bindings, f"Trainer.compile = {compile}", file=file)
    return plan(trainer, MeshSizes(), trainer.cluster).memory


@pytest.mark.parametrize(
    ("bindings", "saves_less", "works_with_less"),
    [
        (["TextData.separate_documents = True", "block_0/Attention.window_size = 8"], True, True),
        (["DecoderBlock.activation_checkpointing = @ActivationCheckpointing"], True, True),  # in the head
        (["LanguageModelHead.loss_chunk_size = 32"], True, False),
        (
            [
                "block_1/DecoderBlock.mixer = @Mamba2",
                "block_0/DecoderBlock.activation_checkpointing = @ActivationCheckpointing",
                "LanguageModelHead.loss_chunk_size = 32",
            ],
            False,
            False,
        ),
        (
            [
                "LanguageModel.tie_word_embeddings = True",
                "Linear.apply_peft = @LoRA",
                "Parameter.lr_scale = 0.0",
                "adapter/Parameter.lr_scale = 1.0",
            ],
            True,
            True,
        ),
    ],
)
def test_compiled_blocks_with_attention_and_a_whole_loss_save_less(bindings, saves_less, works_with_less, caplog):
    eager, fused = (memory_of(compile, *bindings) for compile in (False, True))
    assert "Trainer.compile" not in caplog.text
    assert (0 < fused.activations < eager.activations) == saves_less
    assert (fused.working < eager.working) == works_with_less
    assert fused[:3] == eager[:3]  # weights, gradients, optimizer state
    if not saves_less:
        assert fused.activations == eager.activations


def test_a_block_that_cannot_be_traced_is_planned_as_single_operations_with_a_warning(monkeypatch, caplog):
    def fail(*_):
        raise NotImplementedError("no such operation")

    monkeypatch.setattr(compiled, "_of_block", fail)
    assert memory_of(True) == memory_of(False)
    message = "memory is planned without Trainer.compile for a kind of block that cannot be traced: no such operation"
    assert caplog.text.count(message) == 1


def test_a_kind_that_cannot_be_traced_leaves_others_compiled(caplog):
    bindings = ["block_1/DecoderBlock.mlp = @MixtureOfExperts", "LanguageModelHead.loss_chunk_size = 32"]
    eager, mixed = (memory_of(compile, *bindings) for compile in (False, True))
    assert mixed.activations < eager.activations
    assert caplog.text.count("cannot be traced") == 1


def test_the_update_needs_its_memory_in_compiled_steps_too():
    """Muon's intermediate results exceed the activations of few tokens."""
    bindings = [
        "Trainer.optimizer = @Muon",
        "LanguageModel.hidden_size = 256",
        "Trainer.micro_batch_size = 1",
        "Trainer.batch_size = 1",
    ]
    eager, fused = (memory_of(compile, *bindings) for compile in (False, True))
    matrix = 4 * 256 * 256
    assert fused.peak(accumulates=False) >= sum(fused[:3]) + 2 * matrix
    assert fused.peak(accumulates=False) <= eager.peak(accumulates=False)
