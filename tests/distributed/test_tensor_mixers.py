"""Mixers divided over the tensor axis compute what one process does."""

import pytest
from processes import run_ranks
from tensor_models import assert_same_as_one_process, batch_of, small_model

from ml.distributed.tensor import tensor_misfits
from ml.layers import Layer, Mamba2

BIASES = ["Linear.bias = True", "Linear.bias_initialization = @normal"]
LORA = ["Linear.apply_peft = @LoRA", "LoRA.B_initialization = @normal"]
FUSED = ["Projections.fused = True"]
AGAIN = ["DecoderBlock.activation_checkpointing = @ActivationCheckpointing"]
# Large steps of time, so that the states weigh as much as the input.
STEPS = ["time_step_bias.dt_min = 0.5", "time_step_bias.dt_max = 1.0"]
NORMS = [
    "Attention.query_norm = @RMSNorm",
    "Attention.key_norm = @RMSNorm",
    "RMSNorm.weight_initialization = @normal",
]
LATENT = [
    "DecoderBlock.mixer = @LatentAttention",
    "LatentAttention.num_heads = 4",
    "LatentAttention.key_value_rank = 12",
    "LatentAttention.head_size = 8",
    "LatentAttention.rotary_size = 4",
    "LatentAttention.value_head_size = 6",
]
MAMBA = ["DecoderBlock.mixer = @Mamba", "Mamba.state_size = 4", *STEPS]
SIZES_OF_MAMBA2 = ["Mamba2.head_size = 8", "Mamba2.state_size = 6", "Mamba2.chunk_size = 4", *STEPS]
MAMBA2 = ["DecoderBlock.mixer = @Mamba2", *SIZES_OF_MAMBA2]
SIZES_OF_DELTA = ["GatedDeltaNet.num_heads = 4", "GatedDeltaNet.value_head_size = 6"]
DELTA = ["DecoderBlock.mixer = @GatedDeltaNet", *SIZES_OF_DELTA, *STEPS]
KIMI = ["DecoderBlock.mixer = @KimiDeltaAttention", "KimiDeltaAttention.num_heads = 4", *STEPS]
SHORT = ["DecoderBlock.mixer = @ShortConvolutionMixer"]
STOCHASTIC = [
    "DecoderBlock.mixer = @StochasticMixer",
    "StochasticMixer.mixers = {'full': @Attention, 'scan': @Mamba2}",
    "StochasticMixer.main = 'scan'",
    *SIZES_OF_MAMBA2,
]
HALF_NORMAL = "GatedRMSNorm.weight_initialization = @normal"
CASES = {
    "attention, norms over all heads": [
        *NORMS, "Attention.norm_over = 'all_heads'", "Attention.norm_after_rotary = True",
    ],
    "attention, norms of each head": [
        *NORMS, "Attention.norm_over = 'each_head'", "Attention.key_norm = @LayerNorm", "Attention.value_head_size = 6",
    ],
    "attention with ALiBi": ["Attention.alibi = True", "Attention.rotary = None"],
    "attention with ALiBi of Falcon": [
        "Attention.alibi = True", "Attention.scale_alibi = True", "Attention.rotary = None",
    ],
    "lightning attention": [
        "DecoderBlock.mixer = @LightningAttention", "LightningAttention.num_heads = 4",
        "LightningAttention.chunk_size = 4",
        "RMSNorm.weight_initialization = @normal",
    ],
    "parallel mixers": [
        "DecoderBlock.mixer = @ParallelMixer", "ParallelMixer.mixers = {'full': @Attention, 'scan': @Mamba2}",
        *SIZES_OF_MAMBA2,
    ],
    "adapters of embeddings and head, DoRA": [
        "query/Linear.apply_peft = @DoRA", "gate/Linear.apply_peft = @DoRA", "DoRA.B_initialization = @normal",
        "TokenEmbedding.apply_peft = @LoRA", "LanguageModelHead.apply_peft = @LoRA", "LoRA.B_initialization = @normal",
    ],
    "parallel block": [
        "DecoderBlock.parallel = True", "DecoderBlock.shared_norm = True", "LanguageModelHead.bias = True",
        "LanguageModelHead.bias_initialization = @normal", "LanguageModelHead.logit_scale = 0.5",
        "Embeddings.normalization = @LayerNorm", "LayerNorm.scale = False",
    ],
    "latent attention": LATENT,
    "latent attention, rank of the query": [*LATENT, "LatentAttention.query_rank = 10", *BIASES],
    "latent attention, adapters, recomputed": [*LATENT, *LORA, *AGAIN],
    "latent attention, fused": [*LATENT, *FUSED, *BIASES],
    "Mamba": MAMBA,
    "Mamba, norms and biases": [
        *MAMBA, *BIASES, "Mamba.dt_norm = @RMSNorm", "Mamba.B_norm = @RMSNorm", "Mamba.C_norm = @FixedRMSNorm",
        "dt_down/Linear.bias = True",
    ],
    "Mamba, adapters, fused": [*MAMBA, *LORA, *FUSED],
    "Mamba, uneven channels": [*MAMBA, "Mamba.intermediate_size = 37"],
    "Mamba-2": [*MAMBA2, HALF_NORMAL],
    "Mamba-2, groups on each rank": [*MAMBA2, "Mamba2.num_groups = 4", HALF_NORMAL],
    "Mamba-2, one group of the norm": [*MAMBA2, "Mamba2.num_groups = 4", "GatedRMSNorm.num_groups = 1"],
    "Mamba-2, biases, fused": [*MAMBA2, *BIASES, *FUSED],
    "Mamba-2, adapters, recomputed": [*MAMBA2, *LORA, *AGAIN],
    "Mamba-2, no norm": [*MAMBA2, "Mamba2.norm = None"],
    "Mamba-2, gate after the norm": [*MAMBA2, "GatedRMSNorm.gate_position = 'after'", HALF_NORMAL],
    "gated delta net": [*DELTA, HALF_NORMAL],
    "gated delta net, more value heads": [*DELTA, "GatedDeltaNet.num_value_heads = 8", *BIASES, *FUSED],
    "Kimi delta attention": [*KIMI, HALF_NORMAL],
    "Kimi delta attention, biases, recomputed": [*KIMI, *BIASES, *AGAIN],
    "short convolution": [*SHORT, "CausalConvolution.bias = True", "CausalConvolution.bias_initialization = @normal"],
    "stochastic": STOCHASTIC,
}  # fmt: skip
ON_FOUR = {
    "latent attention": LATENT,
    "Mamba-2, groups over ranks": [*MAMBA2, "Mamba2.num_groups = 2", HALF_NORMAL],
    "Mamba-2, groups of the norm over ranks": [*MAMBA2, "Mamba2.num_groups = 4", "GatedRMSNorm.num_groups = 2"],
    "gated delta net": DELTA,
}


