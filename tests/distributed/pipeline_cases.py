"""Models and micro-batches of the tests of pipelines."""

import numpy as np
from quick_trainers import quick_trainer

from ml.data import Batch
from ml.targets import IGNORED

VOCABULARY, LENGTH, NUM_SEQUENCES, MICRO_BATCH = 256, 16, 8, 2
TINY = [
    f"LanguageModel.vocab_size = {VOCABULARY}",
    "LanguageModel.hidden_size = 32",
    "decoder/Repeat.num_blocks = 4",
    "Attention.num_heads = 4",
    "Attention.num_kv_heads = 2",
    "GatedMLP.intermediate_size = 64",
    f"Trainer.batch_size = {NUM_SEQUENCES}",
    f"Trainer.micro_batch_size = {MICRO_BATCH}",
    f"Trainer.sequence_length = {LENGTH}",
    "Trainer.optimizer = @SGD",  # AdamW divides rounding errors of small gradients by their size
    "SGD.learning_rate = 0.1",
    "scaled_normal.std = 0.2",  # large enough that every part of the model matters
    "normal.std = 0.2",
]
MIXTURE = ["DecoderBlock.mlp = @MixtureOfExperts", "MixtureOfExperts.num_experts = 4"]
SIGMOID = [*MIXTURE, "MixtureOfExperts.router = @SigmoidRouter"]
TIED = ["LanguageModel.tie_word_embeddings = True"]
LEARNED_POSITIONS = ["Embeddings.position = @PositionEmbedding"]
FURTHER_TOKENS = ["LanguageModel.multi_token = @MultiTokenPrediction"]
PATTERN = [
    "LanguageModel.decoder = @Pattern",
    "Pattern.blocks = {'ssm': @DecoderBlock, 'attention': @DecoderBlock}",
    "Pattern.pattern = ['ssm', 'attention']",
    "Pattern.num_blocks = 4",
    "ssm/DecoderBlock.mixer = @Mamba2",
    "Mamba2.head_size = 8",
    "Mamba2.state_size = 8",
]
NESTED = [
    "LanguageModel.decoder = @Chain",
    "Chain.sequences = {'dense': @Repeat, 'sparse': @Repeat}",
    "sparse/DecoderBlock.mlp = @MixtureOfExperts",
    "dense/Repeat.num_blocks = 1",
    "sparse/Repeat.num_blocks = 3",
]


def trainer_of(bindings=()):
    """A tiny trainer, whose model is on the meta device."""
    has_other_decoder = any("LanguageModel.decoder" in binding for binding in bindings)
    tiny = [binding for binding in TINY if not (has_other_decoder and "Repeat" in binding)]
    return quick_trainer(bindings, common=tiny)


def micro_batches(step, data_rank=0, num_data_ranks=1):
    """Micro-batches of a data rank, with documents, and the number of targets of all ranks, which have unequal ones."""
    random = np.random.default_rng(step)
    tokens = random.integers(0, VOCABULARY, (NUM_SEQUENCES, LENGTH))
    targets = np.roll(tokens, -1, axis=1)
    for row in targets:
        row[: random.integers(0, LENGTH - 2)] = IGNORED
    documents = np.cumsum(random.random((NUM_SEQUENCES, LENGTH)) < 0.15, axis=1)
    size = NUM_SEQUENCES // num_data_ranks
    rows = slice(data_rank * size, (data_rank + 1) * size)
    mine = Batch.of(tokens[rows], targets[rows], documents=documents[rows])
    return mine.split(MICRO_BATCH), int((targets != IGNORED).sum())


def require_equal(found, wanted, what, tolerance):
    """Requires a difference of less than `tolerance` times the largest entry."""
    scale = wanted.abs().max().clamp(min=1e-12)
    error = ((found - wanted).abs().max() / scale).item()
    assert error < tolerance, f"{what}: {error}"
