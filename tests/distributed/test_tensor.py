"""Tensor and sequence parallel models compute what one process does."""

from processes import run_ranks
from tensor_models import assert_same_as_one_process, batch_of, small_model

NORMAL_BIAS = ["Linear.bias = True", "Linear.bias_initialization = @normal"]
CASES = {
    "plain": [],
    "tied": ["LanguageModel.tie_word_embeddings = True"],
    "biases": NORMAL_BIAS,
    "layer norms": ["DecoderBlock.normalization = @LayerNorm", "LayerNorm.bias_initialization = @normal"],
    "MLP": ["DecoderBlock.mlp = @MLP", *NORMAL_BIAS],
    "LoRA": ["Linear.apply_peft = @LoRA", "LoRA.B_initialization = @normal", *NORMAL_BIAS],
    "only LoRA trained": [
        "Linear.apply_peft = @LoRA",
        "LoRA.B_initialization = @normal",
        "Parameter.lr_scale = 0.0",
        "adapter/Parameter.lr_scale = 1.0",
    ],
    "query and key norm, gate, sinks": [
        "Attention.query_norm = @RMSNorm",
        "Attention.key_norm = @LayerNorm",
        "Attention.gated = True",
        "Attention.attention_sinks = True",
    ],
    "fused projections": ["Projections.fused = True", *NORMAL_BIAS],
    "window, soft cap of scores": ["Attention.window_size = 5", "Attention.soft_cap = 3.0"],
    "z-loss, soft cap of logits": ["LanguageModelHead.z_loss = 0.01", "LanguageModelHead.logit_soft_cap = 1.0"],
    "chunked loss": ["LanguageModelHead.loss_chunk_size = 10", "LanguageModel.tie_word_embeddings = True"],
    "uneven vocabulary and width": ["LanguageModel.vocab_size = 257", "GatedMLP.intermediate_size = 37"],
    "uneven, tied": ["LanguageModel.vocab_size = 257", "LanguageModel.tie_word_embeddings = True"],
    "norms after": ["DecoderBlock.norm_position = 'post'"],
    "norms of outputs": ["DecoderBlock.mixer_output_norm = @RMSNorm", "DecoderBlock.mlp_output_norm = @RMSNorm"],
    "learned positions, scale": ["Embeddings.position = @PositionEmbedding", "Embeddings.scale = 5.0"],
    "shared blocks": ["Repeat.shared = True", *NORMAL_BIAS],
    "checkpointing": ["DecoderBlock.activation_checkpointing = @ActivationCheckpointing", *NORMAL_BIAS],
    "selective checkpointing": ["DecoderBlock.activation_checkpointing = @SelectiveActivationCheckpointing"],
}


def every_case(world):
    for name, bindings in CASES.items():
        for sequence in (False, True):
            model = small_model(bindings)
            batch = batch_of(model.vocab_size)
            try:
                assert_same_as_one_process(world, model, batch, sequence=sequence)
            except Exception as error:
                raise AssertionError(f"{name}, sequence={sequence}") from error


def test_loss_and_gradients_on_two_ranks():
    run_ranks(2, every_case)