def every_case(world, cases):
    for name, bindings in cases.items():
        model, batch = small_model([*bindings, "normal.std = 0.1"]), batch_of(documents=True)
        for sequence in (False, True):
            try:
                assert_same_as_one_process(world, model, batch, sequence=sequence)
            except Exception as error:
                raise AssertionError(f"{name}, sequence={sequence}") from error


def test_loss_and_gradients_on_two_ranks():
    run_ranks(2, every_case, CASES)


def test_loss_and_gradients_on_four_ranks():
    run_ranks(4, every_case, ON_FOUR)


@pytest.mark.parametrize(
    ("bindings", "size", "message"),
    [
        (LATENT, 3, "LatentAttention.num_heads (4) is not divisible by Mesh.tensor (3)"),
        (DELTA, 8, "GatedDeltaNet.num_heads (4) is not divisible by Mesh.tensor (8)"),
        (KIMI, 3, "KimiDeltaAttention.num_heads (4) is not divisible by Mesh.tensor (3)"),
        (MAMBA2, 3, "Mamba2.num_heads (8) is not divisible by Mesh.tensor (3)"),
        (
            [*MAMBA2, "Mamba2.num_groups = 4", "Mamba2.num_heads = 12"],
            6,
            "Mamba2.num_groups (4) neither divides Mesh.tensor (6) nor is divisible by it",
        ),
        (
            [*MAMBA2, "GatedRMSNorm.num_groups = 4", "Mamba2.num_heads = 12"],
            6,
            "GatedRMSNorm.num_groups (4) neither divides Mesh.tensor (6) nor is divisible by it",
        ),
    ],
)
def test_what_does_not_fit_is_named(bindings, size, message):
    assert any(problem.startswith(message) for problem in tensor_misfits(small_model(bindings), size))


@pytest.mark.parametrize("bindings", [LATENT, MAMBA, MAMBA2, DELTA, KIMI, SHORT])
def test_every_mixer_fits_two_ranks(bindings):
    assert not tensor_misfits(small_model(bindings), 2)


class ScaledNorm(Layer):
    """A gated normalization without a rule."""

    def __init__(self, size, num_groups):
        super().__init__()

    def forward(self, x, gate):
        return x * gate


def test_a_norm_without_a_rule_over_divided_channels_is_named():
    problems = tensor_misfits(Mamba2(32, head_size=8, norm=ScaledNorm), 2)
    assert problems == ["Mamba2.norm (ScaledNorm) has no rule for Mesh.tensor within a Mamba2 "]
